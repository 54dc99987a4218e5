"""Converts a session to and from torch_brain's HDF5 layout."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from decoder.arrays import Floats, Ints
from decoder.errors import SessionError
from streaming.sessions.checks import check_kinematics
from streaming.sessions.intervals import chronological_domains, continuous_domain, without_gaps
from streaming.sessions.kinematics import (
    ascending_samples,
    finite_samples,
    velocity_of,
    xy_of,
)
from streaming.sessions.session import BlockNote, Session, Trials, sorted_spikes

FASTEST_HAND = 5.0  # m/s; faster kinematics are in another unit
TOO_FAST = "speeds reach "
MAX_TEXT = 30_000  # characters in an HDF5 attribute, which may have 64 KB
MAX_UNITS = 100_000
CURSORS = ("cursor", "hand", "finger")  # groups with kinematics, in order of preference
NO_DATE = datetime.datetime(1970, 1, 1)  # stored if the date is unknown


def load_libraries() -> None:
    """Import what `to_data` needs, which takes half a second, ahead of time."""
    import torch_brain.data  # noqa: F401


def to_data(session: Session):  # type: ignore[no-untyped-def]  # torch_brain has no types
    from torch_brain.data import (
        ArrayDict,
        BrainsetDescription,
        Data,
        Interval,
        IrregularTimeSeries,
        SessionDescription,
        SubjectDescription,
    )

    def interval(edges: Floats) -> Interval:
        return Interval(start=edges[:, 0].copy(), end=edges[:, 1].copy())

    unit_of_spike = session.spike_units.astype(np.int64)
    parts: dict[str, Any] = dict(  # noqa: C408  # the names are those of torch_brain
        brainset=BrainsetDescription(
            id="volition",
            origin_version="unknown",
            derived_version="1.0.0",
            source=session.source,
            description="; ".join(session.notes)[:MAX_TEXT] or "session written by Volition",
        ),
        subject=SubjectDescription(id=session.subject_id, species="UNKNOWN", sex="UNKNOWN"),
        session=SessionDescription(
            id=session.session_id,
            recording_date=session.recorded_at or NO_DATE,
            task="REACHING",
        ),
        spikes=IrregularTimeSeries(
            timestamps=session.spike_times,
            unit_index=unit_of_spike,
            domain=interval(session.domain),
        ),
        units=ArrayDict(
            id=np.array([_ascii(unit_id) for unit_id in session.unit_ids], dtype=str),
            count=np.bincount(unit_of_spike, minlength=session.n_units),
        ),
        cursor=IrregularTimeSeries(
            timestamps=session.cursor_times,
            pos=session.cursor_pos,
            vel=session.cursor_vel,
            domain=interval(session.domain),
        ),
        domain=interval(session.domain),
    )
    if session.trials is not None:
        parts["trials"] = interval(session.trials.intervals)
        if session.trials.target_pos is not None:
            parts["trials"].target_pos = session.trials.target_pos
    if session.block_notes:
        at = np.array([note.time_s for note in session.block_notes])
        begin, end = min(at[0], session.domain[0, 0]), max(at[-1], session.domain[-1, 1])
        parts["block_notes"] = IrregularTimeSeries(
            timestamps=at,
            text=np.array([_ascii(note.text) for note in session.block_notes], dtype=str),
            domain=interval(np.array([[begin, end + 1e-3]])),  # the end is not in an interval
        )
    data = Data(**parts)
    data.train_domain = interval(session.train_domain)
    data.valid_domain = interval(session.valid_domain)
    data.test_domain = interval(session.test_domain)
    return data


_ESCAPED = re.compile(r"\\x([0-9a-f]{2})|\\u([0-9a-f]{4})|\\U([0-9a-f]{8})")


def _ascii(text: str) -> str:
    """The text escaped to ASCII, as torch_brain's format requires; `_unescaped` reverses it."""
    return text.replace("\\", r"\x5c").encode("ascii", "backslashreplace").decode()


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1] or match[2] or match[3], 16)), text)


Read = Callable[[h5py.Dataset], NDArray[Any]]


def whole(dataset: h5py.Dataset) -> NDArray[Any]:
    return np.asarray(dataset[:])


