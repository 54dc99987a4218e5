"""Counts that outlive a run of the daemon: totals, and histograms of durations."""

from __future__ import annotations

import numpy as np
from prometheus_client.utils import floatToGoString

from decoder.arrays import Floats

MOST_RUNS = 32  # whose last counts are kept


class Total:
    """A count that never decreases, from counts that restart at 0 with every run of the daemon."""

    def __init__(self) -> None:
        self.value = 0
        self._seen: dict[tuple[float, str], int] = {}

    def see(self, count: int, *, run: float, of: str = "") -> None:
        """Take the present count of a run, or of one part of it. run: the daemon's `started`."""
        before = self._seen.pop((run, of), 0)
        self.value += count - before if count >= before else count
        self._seen[run, of] = count
        if len(self._seen) > MOST_RUNS:
            del self._seen[next(iter(self._seen))]


class Histogram:
    """A histogram of durations. bounds_s: upper bounds of its buckets (n,), s, ascending."""

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self._bounds_s = bounds_s
        self._counts = np.zeros(len(bounds_s) + 1, dtype=np.int64)
        self.sum_s = 0.0

    def add(self, durations_s: list[float] | Floats) -> None:
        """Add durations (n,), s."""
        durations = np.asarray(durations_s, dtype=np.float64)
        buckets = np.searchsorted(self._bounds_s, durations)
        self._counts += np.bincount(buckets, minlength=len(self._counts))
        self.sum_s += float(durations.sum())

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """Each bucket's upper bound and the number of durations up to it, as Prometheus wants."""
        bounds = [*map(floatToGoString, self._bounds_s), "+Inf"]
        return list(zip(bounds, self._counts.cumsum().astype(float).tolist(), strict=True))
