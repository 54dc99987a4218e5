"""An NWB file as a session: units, kinematics, trials and targets, found by name."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

import numpy as np

from decoder.errors import ImportFailedError, SessionError
from streaming.lengths import metres_in
from streaming.sessions import Floats, Session, Trials
from streaming.units import repeated_units
from training.importers.asked import Asked
from training.importers.assemble import Parts, assemble
from training.importers.complaints import as_notes, complaints, first_line
from training.importers.series import Series, Track, all_series, chosen, read
from training.importers.units import seconds_asked

TELLING_ID = 3  # characters of a session id that tells a session from others, at least one a letter
FITTING = 3.0  # targets may reach so much further than the position, or less


def import_nwb(path: Path, asked: Asked | None = None) -> Session:
    """Read spikes, cursor kinematics and trials of an NWB file, found by name."""
    from pynwb import NWBHDF5IO

    asked = asked or Asked()
    with complaints() as said:
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
                parts = _parts(nwb, path, asked)
            except SessionError:
                raise
            except Exception as error:  # h5py and numpy, of data that isn't what the schema says
                raise ImportFailedError(
                    f"{path}: its data can't be used ({type(error).__name__}: "
                    f"{first_line(error)}); it may be damaged or laid out otherwise. Check it "
                    "with `pynwb-validate`"
                ) from error
    parts.notes[:0] = as_notes(said, "pynwb")
    return assemble(parts, asked)


def _unreadable(path: Path, error: Exception) -> ImportFailedError:
    return ImportFailedError(
        f"{path}: not a readable NWB file ({first_line(error)}); it may be truncated or "
        "another format. Check it with `pynwb-validate`"
    )


def _parts(nwb: Any, path: Path, asked: Asked) -> Parts:
    notes: list[str] = []
    unit_ids, unit_times = _units(nwb, path, asked, notes)
    position, velocity = chosen(all_series(nwb, notes), asked, path, notes)
    pos = read(position, "position", asked, path, notes) if position else None
    vel = read(velocity, "velocity", asked, path, notes) if velocity else None
    _name_frames(position, velocity, notes)
    start = nwb.session_start_time
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
    )


def _session_id(nwb: Any, path: Path, notes: list[str]) -> str:
    """The file's session id; one that is common across subjects (`1`) gets subject and date."""
    given = str(nwb.session_id or "").strip()
    if given and len(given) >= TELLING_ID and re.search(r"[^\W\d_]", given):
        return given
    subject = getattr(nwb.subject, "subject_id", None)
    date = nwb.session_start_time
    day = f"{date:%Y-%m-%d}" if isinstance(date, datetime.datetime) else None
    if not given or not (subject or day):
        return path.stem
    name = "_".join(str(part) for part in (subject, day, given) if part)
    notes.append(f"the file calls its session {given!r}; with subject and date it is {name}")
    return name


def _name_frames(position: Series | None, velocity: Series | None, notes: list[str]) -> None:
    frames = {s.frame: s.name for s in (position, velocity) if s and s.frame}
    if frames:
        notes.append("frame of reference: " + ", ".join(f"{n} {f!r}" for f, n in frames.items()))


def _units(nwb: Any, path: Path, asked: Asked, notes: list[str]) -> tuple[list[str], list[Floats]]:
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
    if asked.spike_unit is not None:
        times = [t * seconds_asked(asked.spike_unit) for t in times]
        notes.append(f"spike times were taken as {asked.spike_unit}, as asked")
    return _unit_ids(nwb.units, path, notes), times


def _unit_ids(units: Any, path: Path, notes: list[str]) -> list[str]:
    """Units' names, where each has one of its own, else their numbers in the table."""
    names = [str(number) for number in units.id[:]]
    if "unit_name" in units.colnames:
        called = [str(name) for name in units["unit_name"][:]]
        if repeated_units(called) is None:
            return called
        notes.append("unit names repeat; units are called by their numbers in the table")
    if problem := repeated_units(names):
        raise ImportFailedError(f"{path}: {problem}")
    return names


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
        target_pos=_targets(table, np.flatnonzero(good), position, notes),
    )


def _targets(
    table: Any, rows: np.ndarray[Any, Any], position: Track | None, notes: list[str]
) -> Floats | None:
    """Targets (n, 2) of the trials in metres; NaN where a trial has none; None if no trial has."""
    column = next((c for c in ("target_pos", "target_position") if c in table.colnames), None)
    if column is None:
        return None
    active = table["active_target"] if "active_target" in table.colnames else None
    targets = np.array([_target(table[column], active, int(row)) for row in rows])
    n_without = int((~np.isfinite(targets).all(axis=1)).sum())
    if n_without:
        notes.append(f"{n_without} of {len(rows)} trials have no single target (x and y)")
    if n_without == len(rows):
        return None
    return _in_metres(targets, str(table[column].description or ""), position, notes)


def _target(column: Any, active: Any, row: int) -> Floats:
    """The target (2,) of one trial: its x and y, or those of the active one of several."""
    nowhere = np.full(2, np.nan)
    try:
        value = np.asarray(column[row], dtype=np.float64)
        if value.ndim == 2 and active is not None:
            value = value[int(active[row])]
    except (TypeError, ValueError, IndexError):
        return nowhere
    if value.ndim == 2 and len(value) == 1:
        value = value[0]
    return value[:2] if value.ndim == 1 and len(value) in (2, 3) else nowhere


def _in_metres(
    targets: Floats, description: str, position: Track | None, notes: list[str]
) -> Floats | None:
    """Targets as the position: in the column's own unit if it says one, else in the unit that
    puts them where the position is."""
    if position is None:
        notes.append("targets have no position beside them, and were left out")
        return None
    words = re.findall(r"[(\[]\s*([^()\[\]]+?)\s*[)\]]|\bin (\w+)", description.lower())
    said = [m for pair in words for word in pair if word and (m := metres_in(word)) is not None]
    if said:
        if said[0] != 1.0:
            notes.append(f"targets converted, as their description says ({description!r})")
        return targets * said[0]
    as_stored = (targets * position.conversion + position.offset) * position.metres
    options = {
        "as the position": as_stored,
        "by the position's unit": targets * position.metres,
        "not at all, being in metres": targets,
    }
    if all(np.allclose(o, targets, equal_nan=True) for o in options.values()):
        return targets
    reach = _reach(position.values, position.values)
    off = {how: abs(np.log(_reach(o, position.values) / reach)) for how, o in options.items()}
    best = min(off, key=lambda how: off[how])
    if not off[best] <= np.log(FITTING):
        notes.append("targets are nowhere near the position in any unit, and were left out")
        return None
    notes.append(f"targets converted {best}")
    return options[best]


def _reach(points: Floats, position: Floats) -> float:
    """How far points go from the middle of the position, in metres; never 0."""
    middle = np.nanmedian(position, axis=0)
    return float(np.nanquantile(np.abs(points - middle), 0.99)) + 1e-12