def from_hdf5(
    file: h5py.File,
    default_id: str,
    read: Read,
    columns: tuple[int, int] | None,
    repair: bool,
) -> Session:
    """Read a session from the groups `spikes`, `units`, `cursor` and the groups of intervals."""
    notes: list[str] = []
    name = _text(file, "session", "id") or default_id
    cursor_times, pos, vel = _kinematics(_moving(file, notes), name, notes, read, columns, repair)
    times, units = _spikes(file["spikes"], name, notes, read, repair)
    trials = _trials(file, notes)
    domain, (train, valid, test) = _domains(file, cursor_times, trials, notes)
    ours = _text(file, "brainset", "id") == "volition"
    unit_ids = _unit_ids(file["units"]["id"], name)
    return Session(
        session_id=name,
        subject_id=_text(file, "subject", "id") or "unknown",
        unit_ids=tuple(map(_unescaped, unit_ids) if ours else unit_ids),
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
        recorded_at=_date(_text(file, "session", "recording_date")),
        source=_text(file, "brainset", "source") or "unknown",
        block_notes=_block_notes(file, notes) if ours else (),
        notes=tuple(notes),
    )


def _block_notes(file: h5py.File, notes: list[str]) -> tuple[BlockNote, ...]:
    """What people wrote down. Older files have none; unreadable ones are no reason to refuse."""
    if "block_notes" not in file:
        return ()
    try:
        times, texts = file["block_notes"]["timestamps"][:], file["block_notes"]["text"][:]
        return tuple(
            BlockNote(time_s=float(time), text=_unescaped(text.decode()))
            for time, text in zip(times, texts, strict=True)
            if np.isfinite(time)
        )
    except Exception as error:  # h5py and numpy raise many types
        notes.append(f"block_notes can't be read ({error}) and were left out")
        return ()


def _date(text: str | None) -> datetime.datetime | None:
    try:
        date = datetime.datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return None if date == NO_DATE else date


def _moving(file: h5py.File, notes: list[str]) -> h5py.Group:
    """The group with the kinematics: `cursor`, or another of `CURSORS`."""
    moving = [
        name for name in CURSORS
        if name in file and any(_columns_named(file[name], kind) for kind in ("pos", "vel"))
    ]  # fmt: skip
    for name in moving[:1]:
        if name != CURSORS[0]:
            notes.append(f"no cursor in the file; {name} was used instead")
        if moving[1:]:
            notes.append(f"kinematics not used besides {name}: {', '.join(moving[1:])}")
        return file[name]
    raise KeyError(f"no {', '.join(CURSORS)} with pos or vel")


def _columns_named(group: h5py.Group, kind: str) -> str | None:
    names = (kind, f"{kind}_2d", f"{kind}_xy", f"{kind}_3d")
    return next((name for name in names if name in group), None)


def _kinematics(
    cursor: h5py.Group,
    name: str,
    notes: list[str],
    read: Read,
    columns: tuple[int, int] | None,
    repair: bool,
) -> tuple[Floats, Floats, Floats]:
    """Times, position and velocity. A missing velocity is the gradient of position."""
    times = _timestamps(cursor, read)
    found = {kind: _columns_named(cursor, kind) for kind in ("pos", "vel")}
    values = {
        kind: xy_of(_array(cursor, label, read), f"{name}: {cursor.name[1:]} {label}", columns)
        for kind, label in found.items()
        if label
    }
    times, values = finite_samples(times, values, notes)
    if repair and times.ndim == 1:
        times, values = ascending_samples(times, values, notes)
    check_kinematics(name, times, **values)
    if "vel" not in values:
        values["vel"] = velocity_of(values["pos"], times)
        notes.append("velocity is the gradient of position")
    if "pos" not in values:
        values["pos"] = np.zeros_like(values["vel"])
        notes.append("no position recorded; stored as zero")
    peak = float(np.nanquantile(np.abs(values["vel"]), 0.99))
    if peak > FASTEST_HAND:
        notes.append(
            f"{TOO_FAST}{peak:.3g}, too fast for m/s: `volition import {name}.h5 "
            "--unit cm` converts centimetres to metres"
        )
    return times, values["pos"], values["vel"]


def _spikes(
    spikes: h5py.Group, name: str, notes: list[str], read: Read, repair: bool
) -> tuple[Floats, Ints]:
    """Times and unit indices of the spikes, in time order."""
    times = _timestamps(spikes, read)
    units = np.asanyarray(read(spikes["unit_index"]), dtype=np.int64)
    if times.shape == units.shape:  # if not, `check` refuses them
        timed = np.isfinite(times)
        if repair and not timed.all():
            notes.append(f"{int((~timed).sum())} spikes without a finite time were left out")
            times, units = times[timed], units[timed]
        times, units, was_sorted = sorted_spikes(times, units)
        if was_sorted:
            notes.append("spikes were out of order and have been sorted")
    return times, units


