"""The cursor, moved by frames or by a scripted reach, inside the workspace.

A frame's velocity applies to the time since the previous frame. Nothing is extrapolated: when
frames stop, the cursor stops at once. Pure code without a clock or sockets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from clients.task.workspace import Block, Point
from streaming.wire.messages import CursorFrame

ASSIST_SPEED = 0.15  # m/s; speed of the assistance toward the target
ASSIST_GAIN = 4.0  # 1/s; slows the assistance near the target
MIN_REST_S = 0.04  # frames a few ticks apart belong to one movement
STILL: Point = (0.0, 0.0)


class Cursor:
    """position: m. velocity: m/s, of the last frame that moved the cursor; zero at rest."""

    def __init__(self, position: Point = (0.0, 0.0)) -> None:
        self.position, self.velocity = position, STILL
        self._rests_at = -math.inf

    def move(self, block: Block, velocity: Point, seconds: float, now: float) -> None:
        """Move for `seconds`, at most to the edge of the workspace.

        The velocity holds until the next frame, or for twice the interval before this one.
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
        """Set position and velocity."""
        self.position, self.velocity, self._rests_at = position, velocity, math.inf

    def stop(self) -> None:
        """Set the velocity to zero."""
        self.velocity = STILL

    def rest_when_due(self, now: float) -> None:
        """Set the velocity to zero if no frame arrived in time."""
        if now > self._rests_at:
            self.velocity = STILL


class FrameClock:
    """The time for which each frame's velocity applies.

    stale_s: an older frame, or one after a longer silence, does not move the cursor.
    """

    def __init__(self, stale_s: float) -> None:
        self._stale_s = stale_s
        self._before: tuple[float, float] | None = None  # start of the daemon, time of publication

    def seconds(self, frame: CursorFrame, age_s: float) -> float:
        """Seconds since the previous frame.

        0 for a frame that does not move the cursor: not valid, too old, the first of its daemon, or
        the first after a silence.
        """
        before, self._before = self._before, (frame.started, frame.published)
        if not frame.valid or age_s > self._stale_s or not all(map(math.isfinite, frame.velocity)):
            return 0.0
        if before is None or before[0] != frame.started:
            return 0.0
        since = frame.published - before[1]
        return since if 0.0 < since <= self._stale_s else 0.0


def toward(position: Point, target: Point) -> Point:
    """The assistive velocity, m/s: straight to the target, slower within a few centimetres."""
    away = target[0] - position[0], target[1] - position[1]
    distance = math.hypot(*away)
    if distance == 0.0:
        return STILL
    speed = min(ASSIST_SPEED, ASSIST_GAIN * distance)
    return away[0] * speed / distance, away[1] * speed / distance


def mixed(decoded: Point, help_: Point, share: float) -> Point:
    """A velocity with a `share` of assistance."""
    x, y = ((1 - share) * d + share * h for d, h in zip(decoded, help_, strict=True))
    return x, y


@dataclass(frozen=True, kw_only=True)
class Reach:
    """A minimum-jerk reach (Flash & Hogan 1985) from rest at `start` to rest at `goal`.

    It begins at `begins` and takes `duration_s`. All times are on one clock, s.
    """

    start: Point
    goal: Point
    begins: float
    duration_s: float

    def at(self, now: float) -> tuple[Point, Point]:
        """Position (m) and velocity (m/s) at a time."""
        phase = min(1.0, max(0.0, (now - self.begins) / self.duration_s))
        blend = phase**3 * (10 - 15 * phase + 6 * phase**2)
        rate = 30 * phase**2 * (1 - phase) ** 2 / self.duration_s
        (x0, y0), (x1, y1) = self.start, self.goal
        way = x1 - x0, y1 - y0
        return (x0 + blend * way[0], y0 + blend * way[1]), (rate * way[0], rate * way[1])
