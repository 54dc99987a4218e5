"""What a simulated participant sees: the task's screen, some time ago.

Samples of kinematics and markers go in as they come over LSL; a glimpse comes out, of the cursor
as it was before the visual delay, the target that there has been time to react to, and the block.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from decoder.arrays import Floats

UNTOLD_BLOCK = "closed"  # until a marker says another
DARK_S = 0.5  # a cursor without news for so long isn't on the screen any more
MAX_WAITING = 10_000


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What came new onto the screen.

    times: (n,) seconds, LSL clock. values: (n, 6) pos, vel, target (x, y each), m and m/s, NaN
    for a target that isn't shown. markers: (time, text) each.
    """

    times: Floats = field(default_factory=lambda: np.empty(0))
    values: Floats = field(default_factory=lambda: np.empty((0, 6)))
    markers: Sequence[tuple[float, str]] = ()


NOTHING_NEW = Seen()


@dataclass(frozen=True, kw_only=True)
class Glimpse:
    """The screen as it is present to somebody: complex numbers, x + iy, in m and m/s.

    time: of the cursor (LSL clock, s). target_since: when the target came onto the screen.
    block: its label; the cursor moves by itself where "observation" is in it.
    """

    time: float
    pos: complex
    vel: complex
    target: complex | None
    target_since: float
    block: str


class Screen:
    """A queue of what there was to see; `glimpse` takes what there has been time for."""

    def __init__(self) -> None:
        self._cursor: deque[tuple[float, complex, complex]] = deque(maxlen=MAX_WAITING)
        self._targets: deque[tuple[float, complex | None]] = deque(maxlen=MAX_WAITING)
        self._blocks: deque[tuple[float, str]] = deque(maxlen=MAX_WAITING)
        self._newest_target: complex | None = None
        self._now = Glimpse(
            time=-math.inf, pos=0j, vel=0j, target=None, target_since=-math.inf, block=UNTOLD_BLOCK
        )

    def show(self, seen: Seen) -> None:
        """Put onto the screen what came."""
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
        """The cursor and block of `until`, the target of `target_until`; both must not fall."""
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
