"""Selects position and velocity among the series of an NWB file, both of one effector.

A series is identified by its name (`cursor_pos`, `HandVelocity`, `finger_vel_x`), else by the name
of its container. Two series with one axis each (`cursor_x`, `cursor_y`) count as one with two axes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from decoder.arrays import Floats
from decoder.errors import ImportFailedError
from streaming.lengths import is_speed, metres_in
from training.conversion.axes import signed, xy
from training.conversion.options import NONE, ImportOptions
from training.conversion.reader_warnings import first_line
from training.conversion.track import EFFECTORS, Track
from training.conversion.units import is_arbitrary, metres_per_unit, units_in

MOST_LISTED = 12
Kind = Literal["position", "velocity"]
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("pos", "position", "positions", "location"), "position"),
    **dict.fromkeys(("vel", "velocity", "velocities", "speed"), "velocity"),
}
_FILLERS = frozenset(
    (
        "data",
        "series",
        "spatial",
        "spatialseries",
        "timeseries",
        "time",
        "behavior",
        "xy",
        "tracking",
    )
)
_SAME_EFFECTOR = {
    "fingers": "finger",
    "fingertip": "finger",
    "hands": "hand",
    "gaze": "eye",
    "eyes": "eye",
}


@dataclass(frozen=True)
class Series:
    """A series: its name, its container's name, and its pynwb object, or one each for x and y."""

    name: str
    container: str
    parts: tuple[Any, ...]

    @property
    def kind(self) -> Kind | None:
        """Position or velocity, by the series' name, else its container's, else its unit."""
        for text in (self.name, self.container):
            kinds = {_KINDS[token] for token in _tokens(text) if token in _KINDS}
            if len(kinds) == 1:
                return kinds.pop()
        return "velocity" if is_speed(self.unit) else "position" if metres_in(self.unit) else None

    @property
    def effector(self) -> tuple[str, ...]:
        """The effector that moves: the words of the name other than position or velocity."""
        for text in (self.name, self.container):
            tokens = [_SAME_EFFECTOR.get(t, t) for t in _tokens(text)]
            if rest := tuple(t for t in tokens if t not in _KINDS and t not in _FILLERS):
                return rest
        return ()

    @property
    def unit(self) -> str:
        return str(self.parts[0].unit or "")

    @property
    def frame(self) -> str:
        """The frame of reference in the file, or an empty string."""
        frame = str(getattr(self.parts[0], "reference_frame", None) or "").strip()
        return (
            "" if frame.lower() in ("", "unknown", "n/a", "none", "no reference frame") else frame
        )


