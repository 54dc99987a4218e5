"""Durations of successive phases."""

from __future__ import annotations

import time


class Stopwatch:
    """Measures phases that follow each other without a gap.

    phases_s: duration of each phase so far, s.
    """

    def __init__(self) -> None:
        self.phases_s: dict[str, float] = {}
        self._began = self._phase_began = time.monotonic()

    def lap(self, phase: str) -> None:
        """End a phase; the next one begins."""
        now = time.monotonic()
        self.phases_s[phase] = self.phases_s.get(phase, 0.0) + now - self._phase_began
        self._phase_began = now

    @property
    def total_s(self) -> float:
        """Time since the first phase began, s."""
        return time.monotonic() - self._began
