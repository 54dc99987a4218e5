"""Foreign recordings become sessions: NWB (names of DANDI 000688) and XDF (LabRecorder).

Sessions of other makers (`brainsets prepare`) open as they are; one in centimetres is imported
into metres.

Whatever had to be repaired or derived (unsorted spikes, velocity from position, dropped
empty units) is written into the session's notes and printed by the command; whatever can't
be repaired raises ImportFailedError. Timestamps keep the file's own clock.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from decoder.errors import ImportFailedError, SessionError
from streaming.sessions import (
    TOO_FAST,
    Floats,
    Ints,
    Session,
    Trials,
    check,
    chronological_domains,
    continuous_domain,
    load,
    sorted_spikes,
    velocity_of,
)

POSITION_NAMES = ("cursor_pos", "hand_pos", "finger_pos", "eye_pos")
VELOCITY_NAMES = ("cursor_vel", "hand_vel", "finger_vel")
METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001}
XDF_SPIKES, XDF_KINEMATICS = "Spikes", "Kinematics"


def import_recording(
    path: Path | str,
    *,
    position: str | None = None,
    velocity: str | None = None,
    unit: str | None = None,
) -> Session:
    """Read one NWB, XDF or session file as a session in metres.

    position, velocity: names of the series to use, where the usual ones are absent.
    unit: `m`, `cm` or `mm`, of files that say it wrongly or not at all.
    """
    path = Path(path)
    readers = {".nwb": import_nwb, ".xdf": import_xdf, ".h5": _import_session}
    if path.suffix.lower() not in readers:
        raise ImportFailedError(f"{path}: unknown kind of file; expected .nwb, .xdf or .h5")
    if unit not in (None, *METRES):
        raise ImportFailedError(f"unit {unit!r}; expected {', '.join(METRES)}")
    if not path.is_file():
        raise ImportFailedError(f"{path}: no such file")
    session = readers[path.suffix.lower()](path, position=position, velocity=velocity)
    return session if unit is None else in_metres(session, unit)


def in_metres(session: Session, unit: str) -> Session:
    """The session with kinematics and targets that were in `unit` in metres and m/s."""
    scale, trials = METRES[unit], session.trials
    if trials is not None and trials.target_pos is not None:
        trials = replace(trials, target_pos=trials.target_pos * scale)
    return replace(
        session,
        cursor_pos=session.cursor_pos * scale,
        cursor_vel=session.cursor_vel * scale,
        trials=trials,
        notes=(
            *(note for note in session.notes if not note.startswith(TOO_FAST)),
            f"kinematics converted from {unit}",
        ),
    )


def _import_session(
    path: Path, *, position: str | None = None, velocity: str | None = None
) -> Session:
    if position or velocity:
        raise ImportFailedError(f"{path}: a session has one cursor; leave --position, --velocity")
    return load(path)


def import_nwb(path: Path, *, position: str | None = None, velocity: str | None = None) -> Session:
    """Read spikes, cursor kinematics and trials of an NWB file, found by name."""
    from pynwb import NWBHDF5IO

    try:
        with NWBHDF5IO(str(path), "r") as io:
            return _from_nwbfile(io.read(), path, position, velocity)
    except SessionError:
        raise
    except Exception as error:  # h5py and hdmf raise OSError, TypeError, ConstructError, …
        raise ImportFailedError(
            f"{path}: not a readable NWB file ({_first_line(error)}); it may be truncated or "
            "another format. Check it with `pynwb-validate`"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _from_nwbfile(nwb: Any, path: Path, position: str | None, velocity: str | None) -> Session:
    notes: list[str] = []
    if nwb.units is None or len(nwb.units) == 0:
        raise ImportFailedError(
            f"{path}: the file has no units; expected a units table with spike times"
        )
    if "spike_times" not in nwb.units.colnames:
        raise ImportFailedError(
            f"{path}: the units table has no spike_times, only {list(nwb.units.colnames)}; "
            "expected the times of each unit's spikes"
        )
    unit_times = [np.asarray(nwb.units.get_unit_spike_times(i)) for i in range(len(nwb.units))]
    series = _named_series(nwb)
    pos_name = _choose(position, POSITION_NAMES, series, path, "position")
    vel_name = _choose(velocity, VELOCITY_NAMES, series, path, "velocity")
    reference = vel_name or pos_name
    if reference is None:
        raise ImportFailedError(
            f"{path}: no cursor kinematics; expected one of {POSITION_NAMES + VELOCITY_NAMES} in "
            f"processing/behavior, found {sorted(series)}. Name yours with --position or --velocity"
        )
    cursor_times, columns = _series(series[reference], path)
    pos, vel = (columns, None) if vel_name is None else (None, columns)
    if vel_name is not None and pos_name is not None:
        pos = _at_times(cursor_times, *_series(series[pos_name], path), notes)
    return _session(
        path=path,
        session_id=_session_id(nwb.session_id or path.stem),
        subject_id=getattr(nwb.subject, "subject_id", None) or "unknown",
        source=f"NWB {path.name}",
        unit_ids=_nwb_unit_ids(nwb.units),
        unit_times=unit_times,
        cursor_times=cursor_times,
        pos=pos,
        vel=vel,
        trials=_nwb_trials(nwb),
        notes=notes,
    )


def _named_series(nwb: Any) -> dict[str, Any]:
    """Every time series of the behaviour module (and acquisition), by its own name."""
    found: dict[str, Any] = {}
    roots = [*nwb.processing.values(), nwb.acquisition]
    for root in roots:
        members = root.data_interfaces if hasattr(root, "data_interfaces") else root
        for name, member in members.items():
            for field in ("spatial_series", "time_series"):
                found.update(getattr(member, field, {}))
            if hasattr(member, "data") and hasattr(member, "unit"):
                found[name] = member
    return found


def _choose(
    asked: str | None, usual: Sequence[str], series: dict[str, Any], path: Path, what: str
) -> str | None:
    if asked is not None and asked not in series:
        raise ImportFailedError(
            f"{path}: no series named {asked!r} for {what}; found {sorted(series)}"
        )
    return asked or next((name for name in usual if name in series), None)


def _series(series: Any, path: Path) -> tuple[Floats, Floats]:
    """Times (n_samples,) in seconds and data (n_samples, 2) in SI units of a time series."""
    try:
        data = np.asarray(series.data[:], dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ImportFailedError(
            f"{path}: {series.name} holds no numbers ({_first_line(error)}); expected x and y"
        ) from error
    if series.timestamps is not None:
        times = np.asarray(series.timestamps[:], dtype=np.float64)
    else:
        times = series.starting_time + np.arange(len(data)) / series.rate
    if data.ndim != 2 or data.shape[1] < 2:
        raise ImportFailedError(
            f"{path}: {series.name} has shape {data.shape}; expected (n_samples, 2), x and y"
        )
    if len(data) != len(times):
        raise ImportFailedError(
            f"{path}: {series.name} has {len(data)} samples but {len(times)} timestamps; "
            "expected as many. Write the series again, or name another with --position, --velocity"
        )
    return times, data[:, :2] * float(series.conversion or 1.0) + float(series.offset or 0.0)


def _at_times(wanted: Floats, times: Floats, pos: Floats, notes: list[str]) -> Floats:
    """Position at velocity's times, where the two were sampled apart."""
    if np.array_equal(times, wanted, equal_nan=True):
        return pos
    notes.append("position and velocity have times of their own; position was interpolated")
    good = np.flatnonzero(np.isfinite(times) & np.isfinite(pos).all(axis=1))
    good = good[np.argsort(times[good], kind="stable")]
    if len(good) == 0:
        return np.full((len(wanted), 2), np.nan)
    return np.stack([np.interp(wanted, times[good], pos[good, axis]) for axis in (0, 1)], axis=1)


