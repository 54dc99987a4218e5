"""Stamps that leave the line: single wild ones, and jumps of the sender's clock that stay.

One judgement for recordings and files (a tick can't wait for what comes after a stamp: it judges by
the window, `streaming.inlets.admission`). Stamps come in the order of their arrival:

- a stamp, or a short run of them, that leaves the line and comes back to it is wild: it is to be
  left out and costs nothing else;
- stamps that step back and stay are a jump of the clock: one cut at its first stamp;
- a step forward that stays is a pause, which nobody can tell from a clock that was set forward.

A jump counts as such only once `CONFIRM_S` of stamps lie on the new line. A step forward that is
followed by one back before it is confirmed is wild, whether or not the step back stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from decoder.arrays import Bools, Floats

ORDERED_S = 0.1  # a step that a stream in time order (kinematics) doesn't make
SPIKES_S = 1.0  # of spikes, which a sender may sort by unit inside its chunks
CONFIRM_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """wild: (n,) of the stamps to leave out. jumps: index of the first stamp after each jump."""

    wild: Bools
    jumps: tuple[int, ...]


def judge(stamps: Floats, *, tolerance_s: float) -> Verdict:
    """Judge stamps (n,) float64, seconds, in the order of their arrival.

    tolerance_s: `ORDERED_S` or `SPIKES_S`. Stamps that are no number or zero are wild.
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
    """Stamps that follow each other: places of the first and behind the last, and their stamps."""

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
    """The line that a stream's stamps keep to, stamps fed as they come.

    wild: (start, stop) of stamps that left it, jumps: where it began again, both by number of the
    stamp.
    """

    tolerance_s: float
    wild: list[tuple[int, int]] = field(default_factory=list)
    jumps: list[int] = field(default_factory=list)
    _n: int = 0
    _end: float = -np.inf  # the newest stamp that is surely on the line
    _ahead: _Run | None = None  # a step forward, or the beginning: not yet confirmed
    _behind: _Run | None = None  # a step back, not yet confirmed

    def feed(self, stamps: Floats) -> None:
        """Take the next stamps (n,), finite, in the order of their arrival."""
        for run in self._runs(stamps):
            self._place(run)

    def finish(self) -> None:
        """No more stamps come: a step back that isn't confirmed by now is wild."""
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
                self._end, self._ahead = ahead.last, None  # stamps go on from there: a pause
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
        if self._end > -np.inf:  # else all there was before is one wild beginning
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
