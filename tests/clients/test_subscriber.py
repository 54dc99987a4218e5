"""The cursor as a rig receives it: order, gaps, age; every frame is sent over real ZeroMQ."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pylsl
import pytest
import zmq

from clients.subscriber import AsyncCursorSubscriber, CursorSubscriber
from decoder.errors import StreamError
from streaming import wire
from streaming.publish import Publisher
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
    with CursorSubscriber(publisher.bound_to) as cursor:
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
def test_another_daemon_is_a_restart_and_no_gap(publisher: Publisher, first_seq: int) -> None:
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


def test_json_leaves_only_while_somebody_asks(publisher: Publisher) -> None:
    with CursorSubscriber(publisher.bound_to) as cursor:
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


def test_asyncio_hears_the_same(publisher: Publisher) -> None:
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
