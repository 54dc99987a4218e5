"""Foreign recordings become sessions: NWB (names of DANDI 000688) and XDF (LabRecorder).

Whatever had to be repaired or derived (unsorted spikes, velocity from position, dropped
empty units) is written into the session's notes and printed by the command; whatever can't
be repaired raises ImportFailedError. Timestamps keep the file's own clock.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decoder.errors import ImportFailedError, SessionError
from streaming.sessions import (
    Floats,
    Ints,
    Session,
    Trials,
    check,
    chronological_domains,
    continuous_domain,
    sorted_spikes,
)

POSITION_NAMES = ("cursor_pos", "hand_pos", "finger_pos", "eye_pos")
VELOCITY_NAMES = ("cursor_vel", "hand_vel", "finger_vel")
XDF_SPIKES, XDF_KINEMATICS = "Spikes", "Kinematics"


def import_recording(
    path: Path | str, *, position: str | None = None, velocity: str | None = None
) -> Session:
    """Read one NWB or XDF file as a session.

    position, velocity: names of the series to use, where the usual ones are absent.
    """
    path = Path(path)
    readers = {".nwb": import_nwb, ".xdf": import_xdf}
    if path.suffix.lower() not in readers:
        raise ImportFailedError(f"{path}: unknown kind of file; expected .nwb or .xdf")
    if not path.is_file():
        raise ImportFailedError(f"{path}: no such file")
    return readers[path.suffix.lower()](path, position=position, velocity=velocity)


def import_nwb(path: Path, *, position: str | None = None, velocity: str | None = None) -> Session:
    """Read spikes, cursor kinematics and trials of an NWB file, found by name."""
    from pynwb import NWBHDF5IO

    try:
        with NWBHDF5IO(str(path), "r") as io:
            return _from_nwbfile(io.read(), path, position, velocity)
    except SessionError:
        raise
    except (OSError, TypeError, ValueError, KeyError) as error:  # what h5py and hdmf raise
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
    cursor_times = _series_times(series[reference])
    return _session(
        path=path,
        session_id=_session_id(nwb.session_id or path.stem),
        subject_id=getattr(nwb.subject, "subject_id", None) or "unknown",
        source=f"NWB {path.name}",
        unit_ids=_nwb_unit_ids(nwb.units),
        unit_times=unit_times,
        cursor_times=cursor_times,
        pos=_series_data(series[pos_name]) if pos_name else None,
        vel=_series_data(series[vel_name]) if vel_name else None,
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


def _series_times(series: Any) -> Floats:
    if series.timestamps is not None:
        return np.asarray(series.timestamps[:], dtype=np.float64)
    n_samples = len(series.data)
    return np.asarray(series.starting_time + np.arange(n_samples) / series.rate)


def _series_data(series: Any) -> Floats:
    """Values in SI units: the data times the series' conversion factor."""
    values = np.asarray(series.data[:], dtype=np.float64)
    return values * float(series.conversion or 1.0)


def _nwb_unit_ids(units: Any) -> list[str]:
    names = units["unit_name"][:] if "unit_name" in units.colnames else units.id[:]
    return [str(name) for name in names]


def _nwb_trials(nwb: Any) -> Trials | None:
    if nwb.trials is None or len(nwb.trials) == 0:
        return None
    intervals = np.stack([nwb.trials["start_time"][:], nwb.trials["stop_time"][:]], axis=1)
    good = np.isfinite(intervals).all(axis=1) & (intervals[:, 1] > intervals[:, 0])
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
        streams, _ = pyxdf.load_xdf(str(path), dejitter_timestamps=False, synchronize_clocks=True)
    except Exception as error:  # pyxdf raises bare Exception, struct.error, IndexError, …
        raise ImportFailedError(
            f"{path}: not a readable XDF file ({_first_line(error)}); it may be truncated"
        ) from error
    spikes = _xdf_stream(streams, XDF_SPIKES, path)
    kinematics = _xdf_stream(streams, XDF_KINEMATICS, path)
    unit_of = _xdf_units(spikes, path)
    events = np.asarray(spikes["time_series"]).reshape(-1, int(spikes["info"]["channel_count"][0]))
    times = np.asarray(spikes["time_stamps"], dtype=np.float64)
    keys = [unit_of.get((int(channel), int(unit))) for channel, unit in events[:, :2]]
    notes = []
    if unknown := sum(key is None for key in keys):
        notes.append(f"{unknown} events of units that desc/units doesn't name were left out")
    unit_ids = sorted(set(unit_of.values()))
    position_of = {unit_id: index for index, unit_id in enumerate(unit_ids)}
    index = np.array([-1 if key is None else position_of[key] for key in keys], dtype=np.int64)
    labels = _xdf_labels(kinematics)
    samples = np.asarray(kinematics["time_series"], dtype=np.float64)
    return _session(
        path=path,
        session_id=_session_id(path.stem),
        subject_id="unknown",
        source=f"XDF {path.name}",
        unit_ids=unit_ids,
        unit_times=[times[index == unit] for unit in range(len(unit_ids))],
        cursor_times=np.asarray(kinematics["time_stamps"], dtype=np.float64),
        pos=_xdf_columns(samples, labels, position or "pos"),
        vel=_xdf_columns(samples, labels, velocity or "vel"),
        trials=_xdf_trials(streams),
        notes=notes,
    )