def _tokens(name: str) -> list[str]:
    return [t.lower() for t in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def all_series(nwb: Any, notes: list[str]) -> dict[str, Series]:
    """All series of the processing modules and the acquisition, by name.

    Series of x and y that belong together are combined into one. If several series have the same
    name, the one in `processing/behavior` keeps it; the others are named by their path, such as
    `acquisition/cursor_pos`.
    """
    modules = sorted(nwb.processing.items(), key=lambda item: item[0] != "behavior")
    roots = [(f"processing/{name}", module.data_interfaces) for name, module in modules]
    found: dict[str, Series] = {}
    for place, members in [*roots, ("acquisition", nwb.acquisition)]:
        for container, series in _series_of(members):
            name = str(series.name)
            if name in found:
                other = f"{place}/{name}" if container == "" else f"{place}/{container}/{name}"
                notes.append(f"two series are named {name}; not imported: {other}")
                name = other
            found[name] = Series(name, container, (series,))
    return {**found, **_paired(found)}


def _series_of(members: Any) -> Iterator[tuple[str, Any]]:
    for name, member in members.items():
        for field in ("spatial_series", "time_series"):
            for series in (getattr(member, field, None) or {}).values():
                yield str(name), series
        if hasattr(member, "data") and hasattr(member, "unit"):
            yield "", member


def _paired(found: dict[str, Series]) -> dict[str, Series]:
    """Combine series of x and y whose names differ only in the axis."""
    axes: dict[tuple[str, str], dict[str, Series]] = {}
    for series in found.values():
        if (
            np.ndim(series.parts[0].data) != 1
            and len(getattr(series.parts[0].data, "shape", (0, 0))) != 1
        ):
            continue
        if match := re.fullmatch(
            r"([xy])[ _.-](.+)|(.*?)[ _.-]?([xy])", series.name, re.IGNORECASE
        ):
            stem, axis = match[2] or match[3] or "", (match[1] or match[4]).lower()
            axes.setdefault((series.container, stem), {})[axis] = series
    pairs = {}
    for (container, stem), pair in axes.items():
        if len(pair) == 2:
            name = stem or container or "xy"
            parts = (pair["x"].parts[0], pair["y"].parts[0])
            pairs[name if name not in found else f"{name}_xy"] = Series(name, container, parts)
    return pairs


def choose(
    found: dict[str, Series], options: ImportOptions, path: Path, notes: list[str]
) -> tuple[Series | None, Series | None]:
    """Choose position and velocity of one effector; one of them may be None.

    Raises ImportFailedError if there is neither.
    """
    position = _named(options.position, found, path, "position")
    velocity = _named(options.velocity, found, path, "velocity")
    if position and velocity:
        if position.effector != velocity.effector:
            notes.append(
                f"position from {position.name} and velocity from {velocity.name}, of different "
                "effectors, as chosen with --position and --velocity"
            )
        return position, velocity
    for effector in _candidates(position or velocity):
        same_effector = [s for s in found.values() if s.effector == effector]
        pos = position or _first(same_effector, "position", options.position)
        vel = velocity or _first(same_effector, "velocity", options.velocity)
        if pos or vel:
            _note_other_effectors(found, effector, (pos, vel), notes)
            _note_alternatives(same_effector, (pos, vel), notes)
            return pos, vel
    raise ImportFailedError(
        f"{path}: no cursor kinematics; expected one of {_usual()} in processing/behavior, found "
        f"{listed(found)}. Choose a series with --position or --velocity"
    )


def _named(name: str | None, found: dict[str, Series], path: Path, what: str) -> Series | None:
    if name is None or name == NONE:
        return None
    if name not in found:
        raise ImportFailedError(
            f"{path}: no series named {name!r} for --{what}; found {listed(found)}"
        )
    return found[name]


def _candidates(given: Series | None) -> list[tuple[str, ...]]:
    return [given.effector] if given else [(name,) for name in EFFECTORS]


def _first(same_effector: list[Series], kind: Kind, name: str | None) -> Series | None:
    """The first series of a kind, preferably one with two axes."""
    if name == NONE:
        return None
    fitting = [series for series in same_effector if series.kind == kind]
    return min(fitting, key=lambda s: len(s.parts) == 1 and _n_axes(s) < 2, default=None)


def _n_axes(series: Series) -> int:
    shape = getattr(series.parts[0].data, "shape", (0, 0))
    return int(shape[1]) if len(shape) > 1 else 1


def _note_other_effectors(
    found: dict[str, Series],
    effector: tuple[str, ...],
    taken: tuple[Series | None, Series | None],
    notes: list[str],
) -> None:
    others = [
        s.name for s in found.values()
        if s.kind and s.effector != effector and s not in taken and _n_axes(s) > 1
        and s.effector and (s.effector[0] in EFFECTORS or s.effector == ("joystick",))
    ]  # fmt: skip
    if others:
        names = " and ".join(s.name for s in taken if s)
        notes.append(
            f"{names} imported; series of other effectors not imported: {', '.join(others)}"
        )


def _note_alternatives(
    same_effector: list[Series], taken: tuple[Series | None, Series | None], notes: list[str]
) -> None:
    """Note series of the same effector and kind as a chosen one."""
    kinds = {s.kind: s.name for s in taken if s}
    notes += [
        f"{kinds[s.kind]} imported; also found: {s.name}. Choose with --{s.kind}"
        for s in same_effector if s.kind in kinds and s not in taken and _n_axes(s) > 1
    ]  # fmt: skip


def _usual() -> str:
    return ", ".join(f"{e}_{k}" for k in ("pos", "vel") for e in EFFECTORS)


def listed(found: dict[str, Series]) -> list[str]:
    names = sorted(found)
    return names if len(names) <= MOST_LISTED else [*names[:MOST_LISTED], "…"]


def read(series: Series, kind: Kind, options: ImportOptions, path: Path, notes: list[str]) -> Track:
    """Read the columns x and y of a series in metres or m/s, with their timestamps."""
    parts = [_numbers(part, path) for part in series.parts]
    times, data = parts[0]
    if len(parts) == 2:
        y_times, y = parts[1]
        if data.shape != y.shape or not np.array_equal(times, y_times, equal_nan=True):
            raise ImportFailedError(
                f"{path}: {series.parts[0].name} and {series.parts[1].name} have different "
                "timestamps; expected the same. Write them as one series with two columns"
            )
        names = " and ".join(str(part.name) for part in series.parts)
        notes.append(f"{series.name} was combined from {names}")
        data = np.stack([data, y], axis=1)
    what = f"{path.name}: {series.name}"
    first = series.parts[0]
    texts = [str(getattr(first, field, None) or "") for field in ("description", "comments")]
    columns = options.columns if len(parts) == 1 else None
    here: list[str] = []
    chosen_columns = xy(data, times, [*texts, series.frame], columns=columns, what=what, notes=here)
    scales = [_scale(part, kind, options, what, here) for part in series.parts]
    notes += [note.replace(what, series.name, 1) for note in dict.fromkeys(here)]
    conversion, offset, metres = (np.array(column) for column in zip(*scales, strict=True))
    return Track(
        name=series.name,
        times=times,
        values=(signed(data, chosen_columns) * conversion + offset) * metres,
        conversion=float(conversion[0]),
        offset=float(offset[0]),
        metres=float(metres[0]),
        arbitrary=is_arbitrary(series.unit),
        columns=chosen_columns,
        n_columns=data.shape[1],
    )


def _scale(
    part: Any, kind: Kind, options: ImportOptions, what: str, notes: list[str]
) -> tuple[float, float, float]:
    conversion = float(1.0 if part.conversion is None else part.conversion)
    offset = float(part.offset or 0.0)
    if not (np.isfinite([conversion, offset]).all() and conversion != 0):
        raise ImportFailedError(
            f"{what} has conversion {conversion} and offset {offset}; expected finite numbers, and "
            "a conversion other than 0"
        )
    if options.unit is None:
        _check_description(part, conversion, what)
    metres = metres_per_unit(
        str(part.unit or ""), conversion, speed=kind == "velocity", override=options.unit,
        what=what, notes=notes,
    )  # fmt: skip
    return conversion, offset, metres


def _check_description(part: Any, conversion: float, what: str) -> None:
    """Raise ImportFailedError if the description and the unit field disagree on the unit."""
    unit = metres_in(str(part.unit or ""))
    words = units_in(str(part.description or ""))
    if unit is None or not words or any(
        np.isclose(metres, [unit, unit * conversion]).any() for metres in words.values()
    ):  # fmt: skip
        return
    raise ImportFailedError(
        f"{what} has the unit {part.unit!r}, but its description says {next(iter(words))!r} "
        f"({str(part.description)[:80]!r}): which is right? Choose with --unit"
    )


def _numbers(series: Any, path: Path) -> tuple[Floats, Floats]:
    """Timestamps (n,) in seconds, and the data as stored."""
    try:
        data = np.asarray(series.data[:], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ImportFailedError(
            f"{path}: {series.name} isn't numeric ({first_line(error)}); expected x and y"
        ) from error
    if series.timestamps is not None:
        times = np.asarray(series.timestamps[:], dtype=np.float64)
    elif series.rate and np.isfinite(series.rate) and series.rate > 0:
        times = float(series.starting_time or 0.0) + np.arange(len(data)) / float(series.rate)
    else:
        raise ImportFailedError(
            f"{path}: {series.name} has neither timestamps nor a positive rate (rate "
            f"{series.rate}); expected one of them"
        )
    if data.ndim == 0 or times.ndim != 1 or len(data) != len(times):
        raise ImportFailedError(
            f"{path}: {series.name} has {len(data) if data.ndim else 0} samples but {times.size} "
            "timestamps; expected the same number. Fix the series, or choose another with "
            "--position or --velocity"
        )
    return times, data
