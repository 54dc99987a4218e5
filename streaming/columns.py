"""What a sample of kinematics holds, live and on disk: metres and m/s, NaN where it has none."""

from __future__ import annotations

COLUMNS = ("pos_x", "pos_y", "vel_x", "vel_y", "target_x", "target_y")
POSITION = slice(0, 2)
VELOCITY = slice(2, 4)
TARGET = slice(4, 6)
