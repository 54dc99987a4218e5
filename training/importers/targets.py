"""Targets of an NWB file's trials: found by name, one per trial, converted with the position."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from decoder.arrays import Floats
from training.conversion.axes import XY, named_axes, signed
from training.conversion.track import Track
from training.conversion.units import units_in

SMALLER = {"cm": 0.01, "mm": 0.001}  # units of targets that don't fit a position in metres
FITTING = 3.0  # targets may reach so much further than the position, or less


def targets_of(
    table: Any, rows: np.ndarray[Any, Any], position: Track | None, notes: list[str]
) -> Floats | None:
    """Targets (n, 2) of the trials in metres; NaN where a trial has none; None if no trial has.

    table: pynwb's trials. rows: those of its rows that are trials.
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
        notes.append(f"targets have {sorted(widths)} values, not as many each, and were left out")
        return None
    width = widths.pop()
    targets = np.array([np.full(width, np.nan) if p is None else p for p in chosen])
    targets = _target_axes(targets, description, position, notes)
    return _in_metres(targets, description, position, notes)


def _target_columns(
    table: Any, rows: np.ndarray[Any, Any], notes: list[str]
) -> tuple[list[Floats | None] | None, str]:
    """What each trial's target holds, numbers of any shape, and how the column is described."""
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
            f"trial columns not read: {', '.join(unread[:10])} (targets are target_pos, or "
            "target_x and target_y)"
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
    """The one target (2 or 3 values) of each trial: the only one, or the active one of several."""
    several = {i: p for i, p in enumerate(points) if p is not None and p.ndim == 2 and len(p) != 1}
    active: dict[int, int] = {}
    if several and "active_target" in table.colnames:
        given = table["active_target"]
        for i in several:
            number = _numbers(given, int(rows[i]))
            active[i] = int(number) if number is not None and np.isfinite(number).all() else -1
        if not all(0 <= active[i] < len(p) for i, p in several.items() if len(p)):
            notes.append(
                "active_target isn't counted from 0 in all trials: which of several targets it "
                "means is unknown, and they were left out"
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
    """x and y (n, 2) of targets (n, 2 or 3): as they say, else as the position has them."""
    width = targets.shape[1]
    named = named_axes([description], width)
    by_name = {axis.name: (i, axis.sign) for i, axis in reversed(list(enumerate(named or ())))}
    if {"x", "y"} <= set(by_name):
        return signed(targets, (by_name["x"], by_name["y"]))
    if position is not None and position.n_columns == width and position.columns != XY:
        notes.append("targets: x and y were taken from the same columns as the position's")
        return signed(targets, position.columns)
    if width > 2:
        notes.append("targets have 3 values; the first two were taken as x and y")
    return targets[:, :2]


def _in_metres(
    targets: Floats, description: str, position: Track | None, notes: list[str]
) -> Floats | None:
    """Targets as the position: in the column's own unit if it says one, else in the unit that
    puts them where the position is."""
    if position is None:
        notes.append("targets have no position beside them, and were left out")
        return None
    if said := list(units_in(description).values()):
        if said[0] != 1.0:
            notes.append(f"targets converted, as their description says ({description!r})")
        return targets * said[0]
    as_stored = (targets * position.conversion + position.offset) * position.metres
    options = {
        "as the position": as_stored,
        "by the position's unit": targets * position.metres,
        "not at all, being in metres": targets,
    }
    reach = _reach(position.values, position.values)
    off = {how: np.log(_reach(o, position.values) / reach) for how, o in options.items()}
    if all(np.allclose(o, targets, equal_nan=True) for o in options.values()):
        if off["as the position"] <= np.log(FITTING):
            return targets
        options = {f"from {word}": targets * metres for word, metres in SMALLER.items()}
        off = {how: np.log(_reach(o, position.values) / reach) for how, o in options.items()}
    best = min(off, key=lambda how: abs(off[how]))
    if not abs(off[best]) <= np.log(FITTING):
        notes.append("targets are nowhere near the position in any unit, and were left out")
        return None
    notes.append(f"targets converted {best}, which puts them where the position is")
    return options[best]


def _reach(points: Floats, position: Floats) -> float:
    """How far points go from the middle of the position, in metres; never 0."""
    middle = np.nanmedian(position, axis=0)
    return float(np.nanquantile(np.abs(points - middle), 0.99)) + 1e-12
