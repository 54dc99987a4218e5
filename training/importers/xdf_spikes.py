"""Units and spike times of an XDF file's spike streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from decoder.arrays import Floats, Ints
from decoder.errors import ImportFailedError
from streaming.sessions.stamps import spikes_on_line
from streaming.units import repeated_units
from training.importers.xdf_streams import (
    COUNTS,
    EVENTS,
    Source,
    Stream,
    channel_labels,
    described,
    field_of,
)

MAX_RATE_HZ = 1000.0  # of a unit; higher counts are clipped
RATE_OFF = 0.1  # relative difference allowed between stamps and nominal rate


def units_of(sources: list[Source], path: Path, notes: list[str]) -> tuple[list[str], list[Floats]]:
    """The ids and spike times of all units.

    If several streams share ids, the units are named STREAM/ID.
    """
    found = [_units_of_source(source, path, notes) for source in sources]
    names = [unit_id for units in found for unit_id in units]
    if len(found) > 1:
        counts = ", ".join(f"{s.name!r} ({len(u)})" for s, u in zip(sources, found, strict=True))
        notes.append(f"units of {len(found)} streams combined: {counts}")
    if repeated_units(names) is not None:
        found = [
            {f"{source.name}/{unit_id}": times for unit_id, times in units.items()}
            for source, units in zip(sources, found, strict=True)
        ]
        notes.append("several streams have the same unit ids; units were renamed to STREAM/ID")
    units = {unit_id: times for units in found for unit_id, times in units.items()}
    return list(units), list(units.values())


def _units_of_source(source: Source, path: Path, notes: list[str]) -> dict[str, Floats]:
    """Spike times by unit id, over all parts of a source."""
    units: dict[str, list[Floats]] = {}
    for part in source.parts:
        unit_ids, times, rows = _spikes(part, path, notes)
        for row, unit_id in enumerate(unit_ids):
            units.setdefault(unit_id, []).append(times[rows == row])
    return {unit_id: np.concatenate(times) for unit_id, times in units.items()}


def _spikes(stream: Stream, path: Path, notes: list[str]) -> tuple[list[str], Floats, Ints]:
    """Unit ids of a stream; times (n,) of its spikes, and the index of each one's unit (n,)."""
    samples = np.asarray(stream["time_series"])
    stamps = np.asarray(stream["time_stamps"], dtype=np.float64)
    name = field_of(stream, "name")
    if samples.dtype == object or samples.ndim != 2:
        raise ImportFailedError(f"{path}: stream {name!r} isn't numeric; expected spikes")
    on_time = spikes_on_line(stamps, name, notes)
    samples, stamps = samples[on_time], stamps[on_time]
    if field_of(stream, "type") == COUNTS:
        return _counted(stream, samples, stamps, path, notes)
    if samples.shape[1] < 2:
        raise ImportFailedError(
            f"{path}: samples of the spike stream have {samples.shape[1]} values; expected two, "
            "channel and unit"
        )
    pairs, inverse = np.unique(samples[:, :2].astype(np.int64), axis=0, return_inverse=True)
    unit_of = _unit_of_pair(stream, path)
    if not unit_of and field_of(stream, "type") == EVENTS:
        unit_of = {(int(c), int(u)): f"{c}/{u}" for c, u in pairs}
    if not unit_of:
        raise ImportFailedError(
            f"{path}: the spike stream's desc/units is empty; expected an element per unit, with "
            "id, channel and unit"
        )
    unit_ids = list(unit_of.values())
    row_of = {key: row for row, key in enumerate(unit_of)}
    rows = np.array([row_of.get((int(c), int(u)), -1) for c, u in pairs])[inverse.ravel()]
    if n_unknown := int((rows < 0).sum()):
        notes.append(f"{n_unknown} events of units that aren't in desc/units were left out")
    return unit_ids, stamps, rows


def _unit_of_pair(stream: Stream, path: Path) -> dict[tuple[int, int], str]:
    units = described(stream, "units", "unit")
    unit_of = {(int(u["channel"][0]), int(u["unit"][0])): str(u["id"][0]) for u in units}
    if problem := repeated_units(list(unit_of.values())):
        raise ImportFailedError(f"{path}: stream {field_of(stream, 'name')!r}: {problem}")
    return unit_of


def _counted(
    stream: Stream, counts: np.ndarray[Any, Any], ends: Floats, path: Path, notes: list[str]
) -> tuple[list[str], Floats, Ints]:
    """Convert counts (n_bins, n_units) to spikes, spread evenly in their bins as in the daemon.

    ends: (n_bins,) s, the ends of the bins.
    """
    unit_ids, rate_hz = channel_labels(stream), float(field_of(stream, "nominal_srate") or 0.0)
    if len(unit_ids) != counts.shape[1] or not (np.isfinite(rate_hz) and rate_hz > 0):
        raise ImportFailedError(
            f"{path}: the stream of counts has {counts.shape[1]} channels, {len(unit_ids)} labels "
            f"and a rate of {rate_hz:g} Hz; expected a label (the unit's id) per channel, and a "
            "regular rate"
        )
    if problem := repeated_units(unit_ids):
        raise ImportFailedError(f"{path}: stream {field_of(stream, 'name')!r}: {problem}")
    bin_s = _bin_s(rate_hz, ends, field_of(stream, "name"), notes)
    most = np.ceil(MAX_RATE_HZ * bin_s)
    finite = np.nan_to_num(counts.astype(np.float64), nan=0.0, posinf=0.0)
    flat = np.clip(finite, 0, most).round().astype(np.int64).ravel()
    cell = np.repeat(np.arange(len(flat)), flat)
    rank = np.arange(len(cell)) - np.repeat(np.cumsum(flat) - flat, flat)
    times = ends[cell // counts.shape[1]] - bin_s + (rank + 0.5) / flat[cell] * bin_s
    return unit_ids, times, cell % counts.shape[1]


def _bin_s(rate_hz: float, ends: Floats, name: str, notes: list[str]) -> float:
    """Length of a bin in seconds: by the nominal rate, unless regular stamps contradict it."""
    steps = np.diff(ends)
    usual = float(np.median(steps)) if len(steps) else 0.0
    regular = usual > 0 and float((np.abs(steps / usual - 1) < RATE_OFF).mean()) > 0.9
    if not regular or abs(usual * rate_hz - 1) < RATE_OFF:
        return 1.0 / rate_hz
    notes.append(
        f"stream {name!r} has a nominal rate of {rate_hz:g} Hz, but its stamps are {usual:.3g} s "
        "apart; that was taken as the length of its bins"
    )
    return usual