def _domains(
    file: h5py.File, cursor_times: Floats, trials: Trials | None, notes: list[str]
) -> tuple[Floats, list[Floats]]:
    """The domain and its train, valid and test parts without gaps; new ones if none are stored."""
    domain = _interval(file, "domain")
    stored = continuous_domain(cursor_times) if domain is None else domain
    domain = without_gaps(stored, cursor_times)
    if len(domain) > len(stored):
        notes.append(f"{len(domain) - len(stored)} gaps in the kinematics cut out of the domains")
    splits = [_interval(file, f"{name}_domain") for name in ("train", "valid", "test")]
    parts = [without_gaps(part, cursor_times) for part in splits if part is not None]
    if len(parts) < 3 or min(map(len, parts)) == 0:
        notes.append("no domains stored; cut 70/10/20 in time order")
        return domain, list(chronological_domains(domain, trials, notes))
    return domain, parts


def _array(group: h5py.Group, name: str, read: Read = whole) -> Floats:
    return np.asanyarray(read(group[name]), dtype=np.float64)


def _timestamps(group: h5py.Group, read: Read) -> Floats:
    """Stored times, or those of a regular series from its sampling rate and start."""
    if "timestamps" in group:
        return _array(group, "timestamps", read)
    rate_hz = group.attrs.get("sampling_rate")
    if rate_hz is None:
        raise KeyError(f"{group.name} has neither timestamps nor a sampling_rate")
    n_samples = max(len(item) for item in group.values() if isinstance(item, h5py.Dataset))
    start = float(group["domain"]["start"][0])
    return np.asarray(start + np.arange(n_samples) / float(rate_hz))


def _edges(group: h5py.Group) -> Floats:
    return np.stack([_array(group, "start"), _array(group, "end")], axis=1)


def _interval(file: h5py.File, name: str) -> Floats | None:
    """The stored intervals in time order, with overlaps merged; None if not stored."""
    if name not in file or "start" not in file[name]:
        return None
    edges = _edges(file[name])
    if not np.isfinite(edges).all():
        raise SessionError(f"{file.filename}: {name} has NaN or infinity; expected finite times")
    edges = edges[np.argsort(edges[:, 0], kind="stable")]
    latest_end = np.maximum.accumulate(edges[:, 1])
    first = np.append(True, edges[1:, 0] >= latest_end[:-1])[: len(edges)]
    return np.stack([edges[first, 0], latest_end[np.roll(first, -1)]], axis=1)


def _trials(file: h5py.File, notes: list[str]) -> Trials | None:
    """Trials in time order, without those that lack a finite start and end."""
    if "trials" not in file or "start" not in file["trials"]:
        return None
    edges = _edges(file["trials"])
    good = np.flatnonzero(np.isfinite(edges).all(axis=1) & (edges[:, 1] > edges[:, 0]))
    if n_bad := len(edges) - len(good):
        notes.append(f"{n_bad} trials without a start and an end were left out")
    if len(good) == 0:
        return None
    good = good[np.argsort(edges[good, 0], kind="stable")]
    if "target_pos" not in file["trials"]:
        return Trials(intervals=edges[good])
    target = _array(file["trials"], "target_pos")
    is_xy = target.ndim == 2 and target.shape[0] == len(edges) and target.shape[1] >= 2
    if not is_xy:
        notes.append(
            f"targets of shape {target.shape} were left out; expected two values per trial"
        )
    elif target.shape[1] > 2:
        notes.append(f"targets have {target.shape[1]} values; the first two were taken as x and y")
    return Trials(intervals=edges[good], target_pos=target[good, :2] if is_xy else None)


def _unit_ids(ids: h5py.Dataset, name: str) -> Iterator[str]:
    if ids.ndim != 1 or len(ids) > MAX_UNITS:
        raise SessionError(
            f"{name}: unit ids have the shape {ids.shape}; expected one per unit, at most "
            f"{MAX_UNITS:,}"
        )
    for value in ids[:]:
        yield value.decode() if isinstance(value, bytes) else str(value)


def _text(file: h5py.File, group: str, name: str) -> str | None:
    if group not in file:
        return None
    value = file[group].attrs.get(name)
    if value is None:
        return None
    return value.decode() if isinstance(value, bytes) else str(value)
