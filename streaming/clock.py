"""All timing policy: one clock, absolute deadlines, late ticks skipped and counted.

The clock is LSL's `local_clock()` of this host, in seconds. A tick has a deadline on a fixed
grid. A tick that is still busy at later deadlines makes those late: they are skipped and
counted, never queued, so that what follows a stall is the newest tick and not old ones.
"""

from __future__ import annotations

import math
import time
from typing import Protocol

from pylsl import local_clock

SPIN_S = 0.0005  # sleep until this long before a deadline, then spin: p99 lateness 2-5 us


class Clock(Protocol):
    """Seconds on the LSL clock."""

    def __call__(self) -> float: ...


class Metronome:
    """Deadlines every `tick_s` on the LSL clock.

    tick_s: seconds between ticks.
    """

    def __init__(self, tick_s: float, *, clock: Clock = local_clock) -> None:
        if not tick_s > 0:
            raise ValueError(f"tick_s {tick_s}; expected more than 0")
        self.tick_s = tick_s
        self.n_skipped = 0
        self._clock = clock
        self._start = clock() + tick_s
        self._index = -1

    def wait(self) -> float:
        """Sleep until the next deadline that isn't past, and return it."""
        self._index += 1
        while True:
            due = self._start + self._index * self.tick_s
            now = self._clock()
            if now >= due + self.tick_s:  # also where the stall came while asleep
                newest = math.floor((now - self._start) / self.tick_s)
                self.n_skipped += newest - self._index
                self._index = newest
                return self._start + newest * self.tick_s
            if now >= due:
                return due
            if due - now > SPIN_S:
                time.sleep(due - now - SPIN_S)