def _nwb_unit_ids(units: Any) -> list[str]:
    names = units["unit_name"][:] if "unit_name" in units.colnames else units.id[:]
    return [str(name) for name in names]


def _nwb_trials(nwb: Any) -> Trials | None:
    if nwb.trials is None or len(nwb.trials) == 0:
        return None
    intervals = np.stack([nwb.trials["start_time"][:], nwb.trials["stop_time"][:]], axis=1)
    good = np.isfinite(intervals).all(axis=1) & (intervals[:, 1] > intervals[:, 0])
    if not good.any():
        return None
    target = None
    if "target_pos" in nwb.trials.colnames:
        values = np.asarray(nwb.trials["target_pos"][:], dtype=np.float64)
        target = values[good, :2] if values.ndim == 2 and values.shape[1] >= 2 else None
    return Trials(intervals=intervals[good].astype(np.float64), target_pos=target)


def import_xdf(path: Path, *, position: str | None = None, velocity: str | None = None) -> Session:
    """Read a LabRecorder file with a `Spikes` stream and a `Kinematics` stream.

    position, velocity: label prefixes of the channels (default `pos`, `vel`: `pos_x`, `vel_y`).
    """
    import pyxdf

    try:
        with _log_of(pyxdf.pyxdf.logger) as complaints, path.open("rb") as file:
            streams, _ = pyxdf.load_xdf(file, dejitter_timestamps=False)
    except Exception as error:  # pyxdf raises bare Exception, struct.error, ParseError, …
        raise ImportFailedError(
            f"{path}: not a readable XDF file ({_first_line(error)}); it may be truncated. "
            "Expected a file that LabRecorder has closed"
        ) from error
    try:
        return _from_streams(streams, path, position or "pos", velocity or "vel", complaints)
    except SessionError:
        raise
    except Exception as error:  # descriptions and samples of any shape a stranger may record
        raise ImportFailedError(
            f"{path}: its streams aren't described as expected ({_first_line(error)}); found "
            f"{_stream_list(streams)}. Expected streams as `volition replay` sends them"
        ) from error


