"""A movement as read from a file, in SI units."""

from __future__ import annotations

from dataclasses import dataclass

from decoder.arrays import Floats
from training.conversion.axes import XY, Columns

EFFECTORS = ("cursor", "hand", "finger", "eye")  # in order of preference


@dataclass(frozen=True, kw_only=True)
class Track:
    """One series in SI units.

    times: (n,) seconds. values: (n, 2) metres or m/s.
    conversion, offset, metres: `values = (stored * conversion + offset) * metres`.
    columns: which of the stored `n_columns` are x and y.
    """

    name: str
    times: Floats
    values: Floats
    conversion: float
    offset: float
    metres: float
    arbitrary: bool
    columns: Columns = XY
    n_columns: int = 2
