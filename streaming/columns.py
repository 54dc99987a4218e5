"""Columns of a kinematics sample, live and on disk: metres and m/s, NaN for missing values."""

from __future__ import annotations

from collections.abc import Iterable

COLUMNS = ("pos_x", "pos_y", "vel_x", "vel_y", "target_x", "target_y")
POSITION = slice(0, 2)
VELOCITY = slice(2, 4)
TARGET = slice(4, 6)
NO_UNIT = (
    "no channel of the kinematics names a unit; taken as m and m/s, the default for these labels "
    "(docs/STREAMS.md)"
)


def names_no_unit(channels: Iterable[tuple[str, str]]) -> bool:
    """Whether no channel names a unit, so that the stream is taken to be in m and m/s.

    channels: label and unit of each channel. Live streams and files follow the same rule.
    """
    return not any(unit.strip() for label, unit in channels if label in COLUMNS)
