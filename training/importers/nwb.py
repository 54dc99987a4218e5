"""Reads an NWB file: units, kinematics, trials and targets, found by name."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

import numpy as np

from decoder.arrays import Floats
from decoder.errors import ImportFailedError, SessionError
from streaming.sessions.session import Session, Trials
from streaming.units import repeated_units
from training.conversion.assembly import Parts, assemble
from training.conversion.options import ImportOptions
from training.conversion.reader_warnings import as_notes, collect_warnings, first_line
from training.conversion.track import Track
from training.conversion.units import parse_time_unit
from training.importers.series import Series, all_series, choose, read
from training.importers.targets import targets_of

TELLING_ID = 3  # characters; a shorter session id, or one without a letter, isn't distinctive
OBSERVED_S = 1e-3  # shorter breaks between observed intervals are ignored
STRAY = 0.01  # share of the spikes that may lie outside the observed intervals


def import_nwb(path: Path, options: ImportOptions | None = None) -> Session:
    """Read the spikes, cursor kinematics and trials of an NWB file."""
    from pynwb import NWBHDF5IO

    options = options or ImportOptions()
    with collect_warnings() as warned:
        try:
            io = NWBHDF5IO(str(path), "r")
        except Exception as error:  # h5py and hdmf raise OSError, KeyError, …
            raise _unreadable(path, error) from error
        with io:
            try:
                nwb = io.read()
            except Exception as error:  # TypeError, ConstructError, …
                raise _unreadable(path, error) from error
            try:
                parts = _parts(nwb, path, options)
            except SessionError:
                raise
            except Exception as error:  # h5py and numpy, if data don't match the schema
                raise ImportFailedError(
                    f"{path}: can't use the data ({type(error).__name__}: {first_line(error)}); "
                    "the file may be damaged, or not follow the NWB schema. Check it with "
                    "`pynwb-validate`"
                ) from error
    parts.notes[:0] = as_notes(warned, "pynwb")
    return assemble(parts, options)


def _unreadable(path: Path, error: Exception) -> ImportFailedError:
    return ImportFailedError(
        f"{path}: not a readable NWB file ({first_line(error)}); it may be truncated, or in "
        "another format. Check it with `pynwb-validate`"
    )


def _parts(nwb: Any, path: Path, options: ImportOptions) -> Parts:
    notes: list[str] = []
    unit_ids, unit_times = _units(nwb, path, options, notes)
    position, velocity = choose(all_series(nwb, notes), options, path, notes)
    pos = read(position, "position", options, path, notes) if position else None
    vel = read(velocity, "velocity", options, path, notes) if velocity else None
    _note_frames(position, velocity, notes)
    start = nwb.session_start_time
    cuts = (*_unobserved(nwb.units, unit_times, notes), *_invalid(nwb, notes))
    _note_tables(nwb, notes)
    return Parts(
        path=path,
        session_id=_session_id(nwb, path, notes),
        subject_id=str(getattr(nwb.subject, "subject_id", None) or "unknown"),
        recorded_at=start if isinstance(start, datetime.datetime) else None,
        source=f"NWB {path.name}",
        unit_ids=unit_ids,
        unit_times=unit_times,
        position=pos,
        velocity=vel,
        trials=_trials(nwb, pos, notes),
        notes=notes,
        arbitrary=any(track.arbitrary for track in (pos, vel) if track),
        cuts=cuts,
        can_convert=True,
    )


def _session_id(nwb: Any, path: Path, notes: list[str]) -> str:
    """The file's session id; subject and date are added to an indistinct one (`1`)."""
    given = str(nwb.session_id or "").strip()
    if given and len(given) >= TELLING_ID and re.search(r"[^\W\d_]", given):
        return given
    subject = getattr(nwb.subject, "subject_id", None)
    date = nwb.session_start_time
    day = f"{date:%Y-%m-%d}" if isinstance(date, datetime.datetime) else None
    if not given or not (subject or day):
        return path.stem
    name = "_".join(str(part) for part in (subject, day, given) if part)
    notes.append(f"session id {given!r} was extended with subject and date to {name}")
    return name


def _note_frames(position: Series | None, velocity: Series | None, notes: list[str]) -> None:
    frames = {s.frame: s.name for s in (position, velocity) if s and s.frame}
    if frames:
        notes.append("frame of reference: " + ", ".join(f"{n} {f!r}" for f, n in frames.items()))


