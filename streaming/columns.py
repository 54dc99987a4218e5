"""What a sample of kinematics holds, live and on disk: metres and m/s, NaN where it has none."""

from __future__ import annotations

from collections.abc import Iterable

COLUMNS = ("pos_x", "pos_y", "vel_x", "vel_y", "target_x", "target_y")
POSITION = slice(0, 2)
VELOCITY = slice(2, 4)
TARGET = slice(4, 6)
NO_UNIT = (
    "no channel of the kinematics names a unit; taken as m and m/s, which streams with these "
    "labels are in (docs/STREAMS.md)"
)


def names_no_unit(channels: Iterable[tuple[str, str]]) -> bool:
    """Whether a stream is in m and m/s because none of its channels says what it is in.

    channels: the label and the unit of each. One rule for what is read live and from a file.
    """
    return not any(unit.strip() for label, unit in channels if label in COLUMNS)
