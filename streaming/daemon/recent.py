"""The last seconds of the stream with its own unit numbers, for a decoder that is swapped in.

The decoder in use stores only spikes of its own units; the next decoder may have others. All
recent spikes are stored here, so that a new decoder has a full window at once.
"""

from __future__ import annotations

import numpy as np

from decoder.arrays import Floats, Ints
from decoder.memory.ring import TokenRing
from decoder.runtimes.base import FUTURE_S, MAX_RATE_HZ

KEEP_S = 1.5  # longer than the window of every preset


class RecentSpikes:
    """Times (LSL clock, s) and stream unit indices of the last `KEEP_S` seconds."""

    def __init__(self) -> None:
        keep_s = KEEP_S + FUTURE_S
        self._ring = TokenRing(int(MAX_RATE_HZ * keep_s), (0,), keep_s=keep_s)

    def append(self, times: Floats, stream_units: Ints, *, now: float) -> None:
        """Add the spikes (n,) that a tick drained at `now`."""
        usable = np.isfinite(times) & (times > now - KEEP_S) & (times < now + FUTURE_S)
        times, stream_units = times[usable], stream_units[usable]
        self._ring.append(times, stream_units, np.empty((len(times), 0), dtype=np.float32))

    def since(self, time_s: float) -> tuple[Floats, Ints]:
        """Times (n,) and stream unit indices (n,) of the spikes from `time_s` on."""
        first = int(self._ring.times.searchsorted(time_s))
        return self._ring.times[first:].copy(), self._ring.units[first:].copy()

    def between(self, start_s: float, end_s: float) -> tuple[Floats, Ints]:
        """Times (n,) and stream unit indices (n,) of `start_s <= time < end_s`; views."""
        first, last = self._ring.times.searchsorted((start_s, end_s))
        return self._ring.times[first:last], self._ring.units[first:last]

    def clear(self) -> None:
        """Forget every spike."""
        self._ring.clear()
