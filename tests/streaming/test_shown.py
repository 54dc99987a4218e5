"""The spikes that a daemon publishes for screens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pylsl
import pytest
import zmq

from clients.subscriber import CursorSubscriber
from streaming.daemon.recent import MOST_SHOWN, SETTLED_S, SHOWN_S, RecentSpikes
from streaming.wire import messages as wire
from tests.rig import daemon
from tests.streaming.test_live import drain, heard_from_the_start, stream_of

SPIKES = wire.TOPICS["spikes"].prefix
TIMEOUT_MS = 30_000


def arrays(message: wire.Spikes) -> tuple[np.ndarray, np.ndarray]:
    """Times (n,), s on the LSL clock, and units (n,)."""
    times = np.frombuffer(message.times, "<f4").astype(np.float64)
    return message.start + times, np.frombuffer(message.units, "<u2")


@pytest.mark.parametrize("tiny", ["possm"], indirect=True)  # the decoder doesn't matter
def test_a_screen_sees_every_spike_of_the_stream(tiny, tmp_path: Path) -> None:
    with (
        zmq.Context() as context,
        context.socket(zmq.SUB) as socket,
        daemon(tmp_path, tiny.bundle.path, stream_of(tiny)) as (_, address),
        CursorSubscriber(address, max_age_s=None) as cursor,
    ):
        socket.subscribe(SPIKES)
        socket.connect(address)
        with heard_from_the_start(tiny.session, cursor) as (inlet, _):
            messages: list[wire.Spikes] = []
            while sum(message.n_spikes for message in messages) < 500:
                assert socket.poll(TIMEOUT_MS), f"{len(messages)} messages so far"
                messages.append(wire.decode_spikes(socket.recv()[len(SPIKES) :]))
            sent_times, sent_units = drain(inlet, 500 + messages[0].n_spikes)
    assert {message.stream for message in messages} == {stream_of(tiny)}
    assert all(message.n_spikes == len(message.units) // 2 for message in messages)
    starts = np.array([message.start for message in messages])
    ends = np.array([message.end for message in messages])
    assert np.all(starts[1:] >= ends[:-1])
    n_compared = 0
    for message in messages:
        if message.end > sent_times[-1]:
            break  # the test has read no further
        times, units = arrays(message)
        inside = (sent_times >= message.start) & (sent_times < message.end)
        n_compared += int(inside.sum())
        assert abs(len(times) - inside.sum()) <= 1  # at the margin: clocks differ by microseconds
        if len(times) == inside.sum():
            np.testing.assert_allclose(times, sent_times[inside], atol=1e-3)
            np.testing.assert_array_equal(units, sent_units[inside])
    assert n_compared > 200


def test_too_many_spikes_are_thinned_and_counted() -> None:
    recent = RecentSpikes()
    now = pylsl.local_clock()
    times = np.linspace(now - 0.3, now - SETTLED_S - 1e-3, 3 * MOST_SHOWN)
    recent.append(times, np.arange(len(times)) % 96, now=now)
    shown = recent.shown(now - 0.3, now, started=0.0, stream="rig")
    assert shown.n_spikes == len(times)
    assert len(shown.units) // 2 == MOST_SHOWN
    late = recent.shown(now - 10.0, now, started=0.0, stream="rig")
    assert late.start == pytest.approx(now - SETTLED_S - SHOWN_S)
