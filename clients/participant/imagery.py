"""The movement that somebody imagines who watches a cursor move by itself.

Who has seen a few reaches knows the next one: when it begins, how long it takes, and that it is
smooth. Here a reach is expected to be one of minimum jerk (Flash & Hogan 1985) from where the
cursor stood to the target; its beginning and duration are what reaches before had, until the
cursor has been seen to move, and then what it was seen to do. So imagery keeps up with the cursor
in spite of the eyes' delay, and errs where the script does something new.
"""

from __future__ import annotations

import math

import numpy as np

from clients.participant.screen import Glimpse

ONSET_S = 0.25  # after the target came on; what is expected of the first reach
LEARNING = 0.3  # weight of the newest reach in what is expected of the next
VISIBLE = 0.03  # a cursor that has come so far of its way has been seen to move
STILL_PHASE = 0.16  # of the duration: up to here it has not come so far
TINY_M = 0.003

_PHASES = np.linspace(0.0, 1.0, 201)
_PROGRESS = _PHASES**3 * (10 - 15 * _PHASES + 6 * _PHASES**2)


def usual_duration_s(distance: float) -> float:
    """How long reaches of `distance` metres take, as those of training/data/simulate.py."""
    return 0.35 + 3.0 * distance


class Imagery:
    """Expects scripted reaches, one after the other."""

    def __init__(self) -> None:
        self._pace, self._onset_after_s = 1.0, ONSET_S
        self._since = -math.inf
        self._start = self._end = 0j
        self._onset, self._duration_s = -math.inf, 1.0
        self._learned = True

    def expect(self, at: float, seen: Glimpse) -> tuple[complex, complex]:
        """Position and velocity that the cursor is expected to have at `at`."""
        if seen.target is None:
            return seen.pos, 0j
        if seen.target_since != self._since:
            self._begin(seen, seen.target)
        if abs(self._end - self._start) < TINY_M:
            return seen.pos, 0j
        self._watch(seen)
        way = self._end - self._start
        phase = min(1.0, max(0.0, (at - self._onset) / self._duration_s))
        progress = phase**3 * (10 - 15 * phase + 6 * phase**2)
        return self._start + progress * way, _rise(phase) / self._duration_s * way

    def _begin(self, seen: Glimpse, target: complex) -> None:
        self._since, self._start, self._end = seen.target_since, seen.pos, target
        self._onset = seen.target_since + self._onset_after_s
        self._duration_s = self._pace * usual_duration_s(abs(target - seen.pos))
        self._learned = False

    def _watch(self, seen: Glimpse) -> None:
        """Correct the reach by what is seen of it."""
        way = self._end - self._start
        along = way.conjugate() / abs(way) ** 2
        progress, rise_per_s = (along * (seen.pos - self._start)).real, (along * seen.vel).real
        if progress < VISIBLE:
            still_at = seen.time - STILL_PHASE * self._duration_s
            self._onset = max(self._onset, still_at)
        elif progress < 1 - VISIBLE and rise_per_s > 0.1:
            phase = float(np.interp(progress, _PROGRESS, _PHASES))
            self._duration_s = min(6.0, max(0.15, _rise(phase) / rise_per_s))
            self._onset = seen.time - phase * self._duration_s
            if progress > 0.5 and not self._learned:
                self._learn(abs(way))

    def _learn(self, distance: float) -> None:
        self._learned = True
        pace = self._duration_s / usual_duration_s(distance)
        self._pace += LEARNING * (pace - self._pace)
        onset_after_s = self._onset - self._since
        self._onset_after_s += LEARNING * (onset_after_s - self._onset_after_s)


def _rise(phase: float) -> float:
    """How fast a reach of length 1 and duration 1 is, at a phase of 0 to 1."""
    return 30 * phase**2 * (1 - phase) ** 2
