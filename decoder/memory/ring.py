"""The spikes of the last seconds in time order, each with its token row.

Storage is one linear buffer. Spikes are appended at its end and forgotten at its front; when the
end is reached, the live part is moved to the front. So a window is always a contiguous slice, which
ONNX Runtime reads without a copy. A spike that arrives out of order is merged into its place.

Timestamps are checked by `streaming.inlets.admission`, not here.
"""

from __future__ import annotations

import numpy as np

from decoder.arrays import Float32s, Floats, Ints

COMPACT_FLOOR = 4096  # spikes; with less dead space at the front nothing is moved


class TokenRing:
    """At most `capacity` spikes, ascending in time.

    capacity: maximum number of spikes. Memory is only touched where spikes are written.
    row_shape: shape of one token row.
    keep_s: spikes older than this before the newest are forgotten when others are appended, so that
        a ring without a reader does not fill up.
    """

    def __init__(
        self, capacity: int, row_shape: tuple[int, ...], *, keep_s: float = np.inf
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity {capacity}, expected at least one spike")
        self.capacity, self.keep_s = capacity, keep_s
        size = 2 * capacity
        self._times = np.empty(size)
        self._units = np.empty(size, dtype=np.int64)
        self._rows = np.empty((size, *row_shape), dtype=np.float32)
        self._first = 0
        self._last = 0
        self.n_overflowed = 0

    def __len__(self) -> int:
        return self._last - self._first

    @property
    def times(self) -> Floats:
        """(n_spikes,) times of all kept spikes; a view, valid until the next append."""
        return self._times[self._first : self._last]

    @property
    def units(self) -> Ints:
        """(n_spikes,) unit indices of all kept spikes; a view."""
        return self._units[self._first : self._last]

    @property
    def rows(self) -> Float32s:
        """(n_spikes, *row_shape) token rows of all kept spikes; a view."""
        return self._rows[self._first : self._last]

    def append(self, times: Floats, units: Ints, rows: Float32s) -> None:
        """Append spikes in any order. Above `capacity`, the oldest are dropped and counted."""
        n_new = len(times)
        if n_new == 0:
            return
        self.forget_before(float(times.max()) - self.keep_s)
        if n_new > self.capacity:
            self.n_overflowed += n_new - self.capacity
            newest = np.argsort(times, kind="stable")[-self.capacity :]
            times, units, rows = times[newest], units[newest], rows[newest]
            n_new = self.capacity
        self._make_room(n_new)
        start, end = self._last, self._last + n_new
        self._times[start:end] = times
        self._units[start:end] = units
        self._rows[start:end] = rows
        self._last = end
        self._restore_order(start)

    def forget_before(self, time_s: float) -> None:
        """Forget the spikes before `time_s`."""
        self._first += int(np.searchsorted(self.times, time_s, side="left"))

    def window(self, start_s: float, end_s: float) -> tuple[Float32s, int]:
        """The token rows of spikes with `start_s <= time < end_s`, and their number."""
        times = self.times
        first = int(times.searchsorted(start_s, side="left"))
        last = int(times.searchsorted(end_s, side="left"))
        return self._rows[self._first + first : self._first + last], last - first

    def clear(self) -> None:
        """Forget every spike."""
        self._first = self._last = 0

    def _make_room(self, n_new: int) -> None:
        excess = len(self) + n_new - self.capacity
        if excess > 0:
            self._first += excess
            self.n_overflowed += excess
        dead = self._first
        if self._last + n_new > len(self._times) or dead > max(COMPACT_FLOOR, 3 * len(self)):
            n_kept = len(self)
            for buffer in (self._times, self._units, self._rows):
                buffer[:n_kept] = buffer[self._first : self._last]
            self._first, self._last = 0, n_kept

    def _restore_order(self, start: int) -> None:
        """Merge the tail from `start` into place, unless it is already in order."""
        joined = self._times[max(start - 1, self._first) : self._last]
        if len(joined) < 2 or (joined[1:] >= joined[:-1]).all():
            return
        oldest = float(self._times[start : self._last].min())
        begin = self._first + int(
            np.searchsorted(self._times[self._first : start], oldest, side="right")
        )
        order = np.argsort(self._times[begin : self._last], kind="stable") + begin
        for buffer in (self._times, self._units, self._rows):
            buffer[begin : self._last] = buffer[order]
