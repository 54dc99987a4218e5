"""The spikes that a daemon publishes for screens."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pylsl
import pytest
import zmq

from clients.subscriber import CursorSubscriber
from streaming.daemon.recent import MOST_SHOWN, SHOWN_S, RecentSpikes
from streaming.wire import messages as wire
from tests.rig import daemon
from tests.streaming.test_live import drain, heard_from_the_start, stream_of

SPIKES = wire.TOPICS["spikes"].prefix
TIMEOUT_MS = 30_000


def arrays(message: wire.Spikes) -> tuple[np.ndarray, np.ndarray]:
    """Times (n,), s on the LSL clock, and units (n,)."""
    times = np.frombuffer(message.times, "<f4").astype(np.float64)
    return message.until + times, np.frombuffer(message.units, "<u2")


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
            sent_times, sent_units = drain(inlet, sum(m.n_spikes for m in messages))
    assert {message.stream for message in messages} == {stream_of(tiny)}
    for before, message in pairwise(messages):
        assert message.since == before.until
        assert message.n_spikes == len(message.units) // 2
    times, units = (np.concatenate(parts) for parts in zip(*map(arrays, messages), strict=True))
    first = int(np.abs(sent_times - times[0]).argmin())  # the first message may begin later
    n = min(len(times), len(sent_times) - first)
    assert n > 300
    np.testing.assert_allclose(times[:n], sent_times[first : first + n], atol=1e-3)
    np.testing.assert_array_equal(units[:n], sent_units[first : first + n])


def test_too_many_spikes_are_thinned_and_counted() -> None:
    recent, now = RecentSpikes(), pylsl.local_clock()
    recent.shown(now - 0.1, started=0.0, stream="rig")
    times = np.linspace(now - 0.3, now - 1e-3, 3 * MOST_SHOWN)
    recent.append(times, np.arange(len(times)) % 96, now=now)
    shown = recent.shown(now, started=0.0, stream="rig")
    assert shown.n_spikes == len(times)
    assert len(shown.units) // 2 == MOST_SHOWN


def test_nothing_waits_while_nobody_watches() -> None:
    recent, now = RecentSpikes(), pylsl.local_clock()
    recent.append(np.array([now]), np.array([0]), now=now)
    assert recent.shown(now, started=0.0, stream="rig").n_spikes == 0
    recent.append(np.array([now]), np.array([0]), now=now)
    later = now + 2 * SHOWN_S
    recent.append(np.array([later]), np.array([0]), now=later)
    assert recent.shown(later, started=0.0, stream="rig").since == later - SHOWN_S