@contextmanager
def _log_of(logger: logging.Logger) -> Iterator[list[str]]:
    """Errors that a library logs (with tracebacks, on its way) instead of raising them."""
    messages: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _from_streams(
    streams: list[dict[str, Any]], path: Path, position: str, velocity: str, complaints: list[str]
) -> Session:
    notes = [f"damaged in parts: {message}" for message in complaints]
    spikes = _xdf_stream(streams, XDF_SPIKES, path)
    kinematics = _xdf_stream(streams, XDF_KINEMATICS, path)
    if any("footer" not in stream for stream in streams):
        notes.append("the file ends before its streams do (truncated); what is there was imported")
    unit_ids, unit_times = _xdf_spikes(spikes, path, notes)
    labels = _xdf_labels(kinematics)
    samples = np.asarray(kinematics["time_series"], dtype=np.float64)
    pos = _xdf_columns(samples, labels, position)
    vel = _xdf_columns(samples, labels, velocity)
    for prefix, usual, columns in ((position, "pos", pos), (velocity, "vel", vel)):
        if columns is None and (prefix != usual or (pos is None and vel is None)):
            raise ImportFailedError(
                f"{path}: no kinematics channels {prefix}_x and {prefix}_y; found "
                f"{labels or 'no labels'}. Name yours with --position or --velocity"
            )
    return _session(
        path=path,
        session_id=_session_id(path.stem),
        subject_id="unknown",
        source=f"XDF {path.name}",
        unit_ids=unit_ids,
        unit_times=unit_times,
        cursor_times=np.asarray(kinematics["time_stamps"], dtype=np.float64),
        pos=pos,
        vel=vel,
        trials=_xdf_trials(streams),
        notes=notes,
    )


def _xdf_text(stream: dict[str, Any], name: str) -> str:
    return str((stream["info"].get(name) or [""])[0] or "")


def _stream_list(streams: list[dict[str, Any]]) -> str:
    seen = (f"{_xdf_text(s, 'name')} ({_xdf_text(s, 'type')})" for s in streams)
    return ", ".join(seen) or "no streams"


