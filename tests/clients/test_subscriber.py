"""The cursor as a rig receives it: order, gaps, age; every frame is sent over real ZeroMQ."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import numpy as np
import pylsl
import pytest
import zmq

from clients.subscriber import AsyncCursorSubscriber, CursorSubscriber, _ShortestWay
from decoder.errors import StreamError
from streaming.wire import messages as wire
from streaming.wire.publish import Publisher
from tests.rig import DEADLINE_S, wait_for


def frame(seq: int, *, started: float = 1.0, published: float | None = None) -> wire.CursorFrame:
    published = pylsl.local_clock() if published is None else published
    return wire.CursorFrame(
        schema=wire.SCHEMA_VERSION, started=started, seq=seq, session="s", decoder="d",
        state="decoding", valid=True, window_end=published, newest_spike=published, decode_ms=1.0,
        published=published, velocity=(0.1, -0.2), n_spikes=3, n_drained=3, clock_offset=0.0,
        latency_ms=1.0,
    )  # fmt: skip


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    made = Publisher("tcp://127.0.0.1:*")
    yield made
    made.close()


def subscribed(publisher: Publisher) -> None:
    """Wait until the publisher knows its subscriber."""

    def known() -> bool:
        publisher.see_subscribers()
        return publisher._wanted("cursor")

    wait_for("the subscription", known)


def test_frames_come_in_order_and_whole(publisher: Publisher) -> None:
    with CursorSubscriber(publisher.bound_to, max_age_s=30.0) as cursor:
        subscribed(publisher)
        sent = [frame(seq) for seq in range(5)]
        for one in sent:
            publisher.send(one)
        assert [cursor.receive(timeout_s=DEADLINE_S) for _ in sent] == sent
        assert (cursor.n_frames, cursor.n_gaps, cursor.n_restarts) == (5, 0, 0)
        assert cursor.receive(timeout_s=0.05) is None


def test_a_gap_is_counted_with_its_length(publisher: Publisher) -> None:
    with CursorSubscriber(publisher.bound_to) as cursor:
        subscribed(publisher)
        for seq in (0, 1, 5, 6, 9):
            publisher.send(frame(seq))
            cursor.receive(timeout_s=DEADLINE_S)
        assert (cursor.n_gaps, cursor.n_missed) == (2, 5)


@pytest.mark.parametrize("first_seq", [0, 40])
def test_another_daemon_is_a_restart_not_a_gap(publisher: Publisher, first_seq: int) -> None:
    with CursorSubscriber(publisher.bound_to) as cursor:
        subscribed(publisher)
        for one in (frame(7), frame(8), frame(first_seq, started=2.0)):
            publisher.send(one)
            cursor.receive(timeout_s=DEADLINE_S)
        assert (cursor.n_restarts, cursor.n_gaps) == (1, 0)


def test_latest_only_keeps_one_frame_the_newest(publisher: Publisher) -> None:
    with CursorSubscriber(publisher.bound_to, latest_only=True) as cursor:
        subscribed(publisher)
        for seq in range(50):
            publisher.send(frame(seq))
        time.sleep(0.2)

        def newest() -> bool:
            received = cursor.receive(timeout_s=DEADLINE_S)
            return received is not None and received.seq == 49

        wait_for("the newest frame", newest)
        assert cursor.n_frames < 50
        assert cursor.receive(timeout_s=0.05) is None


def test_silence_is_stale(publisher: Publisher) -> None:
    with CursorSubscriber(publisher.bound_to) as cursor:
        assert cursor.is_stale()
        subscribed(publisher)
        publisher.send(frame(0))
        cursor.receive(timeout_s=DEADLINE_S)
        assert not cursor.is_stale(after_s=5.0)
        time.sleep(0.15)
        assert cursor.is_stale(after_s=0.1)


def test_a_reader_that_falls_behind_is_stale_though_frames_keep_coming(
    publisher: Publisher,
) -> None:
    with CursorSubscriber(publisher.bound_to) as cursor:
        subscribed(publisher)
        began = pylsl.local_clock()
        publisher.send(frame(0))
        cursor.receive(timeout_s=DEADLINE_S)
        usual_s = pylsl.local_clock() - began  # at most: a backlog is told beyond the quickest way
        published = pylsl.local_clock() - 0.4  # waited 0.4 s unread
        publisher.send(frame(1, published=published))
        cursor.receive(timeout_s=DEADLINE_S)
        assert 0.4 - usual_s <= cursor.backlog_s <= pylsl.local_clock() - published
        assert cursor.is_stale(after_s=0.25)


@pytest.mark.parametrize("ahead_s", [0.0, 5e5, -5e5])
def test_frames_missed_by_a_stalled_reader_move_nothing(
    publisher: Publisher, ahead_s: float
) -> None:
    """ahead_s: of the sender's clock, on another host."""

    def send(*seqs: int) -> None:
        for seq in seqs:
            publisher.send(frame(seq, published=pylsl.local_clock() + ahead_s))

    with CursorSubscriber(publisher.bound_to, max_age_s=0.2) as cursor:
        subscribed(publisher)
        send(0, 1, 2)
        time.sleep(0.3)  # before the first is read, too
        came = [cursor.receive(timeout_s=5.0) for _ in range(3)]
        assert {(one.valid, one.state, one.velocity) for one in came} == {
            (False, "stale", (0.0, 0.0))
        }

        def fresh() -> bool:
            send(3)
            return cursor.receive(timeout_s=5.0).valid

        wait_for("a frame in time", fresh)
        send(*range(4, 14))
        time.sleep(0.3)
        came = [cursor.receive(timeout_s=5.0) for _ in range(10)]
        assert not any(one.valid for one in came)
        assert [one.seq for one in came] == list(range(4, 14))
        assert cursor.is_stale(after_s=0.2)
        wait_for("a frame in time", fresh)


