"""The cursor: frames move it, or it moves by itself; it never leaves the workspace.

A frame's velocity counts for the time since the frame before. So nothing is extrapolated: when
frames stop, the cursor stands still at once. Pure: no clock, no socket.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from clients.task.workspace import Block, Point
from streaming.wire.messages import CursorFrame

ASSIST_SPEED = 0.15  # m/s; of the velocity toward the target
ASSIST_GAIN = 4.0  # 1/s; slower than that near it
MIN_REST_S = 0.04  # frames that come a few ticks apart are one movement
STILL: Point = (0.0, 0.0)


class Cursor:
    """position, m; velocity, m/s: that of the newest frame that moved it, zero where it rests."""

    def __init__(self, position: Point = (0.0, 0.0)) -> None:
        self.position, self.velocity = position, STILL
        self._rests_at = -math.inf

    def move(self, block: Block, velocity: Point, seconds: float, now: float) -> None:
        """Move for `seconds`, to the workspace's edge at most.

        The velocity stands until the next frame, or twice as long as this one was in coming.
        """
        (x, y), (vx, vy) = self.position, velocity
        goal = x + vx * seconds, y + vy * seconds
        self.position = block.clamped(goal)
        vx, vy = (
            v if inside == free else 0.0
            for v, inside, free in zip(velocity, self.position, goal, strict=True)
        )
        self.velocity = vx, vy
        self._rests_at = now + max(2 * seconds, MIN_REST_S)

    def place(self, position: Point, velocity: Point = STILL) -> None:
        """Stand there, moving so."""
        self.position, self.velocity, self._rests_at = position, velocity, math.inf

    def stop(self) -> None:
        """Stand still."""
        self.velocity = STILL

    def rest_when_due(self, now: float) -> None:
        """Stand still where no frame came in time."""
        if now > self._rests_at:
            self.velocity = STILL


class FrameClock:
    """For how long each frame's velocity counts.

    stale_s: an older frame, and one after a longer silence, moves nothing.
    """

    def __init__(self, stale_s: float) -> None:
        self._stale_s = stale_s
        self._before: tuple[float, float] | None = None  # daemon's start, time of publication

    def seconds(self, frame: CursorFrame, age_s: float) -> float:
        """Seconds since the frame before; 0 where this frame moves nothing: not valid, too old,
        the first of its daemon, or the first after a silence."""
        before, self._before = self._before, (frame.started, frame.published)
        if not frame.valid or age_s > self._stale_s or not all(map(math.isfinite, frame.velocity)):
            return 0.0
        if before is None or before[0] != frame.started:
            return 0.0
        since = frame.published - before[1]
        return since if 0.0 < since <= self._stale_s else 0.0


def toward(position: Point, target: Point) -> Point:
    """The velocity, m/s, of help toward a target: straight, slower within a few centimetres."""
    away = target[0] - position[0], target[1] - position[1]
    distance = math.hypot(*away)
    if distance == 0.0:
        return STILL
    speed = min(ASSIST_SPEED, ASSIST_GAIN * distance)
    return away[0] * speed / distance, away[1] * speed / distance


def mixed(decoded: Point, help_: Point, share: float) -> Point:
    """A velocity of which `share` is help."""
    x, y = ((1 - share) * d + share * h for d, h in zip(decoded, help_, strict=True))
    return x, y


@dataclass(frozen=True, kw_only=True)
class Reach:
    """A minimum-jerk reach (Flash & Hogan 1985): at `start` at rest, at `goal` after
    `duration_s` from `begins` on, at rest again. Times share a clock, s."""

    start: Point
    goal: Point
    begins: float
    duration_s: float

    def at(self, now: float) -> tuple[Point, Point]:
        """Position, m, and velocity, m/s."""
        phase = min(1.0, max(0.0, (now - self.begins) / self.duration_s))
        blend = phase**3 * (10 - 15 * phase + 6 * phase**2)
        rate = 30 * phase**2 * (1 - phase) ** 2 / self.duration_s
        (x0, y0), (x1, y1) = self.start, self.goal
        way = x1 - x0, y1 - y0
        return (x0 + blend * way[0], y0 + blend * way[1]), (rate * way[0], rate * way[1])