def _xdf_stream(streams: list[dict[str, Any]], kind: str, path: Path) -> dict[str, Any]:
    matching = [s for s in streams if _xdf_text(s, "type") == kind and len(s["time_stamps"])]
    if not matching:
        raise ImportFailedError(
            f"{path}: no stream of type {kind!r} with data; found {_stream_list(streams)}. "
            f"Record the {kind!r} stream too, and import that file"
        )
    return max(matching, key=lambda stream: len(stream["time_stamps"]))


def _xdf_description(stream: dict[str, Any], outer: str, inner: str) -> list[dict[str, Any]]:
    desc = (stream["info"].get("desc") or [None])[0]
    group = (desc.get(outer) or [None])[0] if isinstance(desc, dict) else None
    return list(group.get(inner) or []) if isinstance(group, dict) else []


def _xdf_spikes(
    stream: dict[str, Any], path: Path, notes: list[str]
) -> tuple[list[str], list[Floats]]:
    """Unit ids, in the order of desc/units, and each one's spike times."""
    events = np.asarray(stream["time_series"])
    if events.ndim != 2 or events.shape[1] < 2:
        raise ImportFailedError(
            f"{path}: the spike stream has samples of shape {events.shape[1:]}; "
            "expected the two fields channel and unit"
        )
    described = _xdf_description(stream, "units", "unit")
    if not described:
        raise ImportFailedError(
            f"{path}: the spike stream's desc/units is empty; expected one unit each, with id, "
            "channel and unit"
        )
    unit_of = {(int(u["channel"][0]), int(u["unit"][0])): str(u["id"][0]) for u in described}
    unit_ids = list(dict.fromkeys(unit_of.values()))
    row_of = {key: unit_ids.index(unit_id) for key, unit_id in unit_of.items()}
    rows = np.array([row_of.get((int(c), int(u)), -1) for c, u in events[:, :2]])
    if n_unknown := int((rows < 0).sum()):
        notes.append(f"{n_unknown} events of units that desc/units doesn't name were left out")
    times = np.asarray(stream["time_stamps"], dtype=np.float64)
    return unit_ids, [times[rows == row] for row in range(len(unit_ids))]


def _xdf_labels(stream: dict[str, Any]) -> list[str]:
    return [str(c["label"][0]) for c in _xdf_description(stream, "channels", "channel")]


def _xdf_columns(samples: Floats, labels: list[str], prefix: str) -> Floats | None:
    wanted = (f"{prefix}_x", f"{prefix}_y")
    if not all(label in labels for label in wanted):
        return None
    return samples[:, [labels.index(label) for label in wanted]]


def _xdf_trials(streams: list[dict[str, Any]]) -> Trials | None:
    """Trials from marker pairs `trial_start` and `trial_end`, as `volition replay` sends them."""
    starts: list[float] = []
    ends: list[float] = []
    for stream in (s for s in streams if _xdf_text(s, "type") == "Markers"):
        for marker, time in zip(stream["time_series"], stream["time_stamps"], strict=True):
            if str(marker[0]).startswith("trial_start"):
                starts.append(float(time))
            elif str(marker[0]).startswith("trial_end"):
                ends.append(float(time))
    starts.sort()
    ends.sort()
    first_end = np.append(ends, np.inf)[np.searchsorted(ends, starts, side="right")]
    next_start = np.append(starts, np.inf)[1:]
    closed = np.isfinite(first_end) & (first_end <= next_start)
    if not closed.any():
        return None
    return Trials(intervals=np.stack([starts, first_end], axis=1)[closed])


