"""The last seconds of the stream with its own unit numbers, for a decoder that is swapped in.

The decoder in use stores only spikes of its own units; the next decoder may have others. All
recent spikes are stored here, so that a new decoder has a full window at once. They are also what
the daemon publishes for screens.
"""

from __future__ import annotations

import numpy as np

from decoder.arrays import Floats, Ints
from decoder.memory.ring import TokenRing
from decoder.runtimes.base import FUTURE_S, MAX_RATE_HZ
from streaming.wire import messages as wire

KEEP_S = 1.5  # longer than the window of every preset
SETTLED_S = 0.1  # spikes may arrive this late and still be watched and shown
SHOWN_S = 0.25  # the longest interval of one message; spikes before it are not shown
MOST_SHOWN = 2000  # spikes of a message


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

    def shown(self, since: float, now: float, *, started: float, stream: str) -> wire.Spikes:
        """The spikes from `since` on (LSL clock, s) that have settled by `now`, for a screen.

        Of more than `MOST_SHOWN`, every second, third, … is listed.
        """
        end = now - SETTLED_S
        start = max(since, end - SHOWN_S)
        times, units = self.between(start, end)
        step = max(1, -(-len(times) // MOST_SHOWN))
        return wire.Spikes(
            schema=wire.SCHEMA_VERSION,
            started=started,
            stream=stream,
            start=start,
            end=end,
            n_spikes=len(times),
            times=(times[::step] - start).astype("<f4").tobytes(),
            units=units[::step].astype("<u2").tobytes(),
        )

    def clear(self) -> None:
        """Forget every spike."""
        self._ring.clear()
