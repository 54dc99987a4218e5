"""The last seconds of the stream with its own unit numbers, for a decoder that is swapped in.

The decoder in use stores only spikes of its own units; the next decoder may have others. All
recent spikes are stored here, so that a new decoder has a full window at once. They are also what
the daemon publishes for screens.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from decoder.arrays import Floats, Ints
from decoder.memory.ring import TokenRing
from decoder.runtimes.base import FUTURE_S, MAX_RATE_HZ
from streaming.wire import messages as wire

KEEP_S = 1.5  # longer than the window of every preset
SETTLED_S = 0.1  # spikes may arrive this late and still be watched
SHOWN_S = 1.0  # the longest interval of one message
KEPT_TICKS = 1000  # whose spikes wait to be shown
MOST_SHOWN = 2000  # spikes of a message


class RecentSpikes:
    """Times (LSL clock, s) and stream unit indices of the last `KEEP_S` seconds."""

    def __init__(self) -> None:
        keep_s = KEEP_S + FUTURE_S
        self._ring = TokenRing(int(MAX_RATE_HZ * keep_s), (0,), keep_s=keep_s)
        self._arrived: deque[tuple[Floats, Ints]] = deque(maxlen=KEPT_TICKS)
        self._shown_at = -np.inf

    def append(self, times: Floats, stream_units: Ints, *, now: float) -> None:
        """Add the spikes (n,) that a tick drained at `now`."""
        usable = np.isfinite(times) & (times > now - KEEP_S) & (times < now + FUTURE_S)
        times, stream_units = times[usable], stream_units[usable]
        self._ring.append(times, stream_units, np.empty((len(times), 0), dtype=np.float32))
        if now - self._shown_at < SHOWN_S:  # somebody watches
            self._arrived.append((times, stream_units))

    def since(self, time_s: float) -> tuple[Floats, Ints]:
        """Times (n,) and stream unit indices (n,) of the spikes from `time_s` on."""
        first = int(self._ring.times.searchsorted(time_s))
        return self._ring.times[first:].copy(), self._ring.units[first:].copy()

    def between(self, start_s: float, end_s: float) -> tuple[Floats, Ints]:
        """Times (n,) and stream unit indices (n,) of `start_s <= time < end_s`; views."""
        first, last = self._ring.times.searchsorted((start_s, end_s))
        return self._ring.times[first:last], self._ring.units[first:last]

    def shown(self, now: float, *, started: float, stream: str) -> wire.Spikes:
        """The spikes that arrived since the last call, for a screen; `now`: LSL clock, s.

        Of more than `MOST_SHOWN`, every second, third, … is listed.
        """
        times = np.concatenate([times for times, _ in self._arrived] or [np.empty(0)])
        units = np.concatenate([units for _, units in self._arrived] or [np.empty(0, np.int64)])
        since, self._shown_at = max(self._shown_at, now - SHOWN_S), now
        self._arrived.clear()
        step = max(1, -(-len(times) // MOST_SHOWN))
        return wire.Spikes(
            schema=wire.SCHEMA_VERSION,
            started=started,
            stream=stream,
            since=since,
            until=now,
            n_spikes=len(times),
            times=(times[::step] - now).astype("<f4").tobytes(),
            units=units[::step].astype("<u2").tobytes(),
        )

    def clear(self) -> None:
        """Forget every spike."""
        self._ring.clear()
        self._arrived.clear()