def _session_id(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", str(name)).strip("_") or "session"


def _session(
    *,
    path: Path,
    session_id: str,
    subject_id: str,
    source: str,
    unit_ids: list[str],
    unit_times: list[Floats],
    cursor_times: Floats,
    pos: Floats | None,
    vel: Floats | None,
    trials: Trials | None,
    notes: list[str],
) -> Session:
    """Put the parts together: repair what can be repaired, and say so."""
    unit_times = _finite(unit_times, notes)
    unit_ids, unit_times = _drop_empty_units(path, unit_ids, unit_times, notes)
    cursor_times, pos, vel = _clean_kinematics(path, cursor_times, pos, vel, notes)
    domain = continuous_domain(cursor_times)
    if len(domain) > 1:
        notes.append(f"{len(domain) - 1} gaps in the kinematics; windows stay between them")
    times, units = _merge(path, unit_times, domain, notes)
    train, valid, test = chronological_domains(domain, trials)
    return check(
        Session(
            session_id=session_id,
            subject_id=subject_id,
            unit_ids=tuple(unit_ids),
            spike_times=times,
            spike_units=units,
            cursor_times=cursor_times,
            cursor_pos=pos,
            cursor_vel=vel,
            domain=domain,
            train_domain=train,
            valid_domain=valid,
            test_domain=test,
            trials=trials,
            source=source,
            notes=tuple(notes),
        )
    )


def _finite(unit_times: list[Floats], notes: list[str]) -> list[Floats]:
    """Spike times without NaN and infinity."""
    unit_times = [np.asarray(times, dtype=np.float64) for times in unit_times]
    finite = [times[np.isfinite(times)] for times in unit_times]
    if n_bad := sum(map(len, unit_times)) - sum(map(len, finite)):
        notes.append(f"{n_bad} spikes without a finite time were left out")
    return finite


def _drop_empty_units(
    path: Path, unit_ids: list[str], unit_times: list[Floats], notes: list[str]
) -> tuple[list[str], list[Floats]]:
    kept = [i for i, times in enumerate(unit_times) if len(times)]
    if not kept:
        raise ImportFailedError(f"{path}: none of the {len(unit_ids)} units has a spike")
    if len(kept) < len(unit_ids):
        notes.append(f"{len(unit_ids) - len(kept)} units without spikes were left out")
    return [unit_ids[i] for i in kept], [unit_times[i] for i in kept]


def _clean_kinematics(
    path: Path, times: Floats, pos: Floats | None, vel: Floats | None, notes: list[str]
) -> tuple[Floats, Floats, Floats]:
    """Finite values at ascending times; velocity by gradient where there is none."""
    columns = np.concatenate([v for v in (pos, vel) if v is not None], axis=1)
    good = np.isfinite(times) & np.isfinite(columns).all(axis=1)
    good[good] &= np.concatenate(([True], np.diff(np.maximum.accumulate(times[good])) > 0))
    if (n_bad := int((~good).sum())) > 0:
        notes.append(
            f"{n_bad} kinematics samples with NaN or times that don't ascend were left out"
        )
    if good.sum() < 2:
        raise ImportFailedError(
            f"{path}: {int(good.sum())} usable kinematics samples; expected many"
        )
    times = times[good]
    pos = None if pos is None else pos[good]
    vel = None if vel is None else vel[good]
    if vel is None:
        assert pos is not None
        vel = velocity_of(pos, times)
        notes.append("velocity is the gradient of position")
    if pos is None:
        pos = np.zeros_like(vel)
        notes.append("no position in the file; stored as zero")
    return times, pos, vel


def _merge(
    path: Path, unit_times: list[Floats], domain: Floats, notes: list[str]
) -> tuple[Floats, Ints]:
    """All units' spikes in one ascending array; the unsorted sorted."""
    times = np.concatenate(unit_times)
    units = np.repeat(np.arange(len(unit_times)), [len(t) for t in unit_times])
    if any((np.diff(t) < 0).any() for t in unit_times):
        notes.append("spikes of some units were out of order and have been sorted")
    times, units, _ = sorted_spikes(times, units)
    if not ((times >= domain[0, 0]) & (times < domain[-1, 1])).any():
        raise ImportFailedError(
            f"{path}: no spike falls in the kinematics' time span "
            f"[{domain[0, 0]:.3f}, {domain[-1, 1]:.3f}] s; are both on one clock?"
        )
    return times, units
