"""Timing policy: one clock, deadlines on a fixed grid, missed deadlines skipped and counted.

The clock is LSL's `local_clock()` of this host, in seconds. Deadlines that pass while a tick is
busy are skipped and counted, never queued. The first tick after a stall is the newest one.
"""

from __future__ import annotations

import math
import time
from typing import Protocol

from pylsl import local_clock

SPIN_S = 0.0005  # sleep until this long before a deadline, then spin: p99 lateness 2-5 us


class Clock(Protocol):
    """Returns seconds on the LSL clock."""

    def __call__(self) -> float: ...


class Metronome:
    """Waits for deadlines every `tick_s` seconds on the LSL clock.

    n_skipped: deadlines skipped so far.
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
        """Sleep until the next deadline and return it."""
        self._index += 1
        while True:
            due = self._start + self._index * self.tick_s
            now = self._clock()
            if now >= due + self.tick_s:  # also after a stall during the sleep
                newest = math.floor((now - self._start) / self.tick_s)
                self.n_skipped += newest - self._index
                self._index = newest
                return self._start + newest * self.tick_s
            if now >= due:
                return due
            if due - now > SPIN_S:
                time.sleep(due - now - SPIN_S)