def _xdf_stream(streams: list[dict[str, Any]], kind: str, path: Path) -> dict[str, Any]:
    matching = [s for s in streams if s["info"]["type"][0] == kind and len(s["time_stamps"])]
    if not matching:
        seen = [f"{s['info']['name'][0]} ({s['info']['type'][0]})" for s in streams]
        raise ImportFailedError(
            f"{path}: no stream of type {kind!r} with data; found {', '.join(seen) or 'none'}"
        )
    return max(matching, key=lambda stream: len(stream["time_stamps"]))


def _xdf_description(stream: dict[str, Any], outer: str, inner: str) -> list[dict[str, Any]]:
    desc = (stream["info"].get("desc") or [None])[0] or {}
    group = (desc.get(outer) or [None])[0] or {}
    return list(group.get(inner) or [])


def _xdf_units(stream: dict[str, Any], path: Path) -> dict[tuple[int, int], str]:
    described = _xdf_description(stream, "units", "unit")
    if not described:
        raise ImportFailedError(
            f"{path}: the spike stream's desc/units is empty; expected one unit each"
        )
    return {(int(u["channel"][0]), int(u["unit"][0])): str(u["id"][0]) for u in described}


def _xdf_labels(stream: dict[str, Any]) -> list[str]:
    return [str(c["label"][0]) for c in _xdf_description(stream, "channels", "channel")]


def _xdf_columns(samples: Floats, labels: list[str], prefix: str) -> Floats | None:
    wanted = (f"{prefix}_x", f"{prefix}_y")
    if not all(label in labels for label in wanted):
        return None
    return samples[:, [labels.index(label) for label in wanted]]


def _xdf_trials(streams: list[dict[str, Any]]) -> Trials | None:
    """Trials from marker pairs `trial_start` and `trial_end`, as `volition replay` sends them."""
    starts, ends = [], []
    for stream in streams:
        if stream["info"]["type"][0] != "Markers":
            continue
        for marker, time in zip(stream["time_series"], stream["time_stamps"], strict=True):
            if marker[0].startswith("trial_start"):
                starts.append(float(time))
            elif marker[0].startswith("trial_end"):
                ends.append(float(time))
    pairs = [(s, min(e for e in ends if e > s)) for s in starts if any(e > s for e in ends)]
    disjoint = [p for p, q in pairwise(pairs) if p[1] <= q[0]] + pairs[-1:]
    return Trials(intervals=np.array(disjoint)) if disjoint else None


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
    for name, values in (("position", pos), ("velocity", vel)):
        if values is None:
            continue
        if values.ndim != 2 or values.shape[1] < 2:
            raise ImportFailedError(
                f"{path}: {name} has shape {values.shape}; expected (n_samples, 2)"
            )
        if len(values) != len(times):
            raise ImportFailedError(
                f"{path}: {len(values)} {name} samples but {len(times)} timestamps; "
                "expected as many"
            )
    if pos is None and vel is None:
        raise ImportFailedError(
            f"{path}: the kinematics have neither position nor velocity columns"
        )
    columns = np.concatenate([v[:, :2] for v in (pos, vel) if v is not None], axis=1)
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
    pos = None if pos is None else pos[good, :2]
    vel = None if vel is None else vel[good, :2]
    if vel is None:
        assert pos is not None
        vel = np.gradient(pos, times, axis=0)
        notes.append("velocity is the gradient of position")
    if pos is None:
        pos = np.zeros_like(vel)
        notes.append("no position in the file; stored as zero")
    return times, pos, vel


def _merge(
    path: Path, unit_times: list[Floats], domain: Floats, notes: list[str]
) -> tuple[Floats, Ints]:
    """All units' spikes in one ascending array; NaN left out, the unsorted sorted."""
    times = np.concatenate([np.asarray(t, dtype=np.float64) for t in unit_times])
    units: NDArray[np.int64] = np.repeat(np.arange(len(unit_times)), [len(t) for t in unit_times])
    if any((np.diff(t) < 0).any() for t in unit_times):
        notes.append("spikes of some units were out of order and have been sorted")
    finite = np.isfinite(times)
    if not finite.all():
        notes.append(f"{int((~finite).sum())} spikes without a finite time were left out")
    times, units, _ = sorted_spikes(times[finite], units[finite])
    overlap = (times >= domain[0, 0]) & (times < domain[-1, 1])
    if not overlap.any():
        raise ImportFailedError(
            f"{path}: no spike falls in the kinematics' time span "
            f"[{domain[0, 0]:.3f}, {domain[-1, 1]:.3f}] s; are both on one clock?"
        )
    return times, units
