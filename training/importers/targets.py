"""Targets of the trials in an NWB file: found by name, one per trial, in metres."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from decoder.arrays import Floats
from training.conversion.axes import XY, named_axes, signed
from training.conversion.track import Track
from training.conversion.units import units_in

SMALLER = {"cm": 0.01, "mm": 0.001}  # tried if targets don't fit a position in metres
LIKE_POSITION = "converted like the position"
TOO_FAR = 10.0  # times the reach of the position; values that were never set
MOST = 0.9  # of the targets judge their unit; a few may never have been set
FITTING = 3.0  # the extents of targets and position may differ by this factor


def targets_of(
    table: Any, rows: np.ndarray[Any, Any], position: Track | None, notes: list[str]
) -> Floats | None:
    """Targets (n, 2) in metres, NaN for trials without one; None if no trial has one.

    table: pynwb's trials table. rows: the rows that are imported.
    """
    points, description = _target_columns(table, rows, notes)
    if points is None:
        return None
    chosen = _active(table, rows, points, notes)
    widths = {len(point) for point in chosen if point is not None}
    n_without = sum(point is None for point in chosen)
    if n_without:
        notes.append(f"{n_without} of {len(rows)} trials have no single target (x and y)")
    if not widths:
        return None
    if len(widths) > 1:
        notes.append(f"targets were left out: some have {min(widths)} values, others {max(widths)}")
        return None
    width = widths.pop()
    targets = np.array([np.full(width, np.nan) if p is None else p for p in chosen])
    targets = _target_axes(targets, description, position, notes)
    in_metres = _in_metres(targets, description, position, notes)
    return None if in_metres is None else _without_far_ones(in_metres, position, notes)


def _without_far_ones(targets: Floats, position: Track | None, notes: list[str]) -> Floats | None:
    """Targets with NaN for those that the cursor can't have been meant to reach."""
    if position is None:
        return targets
    middle = np.nanmedian(position.values, axis=0)
    distance = np.abs(targets - middle).max(axis=1)
    far = distance > TOO_FAR * _reach(position.values, position.values)
    if far.any():
        notes.append(
            f"{far.sum()} of {len(targets)} targets were left out: more than {TOO_FAR:g} times as "
            "far away as the cursor went"
        )
    near = np.where(far[:, None], np.nan, targets)
    return near if np.isfinite(near).any() else None


def _target_columns(
    table: Any, rows: np.ndarray[Any, Any], notes: list[str]
) -> tuple[list[Floats | None] | None, str]:
    """Each trial's target, of any shape, and the description of its column."""
    for name in ("target_pos", "target_position"):
        if name in table.colnames:
            column = table[name]
            return [_numbers(column, int(row)) for row in rows], str(column.description or "")
    for stem in ("target", "target_pos", "target_position"):
        if {f"{stem}_x", f"{stem}_y"} <= set(table.colnames):
            x, y = (np.asarray(table[f"{stem}_{axis}"][:]) for axis in "xy")
            if x.dtype.kind in "fiu" and y.dtype.kind in "fiu":
                description = str(table[f"{stem}_x"].description or "")
                return list(np.stack([x, y], axis=1)[rows].astype(np.float64)), description
    unread = [c for c in table.colnames if re.search(r"target.*(pos|loc|coord|xy|[xy]$)", c)]
    if unread:
        notes.append(
            f"trial columns not imported: {', '.join(unread[:10])} (targets are expected in "
            "target_pos, or in target_x and target_y)"
        )
    return None, ""


def _numbers(column: Any, row: int) -> Floats | None:
    try:
        return np.asarray(column[row], dtype=np.float64)
    except (TypeError, ValueError, IndexError):
        return None


def _active(
    table: Any, rows: np.ndarray[Any, Any], points: list[Floats | None], notes: list[str]
) -> list[Floats | None]:
    """Each trial's target (2 or 3 values): its only one, or the active one of several."""
    several = {i: p for i, p in enumerate(points) if p is not None and p.ndim == 2 and len(p) != 1}
    active: dict[int, int] = {}
    if several and "active_target" in table.colnames:
        given = table["active_target"]
        for i in several:
            number = _numbers(given, int(rows[i]))
            active[i] = int(number) if number is not None and np.isfinite(number).all() else -1
        if not all(0 <= active[i] < len(p) for i, p in several.items() if len(p)):
            notes.append(
                "active_target isn't always an index from 0; trials with several targets were left "
                "without one"
            )
            active = {}
    return [_one_target(point, active.get(i)) for i, point in enumerate(points)]


def _one_target(point: Floats | None, active: int | None) -> Floats | None:
    if point is not None and point.ndim == 2 and active is not None and len(point):
        point = point[active]
    if point is not None and point.ndim == 2 and len(point) == 1:
        point = point[0]
    return point if point is not None and point.ndim == 1 and len(point) in (2, 3) else None


def _target_axes(
    targets: Floats, description: str, position: Track | None, notes: list[str]
) -> Floats:
    """x and y (n, 2) of targets (n, 2 or 3), by the description, else as in the position."""
    width = targets.shape[1]
    named = named_axes([description], width)
    by_name = {axis.name: (i, axis.sign) for i, axis in reversed(list(enumerate(named or ())))}
    if {"x", "y"} <= set(by_name):
        return signed(targets, (by_name["x"], by_name["y"]))
    if position is not None and position.n_columns == width and position.columns != XY:
        notes.append("targets: x and y are in the same columns as in the position")
        return signed(targets, position.columns)
    if width > 2:
        notes.append("targets have 3 values; the first two were taken as x and y")
    return targets[:, :2]


def _in_metres(
    targets: Floats, description: str, position: Track | None, notes: list[str]
) -> Floats | None:
    """Targets in metres: by the unit in the column's description, else by the unit that places
    them in the position's range."""
    if position is None:
        notes.append("targets were left out: there is no position to compare them with")
        return None
    if stated := list(units_in(description).values()):
        if stated[0] != 1.0:
            notes.append(f"targets converted to metres by their description ({description!r})")
        return targets * stated[0]
    as_stored = (targets * position.conversion + position.offset) * position.metres
    options = {
        LIKE_POSITION: as_stored,
        "converted by the position's unit alone": targets * position.metres,
        "kept in metres": targets,
    }
    reach = _reach(position.values, position.values)
    off = {how: np.log(_reach(o, position.values, MOST) / reach) for how, o in options.items()}
    if all(np.allclose(o, targets, equal_nan=True) for o in options.values()):
        if off[LIKE_POSITION] <= np.log(FITTING):
            return targets
        options = {f"converted from {word}": targets * metres for word, metres in SMALLER.items()}
        off = {how: np.log(_reach(o, position.values, MOST) / reach) for how, o in options.items()}
    best = min(off, key=lambda how: abs(off[how]))
    if not abs(off[best]) <= np.log(FITTING):
        notes.append("targets were left out: in no unit are they near the position")
        return None
    notes.append(f"targets {best}, which places them in the position's range")
    return options[best]


def _reach(points: Floats, position: Floats, share: float = 0.99) -> float:
    """Quantile of the points' distance per axis from the position's median, m; never 0."""
    middle = np.nanmedian(position, axis=0)
    return float(np.nanquantile(np.abs(points - middle), share)) + 1e-12
