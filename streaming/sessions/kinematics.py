"""Cursor kinematics: derivative, integral, choice of columns, removal of unusable samples."""

from __future__ import annotations

import numpy as np

from decoder.arrays import Floats
from decoder.errors import SessionError
from streaming.sessions.intervals import continuous_domain
from streaming.sessions.stamps import in_order


def velocity_of(pos: Floats, timestamps: Floats) -> Floats:
    """Velocity (n_samples, 2): the gradient of position, computed between gaps only."""
    vel = np.zeros_like(pos)
    for start, end in continuous_domain(timestamps):
        part = slice(*np.searchsorted(timestamps, (start, end)))
        if len(timestamps[part]) > 1:
            vel[part] = np.gradient(pos[part], timestamps[part], axis=0)
    return vel


def position_of(vel: Floats, timestamps: Floats) -> Floats:
    """Position (n_samples, 2): the integral of velocity from (0, 0), constant during gaps."""
    pos = np.zeros_like(vel)
    at = np.zeros(2)
    for start, end in continuous_domain(timestamps):
        part = slice(*np.searchsorted(timestamps, (start, end)))
        steps = np.diff(timestamps[part])[:, None] * (vel[part][1:] + vel[part][:-1]) / 2
        pos[part] = at + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
        at = pos[part][-1]
    return pos


def picked(values: Floats, columns: tuple[int, int], what: str) -> Floats:
    """Two columns of `values` (n, k), counted from 1; a negative number reverses the axis."""
    if any(not 1 <= abs(column) <= values.shape[1] for column in columns):
        raise SessionError(
            f"{what} has {values.shape[1]} columns, but --columns is {columns[0]},{columns[1]}; "
            f"expected numbers from 1 to {values.shape[1]}"
        )
    return np.stack([np.sign(c) * values[:, abs(c) - 1] for c in columns], axis=1)


def xy_of(values: Floats, what: str, columns: tuple[int, int] | None) -> Floats:
    """The x and y columns (n, 2). Raises SessionError if there are more and none are chosen."""
    if values.ndim != 2 or values.shape[1] <= 2:
        return values
    if columns is None:
        raise SessionError(
            f"{what} has {values.shape[1]} columns; expected two, x and y. Choose them: `volition "
            "import FILE --columns 1,2` (counted from 1; -2 reverses an axis)"
        )
    return picked(values, columns, what)


def finite_samples(
    times: Floats, values: dict[str, Floats], notes: list[str]
) -> tuple[Floats, dict[str, Floats]]:
    """The samples without NaN or infinity. Left-out samples leave a gap in the kinematics."""
    if any(column.shape != (len(times), 2) for column in values.values()):
        return times, values  # `check` refuses them
    good = np.logical_and.reduce([np.isfinite(column).all(axis=1) for column in values.values()])
    if good.all():
        return times, values
    notes.append(f"{int((~good).sum())} kinematics samples with NaN or infinity were left out")
    return times[good], {kind: column[good] for kind, column in values.items()}


def ascending_samples(
    times: Floats, values: dict[str, Floats], notes: list[str]
) -> tuple[Floats, dict[str, Floats]]:
    """The samples with ascending time stamps, by the rules of imports (`in_order`)."""
    if any(len(column) != len(times) for column in values.values()):
        return times, values  # `check` refuses them
    timed = np.flatnonzero(np.isfinite(times))
    kept, at = in_order(times[timed], notes)
    return at, {kind: column[timed[kept]] for kind, column in values.items()}
