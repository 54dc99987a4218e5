"""The LSL streams of a task: kinematics and markers (docs/STREAMS.md)."""

from __future__ import annotations

import math

import pylsl

from clients.task.cursor import Cursor
from clients.task.workspace import Target
from streaming.columns import COLUMNS
from streaming.recording import outlets

NOWHERE = (math.nan, math.nan)  # position of a missing target


class TaskOutlets:
    """`{prefix}-kinematics` at `rate_hz` and `{prefix}-markers`; both keep their source_id."""

    def __init__(self, prefix: str, rate_hz: float) -> None:
        name = f"{prefix}-kinematics"
        self._kinematics = pylsl.StreamOutlet(
            outlets.kinematics_info(name, f"volition-task-{name}", COLUMNS, rate_hz)
        )
        name = f"{prefix}-markers"
        self._markers = pylsl.StreamOutlet(outlets.markers_info(name, f"volition-task-{name}"))

    def heard(self) -> bool:
        """Whether the kinematics have a consumer."""
        return bool(self._kinematics.have_consumers())

    def send(self, now: float, cursor: Cursor, target: Target | None) -> None:
        """Send one sample, stamped `now` (LSL clock, s); no target is NaN."""
        where = NOWHERE if target is None else target.position
        self._kinematics.push_sample([*cursor.position, *cursor.velocity, *where], now)

    def mark(self, at: float, text: str) -> None:
        """Send one marker."""
        self._markers.push_sample([text], at)
