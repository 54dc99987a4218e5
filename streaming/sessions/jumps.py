"""Finds outliers among time stamps, and jumps of the sender's clock.

Recordings and files use the same rules. (A tick can't wait for later stamps, so it judges by the
window: `streaming.inlets.admission`.) Stamps are judged in the order of arrival. They normally
follow one line of time:

- A stamp, or a short run of stamps, that leaves the line and returns to it is an outlier. It is
  left out and has no other effect.
- A lasting step back is a jump of the clock. The data are cut at its first stamp.
- A lasting step forward is a pause: it can't be told from a clock that was set forward.

A step is lasting once the stamps after it span `CONFIRM_S`. If a step back follows before a step
forward has lasted, the stamps between them are outliers, whether or not the step back lasts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from decoder.arrays import Bools, Floats

ORDERED_S = 0.1  # tolerance for streams in time order (kinematics)
SPIKES_S = 1.0  # tolerance for spikes, which a sender may sort by unit inside a chunk
CONFIRM_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """wild: mask (n,) of the outliers. jumps: index of the first stamp after each jump."""

    wild: Bools
    jumps: tuple[int, ...]


def judge(stamps: Floats, *, tolerance_s: float) -> Verdict:
    """Find the outliers and jumps among stamps (n,) float64, s, in the order of arrival.

    tolerance_s: `ORDERED_S` or `SPIKES_S`. Stamps that are zero or not finite are outliers.
    """
    stamps = np.asarray(stamps, dtype=np.float64)
    timed = np.isfinite(stamps) & (stamps != 0.0)
    line = Line(tolerance_s=tolerance_s)
    line.feed(stamps[timed])
    line.finish()
    where = np.flatnonzero(timed)
    wild = ~timed
    for start, stop in line.wild:
        wild[where[start:stop]] = True
    return Verdict(wild=wild, jumps=tuple(int(where[index]) for index in line.jumps))


@dataclass
class _Run:
    """A run of stamps that follow each other: its slice [start, stop), its first and last time."""

    start: int
    stop: int
    first: float
    last: float

    @property
    def confirmed(self) -> bool:
        return self.last - self.first >= CONFIRM_S

    def extend(self, run: _Run) -> None:
        self.stop, self.last = run.stop, run.last


@dataclass
class Line:
    """Tracks the line of time that a stream's stamps follow.

    wild: slices (start, stop) of outliers. jumps: first stamp after each jump. Both are numbers of
    stamps, counted from the first one fed.
    """

    tolerance_s: float
    wild: list[tuple[int, int]] = field(default_factory=list)
    jumps: list[int] = field(default_factory=list)
    _n: int = 0
    _end: float = -np.inf  # the newest stamp confirmed to be on the line
    _ahead: _Run | None = None  # after a step forward, or at the start; not confirmed
    _behind: _Run | None = None  # after a step back; not confirmed

    def feed(self, stamps: Floats) -> None:
        """Add the next stamps (n,), finite, in the order of arrival."""
        for run in self._runs(stamps):
            self._place(run)

    def finish(self) -> None:
        """End the stream: stamps after an unconfirmed step back are outliers."""
        self._drop_behind()

    def _runs(self, stamps: Floats) -> Iterator[_Run]:
        if len(stamps) == 0:
            return
        steps = np.flatnonzero(np.abs(np.diff(stamps)) > self.tolerance_s) + 1
        for start, stop in zip([0, *steps.tolist()], [*steps.tolist(), len(stamps)], strict=True):
            first, last = float(stamps[start]), float(stamps[start:stop].max())
            yield _Run(self._n + start, self._n + stop, first, last)
        self._n += len(stamps)

    def _place(self, run: _Run) -> None:
        if self._behind is not None:
            self._place_after_step_back(run, self._behind)
        elif self._ahead is not None:
            self._place_after_step_forward(run, self._ahead)
        elif run.first < self._end - self.tolerance_s:
            self._step_back(run)
        elif run.first > self._end + self.tolerance_s:
            self._step_forward(run)
        else:
            self._end = max(self._end, run.last)

    def _step_forward(self, run: _Run) -> None:
        if run.confirmed:
            self._end = run.last
        else:
            self._ahead = run

    def _step_back(self, run: _Run) -> None:
        self._behind = run
        self._confirm_behind()

    def _place_after_step_forward(self, run: _Run, ahead: _Run) -> None:
        if run.first >= ahead.last - self.tolerance_s:
            if run.first > ahead.last + self.tolerance_s and run.first - ahead.first >= CONFIRM_S:
                self._end, self._ahead = (
                    ahead.last,
                    None,
                )  # the stamps go on from there: it was a pause
                self._place(run)
                return
            ahead.extend(run)
            if ahead.confirmed:
                self._end, self._ahead = ahead.last, None
        elif self._end - self.tolerance_s <= run.first and self._end > -np.inf:  # back on the line
            self._drop_ahead()
            self._place(run)
        else:
            self._step_back(run)

    def _place_after_step_back(self, run: _Run, behind: _Run) -> None:
        top = self._ahead.last if self._ahead is not None else self._end
        if abs(run.first - behind.last) > self.tolerance_s:
            if run.first >= top - self.tolerance_s or run.first < behind.last:
                self._drop_behind()
                self._place(run)
                return
            back = self._end > -np.inf and run.first >= self._end - self.tolerance_s
            if self._ahead is not None and back:
                self._drop_behind()
                self._drop_ahead()
                self._place(run)
                return
        behind.extend(run)
        self._confirm_behind()

    def _confirm_behind(self) -> None:
        if self._behind is None or not self._behind.confirmed:
            return
        self._drop_ahead()
        if self._end > -np.inf:  # if not, all earlier stamps are outliers
            self.jumps.append(self._behind.start)
        self._end, self._behind = self._behind.last, None

    def _drop_ahead(self) -> None:
        self._call_wild(self._ahead)
        self._ahead = None

    def _drop_behind(self) -> None:
        self._call_wild(self._behind)
        self._behind = None

    def _call_wild(self, run: _Run | None) -> None:
        if run is not None:
            self.wild.append((run.start, run.stop))