def _units(
    nwb: Any, path: Path, options: ImportOptions, notes: list[str]
) -> tuple[list[str], list[Floats]]:
    if nwb.units is None or len(nwb.units) == 0:
        raise ImportFailedError(
            f"{path}: the file has no units; expected a units table with spike times"
        )
    if "spike_times" not in nwb.units.colnames:
        raise ImportFailedError(
            f"{path}: the units table has no spike_times, only {list(nwb.units.colnames)[:20]}; "
            "expected the times of each unit's spikes"
        )
    times = [
        np.asarray(nwb.units.get_unit_spike_times(i), dtype=np.float64)
        for i in range(len(nwb.units))
    ]
    if options.spike_unit is not None:
        times = [t * parse_time_unit(options.spike_unit) for t in times]
        notes.append(f"spike times converted from {options.spike_unit} (--spike-unit)")
    return _unit_ids(nwb.units, path, notes), times


def _unit_ids(units: Any, path: Path, notes: list[str]) -> list[str]:
    """The units' names if they are unique, else their ids in the table."""
    names = [str(number) for number in units.id[:]]
    if "unit_name" in units.colnames:
        called = [str(name) for name in units["unit_name"][:]]
        if repeated_units(called) is None:
            return called
        notes.append("unit names repeat; the ids in the units table are used instead")
    if problem := repeated_units(names):
        raise ImportFailedError(f"{path}: {problem}")
    return names


def _unobserved(
    units: Any, unit_times: list[Floats], notes: list[str]
) -> list[tuple[float, float]]:
    """Intervals in which no unit was observed, by the table's obs_intervals."""
    if "obs_intervals" not in units.colnames:
        return []
    each = [np.asarray(units["obs_intervals"][i], dtype=np.float64).reshape(-1, 2)
            for i in range(len(units))]  # fmt: skip
    edges = np.concatenate(each)
    edges = edges[np.isfinite(edges).all(axis=1) & (edges[:, 1] > edges[:, 0])]
    if len(edges) == 0:
        return []
    edges = edges[np.argsort(edges[:, 0], kind="stable")]
    latest = np.maximum.accumulate(edges[:, 1])
    away = [
        (-np.inf, float(edges[0, 0])),
        *((float(end), float(start)) for end, start in zip(latest[:-1], edges[1:, 0], strict=True)
          if start - end > OBSERVED_S),
        (float(latest[-1]), np.inf),
    ]  # fmt: skip
    times = np.concatenate(unit_times)
    n_away = sum(int(((times > start) & (times < end)).sum()) for start, end in away)
    if n_away > STRAY * len(times):
        notes.append(
            f"obs_intervals were ignored: {n_away:,} of {len(times):,} spikes lie outside them"
        )
        return []
    observed = [float((rows[:, 1] - rows[:, 0]).sum()) for rows in each]
    n_partly = sum(seconds < max(observed) - 1.0 for seconds in observed)
    if n_partly:
        notes.append(
            f"{n_partly} of {len(each)} units were observed only part of the time "
            "(obs_intervals); outside of it they count as silent"
        )
    notes.append(
        f"units were observed from {edges[0, 0]:.1f} to {latest[-1]:.1f} s"
        + (f", with {len(away) - 2} breaks" if len(away) > 2 else "")
        + " (obs_intervals); the domains were cut to that"
    )
    return away


def _invalid(nwb: Any, notes: list[str]) -> list[tuple[float, float]]:
    """The intervals of the file's invalid_times."""
    table = nwb.invalid_times
    if table is None or len(table) == 0:
        return []
    cuts = [(float(a), float(b)) for a, b in zip(
        table["start_time"][:], table["stop_time"][:], strict=True
    ) if b > a]  # fmt: skip
    seconds = sum(b - a for a, b in cuts)
    notes.append(f"{len(cuts)} invalid_times ({seconds:.1f} s) were cut out of the domains")
    return cuts


def _note_tables(nwb: Any, notes: list[str]) -> None:
    names = [name for name in nwb.intervals if name not in ("trials", "invalid_times")]
    if names:
        notes.append(f"interval tables not imported: {', '.join(names[:10])}")


def _trials(nwb: Any, position: Track | None, notes: list[str]) -> Trials | None:
    table = nwb.trials
    if table is None or len(table) == 0:
        return None
    start, stop = (
        np.asarray(table[name][:], dtype=np.float64) for name in ("start_time", "stop_time")
    )
    intervals = np.stack([start, stop], axis=1)
    good = np.isfinite(intervals).all(axis=1) & (intervals[:, 1] > intervals[:, 0])
    if n_bad := int((~good).sum()):
        notes.append(f"{n_bad} trials without a start and an end were left out")
    if not good.any():
        return None
    return Trials(
        intervals=intervals[good],
        target_pos=targets_of(table, np.flatnonzero(good), position, notes),
    )