def test_a_recorder_gets_old_frames_as_they_were_sent(publisher: Publisher) -> None:
    with CursorSubscriber(publisher.bound_to, max_age_s=None) as cursor:
        subscribed(publisher)
        publisher.send(one := frame(0, published=pylsl.local_clock() - 10.0))
        assert cursor.receive(timeout_s=5.0) == one


def test_a_reader_that_stays_behind_for_minutes_is_not_taken_for_a_quick_one() -> None:
    ways = _ShortestWay()
    ways.shortest(0.001, 0.0)
    late = [10.0 - ways.shortest(10.0, now) for now in np.arange(0.01, 600.0, 0.01)]
    assert min(late) > 9.8


@pytest.mark.parametrize("tick_s", [0.01, 0.001])
def test_for_a_reader_that_stalls_the_sender_keeps_a_tenth_of_a_second(tick_s: float) -> None:
    """Its own queues are short, so that what comes late was the sender's."""
    publisher = Publisher("tcp://127.0.0.1:*", tick_s=tick_s)
    context = zmq.Context()
    stalled = context.socket(zmq.SUB)
    stalled.setsockopt(zmq.RCVHWM, 1)
    stalled.setsockopt(zmq.RCVBUF, 16384)
    stalled.subscribe(b"cursor:")
    stalled.connect(publisher.bound_to)
    subscribed(publisher)
    for seq in range(3000):
        publisher.send(frame(seq))
        time.sleep(0.0002)
    seqs: list[int] = []
    while 3000 not in seqs:  # one that is sent now comes after all that waited
        if not stalled.poll(100):
            publisher.send(frame(3000))
            continue
        seqs.append(wire.decode_frame(stalled.recv()[len(wire.TOPICS["cursor"].prefix) :]).seq)
    n_came = sum(seq < 3000 for seq in seqs)
    most = 0.1 / tick_s + 300  # and what libzmq and the system hold on their way
    assert n_came < most, "of 3000"
    context.destroy(linger=0)
    publisher.close()


def test_subscriptions_of_no_topic_are_not_kept_nor_looked_at_all_at_once(
    publisher: Publisher,
) -> None:
    context = zmq.Context()
    greedy = context.socket(zmq.SUB)
    greedy.subscribe(b"cursor.json:")
    greedy.connect(publisher.bound_to)

    def wanted(topic: str) -> bool:
        publisher.see_subscribers()
        return publisher._wanted(topic)

    wait_for("the first subscription", lambda: wanted("cursor.json"))
    for number in range(0, 5000, 500):  # its own queue holds 1,000
        for topic in range(number, number + 500):
            greedy.subscribe(f"topic-{topic}".encode())
        wait_for("the topics", lambda: publisher._socket.poll(1000))
        greedy.poll(50)  # in which libzmq makes room for more
        publisher.see_subscribers()
        assert publisher._socket.poll(0), "the rest waits for the next tick"
        wait_for(
            "all to be seen", lambda: publisher.see_subscribers() or not publisher._socket.poll(10)
        )
    greedy.subscribe(b"cursor:")
    wait_for("the last subscription", lambda: wanted("cursor"))
    assert publisher._subscriptions == {b"cursor:", b"cursor.json:"}
    context.destroy(linger=0)


def test_json_is_sent_only_while_somebody_subscribes(publisher: Publisher) -> None:
    with CursorSubscriber(publisher.bound_to, max_age_s=30.0) as cursor:
        subscribed(publisher)
        context = zmq.Context()
        text = context.socket(zmq.SUB)
        text.connect(publisher.bound_to)
        prefix = wire.TOPICS["cursor.json"].prefix

        def wanted() -> bool:
            publisher.see_subscribers()
            return publisher._wanted("cursor.json")

        assert not wanted()
        text.setsockopt(zmq.SUBSCRIBE, prefix)
        wait_for("the subscription", wanted)
        publisher.send(one := frame(0))
        assert wire.decode_frame_json(text.recv()[len(prefix) :]) == one
        assert cursor.receive(timeout_s=DEADLINE_S) == one
        context.destroy(linger=0)


def test_a_frame_of_another_version_is_a_clear_error(publisher: Publisher) -> None:
    with CursorSubscriber(publisher.bound_to) as cursor:
        subscribed(publisher)
        publisher._socket.send(wire.TOPICS["cursor"].prefix + b"\x81\xa3abc\x01")
        with pytest.raises(StreamError, match="schema"):
            cursor.receive(timeout_s=DEADLINE_S)


def test_the_asyncio_subscriber_gets_the_same_frames(publisher: Publisher) -> None:
    async def listen() -> list[int]:
        async with AsyncCursorSubscriber(publisher.bound_to) as cursor:
            await asyncio.to_thread(subscribed, publisher)
            for seq in range(4):
                publisher.send(frame(seq))
            seqs = []
            async for one in cursor:
                seqs.append(one.seq)
                if len(seqs) == 4:
                    break
            assert await cursor.receive(timeout_s=0.05) is None
            return seqs

    assert asyncio.run(listen()) == [0, 1, 2, 3]
