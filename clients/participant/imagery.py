"""The movement that a participant imagines while watching a scripted cursor.

After a few reaches, a person can predict the next one: its onset, duration and smooth shape. Here
the prediction is a minimum-jerk reach (Flash & Hogan 1985) from the cursor to the target. Onset and
duration are those of earlier reaches until the cursor is seen to move, and are then corrected by
what is seen. So imagery keeps up with the cursor despite the visual delay, and is wrong when the
script changes.
"""

from __future__ import annotations

import math

import numpy as np

from clients.participant.screen import Glimpse

ONSET_S = 0.25  # after the target appears; expected for the first reach
LEARNING = 0.3  # weight of the newest reach in the expectation
VISIBLE = 0.03  # share of the way after which movement is visible
STILL_PHASE = 0.16  # share of the duration that it takes to become visible
TINY_M = 0.003

_PHASES = np.linspace(0.0, 1.0, 201)
_PROGRESS = _PHASES**3 * (10 - 15 * _PHASES + 6 * _PHASES**2)


def usual_duration_s(distance: float) -> float:
    """Duration of a reach of `distance` metres, as in training.data.simulate."""
    return 0.35 + 3.0 * distance


class Imagery:
    """Predicts scripted reaches, one after another."""

    def __init__(self) -> None:
        self._pace, self._onset_after_s = 1.0, ONSET_S
        self._since = -math.inf
        self._start = self._end = 0j
        self._onset, self._duration_s = -math.inf, 1.0
        self._learned = True

    def expect(self, at: float, seen: Glimpse) -> tuple[complex, complex]:
        """The expected position and velocity of the cursor at `at`."""
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
        """Correct the expected reach by the visible movement."""
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
    """Speed of a reach of length 1 and duration 1, at a phase of 0 to 1."""
    return 30 * phase**2 * (1 - phase) ** 2
