"""Kinematics of an XDF file: finds the channels x and y, and converts them to SI units."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from decoder.arrays import Floats
from decoder.errors import ImportFailedError
from streaming.columns import COLUMNS, NO_UNIT, names_no_unit
from training.conversion.options import NONE, ImportOptions
from training.conversion.track import Track
from training.conversion.units import is_arbitrary, metres_per_unit
from training.importers.xdf_streams import (
    KINEMATICS,
    Source,
    Stream,
    channel_labels,
    channel_units,
    field_of,
    has_data,
    of_type,
    stream_list,
)


def kinematics_streams(
    streams: list[Stream], path: Path, options: ImportOptions, notes: list[str]
) -> list[Stream]:
    """Streams of type `Kinematics`, else streams of other types with matching channel labels."""
    found = [s for s in streams if field_of(s, "type") == KINEMATICS and has_data(s)]
    if found:
        return found
    wanted = (options.position or "pos", options.velocity or "vel")
    named = [
        s for s in streams if any(_axes_of(p, channel_labels(s)) for p in wanted) and has_data(s)
    ]
    if named:
        notes.append(f"no stream of type {KINEMATICS!r}; imported by channel labels: "
                     f"{stream_list(named)}")  # fmt: skip
        return named
    return of_type(streams, (KINEMATICS,), path, notes)


def kinematics_of(
    source: Source, path: Path, options: ImportOptions, notes: list[str]
) -> tuple[Floats, dict[str, Floats], bool]:
    """Times (n,); columns (n, 2) in SI units; whether the units are arbitrary.

    The columns are in a dictionary by `pos`, `vel` and `target`, with NaN for parts without them.
    """
    prefixes = {
        "pos": options.position or "pos",
        "vel": options.velocity or "vel",
        "target": "target",
    }
    here: list[str] = []
    read = [_columns(part, prefixes, path, options, here) for part in source.parts]
    notes += dict.fromkeys(here)
    times = np.concatenate([np.asarray(p["time_stamps"], dtype=np.float64) for p in source.parts])
    columns: dict[str, Floats] = {}
    for kind, prefix in prefixes.items():
        if all(kind not in columns_of for columns_of in read):
            if kind != "target" and prefix not in (kind, NONE):
                raise _no_channels(path, prefix, source)
            continue
        empty = [np.full((len(p["time_stamps"]), 2), np.nan) for p in source.parts]
        columns[kind] = np.concatenate([c.get(kind, e) for c, e in zip(read, empty, strict=True)])
    if not {"pos", "vel"} & set(columns):
        raise _no_channels(path, prefixes["pos"], source)
    arbitrary = any(is_arbitrary(w) for part in source.parts for w in channel_units(part))
    return times, columns, arbitrary


def _no_channels(path: Path, prefix: str, source: Source) -> ImportFailedError:
    labels = channel_labels(source.parts[0])
    return ImportFailedError(
        f"{path}: no kinematics channels {prefix}_x and {prefix}_y; found "
        f"{labels[:20] or 'no labels'}. Choose channels with --position or --velocity"
    )


def _axes_of(prefix: str, labels: Sequence[str]) -> list[str] | None:
    """The labels of x and y, such as `pos_x`; `Right` also matches `Right_X` and `right.x`."""
    exact = [f"{prefix}_{axis}" for axis in "xy"]
    if set(exact) <= set(labels):
        return exact
    found = [
        [label for label in labels if re.fullmatch(rf"{re.escape(prefix)}[ _.-]?{axis}", label,
                                                    re.IGNORECASE)]
        for axis in "xy"
    ]  # fmt: skip
    return [matches[0] for matches in found] if all(len(m) == 1 for m in found) else None


def _columns(
    stream: Stream, prefixes: dict[str, str], path: Path, options: ImportOptions, notes: list[str]
) -> dict[str, Floats]:
    labels, words = channel_labels(stream), channel_units(stream)
    unnamed = names_no_unit(zip(labels, words, strict=True))
    samples = np.asarray(stream["time_series"])
    if samples.dtype == object or samples.ndim != 2:
        raise ImportFailedError(
            f"{path}: stream {field_of(stream, 'name')!r} isn't numeric; expected kinematics"
        )
    found = {}
    for kind, prefix in prefixes.items():
        wanted = _axes_of(prefix, labels)
        if prefix == NONE or wanted is None:
            continue
        if twice := [label for label in wanted if labels.count(label) > 1]:
            raise ImportFailedError(
                f"{path}: stream {field_of(stream, 'name')!r} has several channels {twice[0]}; "
                "expected one. Choose others with --position or --velocity"
            )
        at = [labels.index(label) for label in wanted]
        if max(at) >= samples.shape[1]:
            raise ImportFailedError(
                f"{path}: the stream describes {len(labels)} channels, but its samples have "
                f"{samples.shape[1]} values; expected the same number"
            )
        if set(wanted) <= set(COLUMNS) and options.unit is None and unnamed:
            notes.append(NO_UNIT)
            found[kind] = samples[:, at].astype(np.float64)
            continue
        metres = [
            metres_per_unit(words[i], 1.0, speed=kind == "vel", override=options.unit, what=what,
                            notes=notes)
            for i, what in zip(at, wanted, strict=True)
        ]  # fmt: skip
        found[kind] = samples[:, at].astype(np.float64) * np.array(metres)
    return found


def track_of(source: Source, times: Floats, values: Floats | None, arbitrary: bool) -> Track | None:
    """The track of one column pair, already in SI units; None without values."""
    if values is None:
        return None
    return Track(
        name=source.name, times=times, values=values, conversion=1.0, offset=0.0, metres=1.0,
        arbitrary=arbitrary,
    )  # fmt: skip


def targets_of(times: Floats, columns: dict[str, Floats]) -> Floats:
    """The target (n, 2) at the kinematics' times; NaN if there is none, or no position."""
    nowhere = np.full((len(times), 2), np.nan)
    return columns.get("target", nowhere) if "pos" in columns else nowhere
