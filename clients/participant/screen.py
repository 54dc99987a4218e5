"""The delayed screen of a simulated participant.

Its input is samples of kinematics and markers from LSL. Its output is a glimpse: the cursor before
the visual delay, the target that the participant has had time to react to, and the block.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from decoder.arrays import Floats

UNTOLD_BLOCK = "closed"  # until a marker names one
DARK_S = 0.5  # a cursor without samples for longer is off the screen
MAX_WAITING = 10_000


@dataclass(frozen=True, kw_only=True)
class Seen:
    """New samples and markers.

    times: (n,) seconds, LSL clock. values: (n, 6) pos, vel, target (x, y each), m and m/s, NaN
    for a target that isn't shown. markers: (time, text) each.
    """

    times: Floats = field(default_factory=lambda: np.empty(0))
    values: Floats = field(default_factory=lambda: np.empty((0, 6)))
    markers: Sequence[tuple[float, str]] = ()


NOTHING_NEW = Seen()


@dataclass(frozen=True, kw_only=True)
class Glimpse:
    """The perceived screen: complex numbers, x + iy, in m and m/s.

    time: of the cursor (LSL clock, s). target_since: when the target appeared.
    block: its label; "observation" in it means a scripted cursor.
    """

    time: float
    pos: complex
    vel: complex
    target: complex | None
    target_since: float
    block: str


class Screen:
    """A queue of samples and markers; `glimpse` returns the delayed view."""

    def __init__(self) -> None:
        self._cursor: deque[tuple[float, complex, complex]] = deque(maxlen=MAX_WAITING)
        self._targets: deque[tuple[float, complex | None]] = deque(maxlen=MAX_WAITING)
        self._blocks: deque[tuple[float, str]] = deque(maxlen=MAX_WAITING)
        self._newest_target: complex | None = None
        self._now = Glimpse(
            time=-math.inf, pos=0j, vel=0j, target=None, target_since=-math.inf, block=UNTOLD_BLOCK
        )

    def show(self, seen: Seen) -> None:
        """Add new samples and markers."""
        for time, row in zip(seen.times.tolist(), seen.values.tolist(), strict=True):
            pos, vel = complex(row[0], row[1]), complex(row[2], row[3])
            self._cursor.append((time, pos, 0j if math.isnan(abs(vel)) else vel))
            target = None if math.isnan(row[4]) else complex(row[4], row[5])
            if target != self._newest_target:
                self._newest_target = target
                self._targets.append((time, target))
        for time, text in seen.markers:
            kind, _, which = text.partition(" ")
            if kind == "block" and which:
                self._blocks.append((time, which))

    def glimpse(self, *, until: float, target_until: float) -> Glimpse:
        """The cursor and block at `until`, the target at `target_until`; neither may decrease."""
        last = self._now
        time, pos, vel = last.time, last.pos, last.vel
        target, since, block = last.target, last.target_since, last.block
        while self._cursor and self._cursor[0][0] <= until:
            time, pos, vel = self._cursor.popleft()
        while self._targets and self._targets[0][0] <= target_until:
            since, target = self._targets.popleft()
        while self._blocks and self._blocks[0][0] <= until:
            block = self._blocks.popleft()[1]
        self._now = Glimpse(
            time=time, pos=pos, vel=vel, target=target, target_since=since, block=block
        )
        return replace(self._now, vel=0j, target=None) if until - time > DARK_S else self._now
