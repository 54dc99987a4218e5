"""Recorded sessions on disk, in torch_brain's HDF5 format, without torch.

A session is one continuous recording day: spikes, units, cursor kinematics, trials, and the
stretches of time (domains) that training, validation and test may use. What is written here
opens in `torch_brain.datasets.Dataset`; what `brainsets prepare` writes opens here.

This module does not know where a session came from (see `training.importers`), nor how it
is cut into windows (see `training.windows`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from itertools import pairwise
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from decoder.errors import SessionError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Split = Literal["all", "train", "valid", "test"]

GAP_FACTOR = 5.0  # kinematics samples this many median steps apart leave a gap in the data
MIN_GAP_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Trials:
    """Trials of one session.

    intervals: (n_trials, 2) float64, seconds, start and end of each trial.
    target_pos: (n_trials, 2) float64, metres, or None where the task has no targets.
    """

    intervals: Floats
    target_pos: Floats | None = None


@dataclass(frozen=True, kw_only=True)
class Session:
    """One recorded session, in memory.

    spike_times: (n_spikes,) float64, seconds on the recording's clock, ascending.
    spike_units: (n_spikes,) int64, position in `unit_ids` of each spike's unit.
    cursor_times: (n_samples,) float64, seconds, ascending.
    cursor_pos, cursor_vel: (n_samples, 2) float64, metres and metres per second.
    domain, train_domain, valid_domain, test_domain: (n, 2) float64 intervals, seconds.
    """

    session_id: str
    subject_id: str
    unit_ids: tuple[str, ...]
    spike_times: Floats
    spike_units: Ints
    cursor_times: Floats
    cursor_pos: Floats
    cursor_vel: Floats
    domain: Floats
    train_domain: Floats
    valid_domain: Floats
    test_domain: Floats
    trials: Trials | None = None
    source: str = "unknown"
    notes: tuple[str, ...] = field(default=())

    @property
    def n_units(self) -> int:
        return len(self.unit_ids)

    def intervals(self, split: Split) -> Floats:
        """Intervals (n, 2) of one split, in seconds; `all` is the whole domain."""
        return {
            "all": self.domain,
            "train": self.train_domain,
            "valid": self.valid_domain,
            "test": self.test_domain,
        }[split]

    def spikes_between(self, start_s: float, end_s: float) -> slice:
        """The slice of spikes with `start_s <= time < end_s`."""
        first, last = np.searchsorted(self.spike_times, (start_s, end_s))
        return slice(int(first), int(last))

    def velocity_at(self, times: Floats) -> Floats:
        """Cursor velocity (n, 2) in m/s at `times`, linear between samples."""
        return np.stack(
            [np.interp(times, self.cursor_times, self.cursor_vel[:, axis]) for axis in (0, 1)],
            axis=1,
        )


def duration_s(intervals: Floats) -> float:
    """Seconds that (n, 2) intervals cover together."""
    return float((intervals[:, 1] - intervals[:, 0]).sum())


def within(times: Floats, intervals: Floats, margin_s: float = 0.0) -> NDArray[np.bool_]:
    """Which `times` lie in one of the sorted `intervals`, at least `margin_s` after its start."""
    index = np.searchsorted(intervals[:, 0], times, side="right") - 1
    inside = index >= 0
    safe = np.maximum(index, 0)
    return np.asarray(
        inside & (times < intervals[safe, 1]) & (times - margin_s >= intervals[safe, 0] - 1e-9)
    )


def intersect(intervals: Floats, start_s: float, end_s: float) -> Floats:
    """The parts of `intervals` (n, 2) that lie in [start_s, end_s)."""
    clipped = np.clip(intervals, start_s, end_s)
    return clipped[clipped[:, 1] - clipped[:, 0] > 1e-6]


def continuous_domain(timestamps: Floats) -> Floats:
    """Intervals (n, 2) over which kinematics were sampled without a gap.

    A gap is a step of more than `GAP_FACTOR` median steps and `MIN_GAP_S`.
    """
    steps = np.diff(timestamps)
    step = float(np.median(steps)) if len(steps) else 0.0
    breaks = np.flatnonzero(steps > max(GAP_FACTOR * step, MIN_GAP_S))
    starts = timestamps[np.concatenate(([0], breaks + 1))] - step / 2
    ends = timestamps[np.concatenate((breaks, [len(timestamps) - 1]))] + step / 2
    return np.stack([starts, ends], axis=1)


def chronological_domains(
    domain: Floats, trials: Trials | None, shares: tuple[float, float] = (0.7, 0.1)
) -> tuple[Floats, Floats, Floats]:
    """Cut a domain in time order into train, valid and test parts.

    The cuts stand where `shares` of the domain's seconds have passed, moved to the nearest
    edge of a trial, so that no trial is cut in two (trials that overlap the whole session
    leave the cut where it is).
    """
    cuts = [
        _off_trials(_time_after(domain, share), trials)
        for share in (shares[0], shares[0] + shares[1])
    ]
    low, high = float(domain[0, 0]), float(domain[-1, 1])
    edges = (low, cuts[0], cuts[1], high)
    train, valid, test = (intersect(domain, a, b) for a, b in pairwise(edges))
    if min(map(len, (train, valid, test))) == 0:
        raise SessionError(
            f"a domain of {duration_s(domain):.1f} s can't be cut into 70/10/20 parts between "
            "trials: record more trials, or remove the trials table"
        )
    return train, valid, test


def _time_after(domain: Floats, share: float) -> float:
    lengths = domain[:, 1] - domain[:, 0]
    target = share * lengths.sum()
    before = np.concatenate(([0.0], np.cumsum(lengths)))
    index = min(int(np.searchsorted(before, target, side="right")) - 1, len(domain) - 1)
    return float(domain[index, 0] + target - before[index])


def _off_trials(time_s: float, trials: Trials | None) -> float:
    if trials is None or len(trials.intervals) == 0:
        return time_s
    start, end = trials.intervals[:, 0], trials.intervals[:, 1]
    edges = np.unique(trials.intervals)
    inside = ((edges[:, None] > start) & (edges[:, None] < end)).any(axis=1)
    free = edges[~inside]
    return float(free[np.argmin(np.abs(free - time_s))])


def sorted_spikes(times: Floats, units: Ints) -> tuple[Floats, Ints, bool]:
    """Spikes in time order, and whether they had to be sorted."""
    if len(times) < 2 or bool((np.diff(times) >= 0).all()):
        return times, units, False
    order = np.argsort(times, kind="stable")
    return times[order], units[order], True


def check(session: Session) -> Session:
    """Return `session` if it holds together, raise SessionError with what doesn't."""
    name = session.session_id
    n_samples = len(session.cursor_times)
    if session.n_units == 0:
        raise SessionError(f"{name}: no units; expected at least one sorted or thresholded unit")
    if len(set(session.unit_ids)) != session.n_units:
        raise SessionError(f"{name}: unit ids repeat; each unit needs an id of its own")
    if len(session.spike_times) != len(session.spike_units):
        raise SessionError(
            f"{name}: {len(session.spike_times)} spike times but "
            f"{len(session.spike_units)} unit indices; expected as many"
        )
    if n_samples < 2:
        raise SessionError(f"{name}: {n_samples} kinematics samples; expected at least two")
    for label, values in (("pos", session.cursor_pos), ("vel", session.cursor_vel)):
        if values.shape != (n_samples, 2):
            raise SessionError(
                f"{name}: cursor {label} has shape {values.shape}, but there are {n_samples} "
                f"timestamps; expected ({n_samples}, 2)"
            )
        if not np.isfinite(values).all():
            raise SessionError(f"{name}: cursor {label} has NaN or infinity; remove or fill them")
    if not (np.isfinite(session.spike_times).all() and np.isfinite(session.cursor_times).all()):
        raise SessionError(f"{name}: timestamps have NaN or infinity; remove those events")
    if (np.diff(session.spike_times) < 0).any():
        raise SessionError(f"{name}: spike times go backwards; sort them (`sorted_spikes`)")
    if (np.diff(session.cursor_times) <= 0).any():
        raise SessionError(f"{name}: kinematics timestamps don't ascend; sort and deduplicate them")
    if len(session.spike_units) and not (
        session.spike_units.min() >= 0 and session.spike_units.max() < session.n_units
    ):
        raise SessionError(f"{name}: spikes of unit indices outside 0..{session.n_units - 1}")
    return session


def save(session: Session, folder: Path | str) -> Path:
    """Write `session` to `folder/<session_id>.h5` (temporary name, then renamed)."""
    from torch_brain.data import Data

    path = Path(folder) / f"{session.session_id}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    data: Data = _to_data(check(session))
    partial = path.with_suffix(".h5.partial")
    try:
        with h5py.File(partial, "w") as file:
            data.to_hdf5(file)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _to_data(session: Session):  # type: ignore[no-untyped-def]  # torch_brain has no types
    import datetime

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
    parts: dict[str, Any] = dict(  # noqa: C408  # names are torch_brain's
        brainset=BrainsetDescription(
            id="volition",
            origin_version="unknown",
            derived_version="1.0.0",
            source=session.source,
            description="; ".join(session.notes) or "session written by Volition",
        ),
        subject=SubjectDescription(id=session.subject_id, species="UNKNOWN", sex="UNKNOWN"),
        session=SessionDescription(
            id=session.session_id, recording_date=datetime.datetime(1970, 1, 1), task="REACHING"
        ),
        spikes=IrregularTimeSeries(
            timestamps=session.spike_times,
            unit_index=unit_of_spike,
            domain=interval(session.domain),
        ),
        units=ArrayDict(
            id=np.array(session.unit_ids, dtype=str),
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
    data = Data(**parts)
    data.train_domain = interval(session.train_domain)
    data.valid_domain = interval(session.valid_domain)
    data.test_domain = interval(session.test_domain)
    return data


def load(path: Path | str) -> Session:
    """Read a session file; SessionError says what is wrong with one that can't be used."""
    path = Path(path)
    if not path.exists():
        raise SessionError(f"{path}: no such file; expected a session (.h5)")
    try:
        with h5py.File(path, "r") as file:
            session = _from_hdf5(file, path.stem)
    except OSError as error:
        raise SessionError(
            f"{path}: not a readable HDF5 file ({error}); it may be truncated. "
            "Import the recording again"
        ) from error
    except KeyError as error:
        raise SessionError(
            f"{path}: {error.args[0]}; expected spikes, units and cursor as torch_brain stores "
            "them. `volition import` makes such files from NWB and XDF"
        ) from error
    return check(session)


def find(folder: Path | str) -> list[Path]:
    """Session files below `folder` (or the one file that `folder` names), sorted."""
    root = Path(folder)
    paths = [root] if root.is_file() else sorted(root.rglob("*.h5"))
    if not paths:
        raise SessionError(f"{root}: no sessions (*.h5) found; make some with `volition import`")
    return paths


def _from_hdf5(file: h5py.File, default_id: str) -> Session:
    """Read torch_brain's layout: datasets of `spikes`, `units`, `cursor` and interval groups."""
    notes: list[str] = []
    cursor = file["cursor"]
    cursor_times = _timestamps(cursor)
    pos = _array(cursor, "pos") if "pos" in cursor else None
    vel = _array(cursor, "vel") if "vel" in cursor else None
    if pos is None and vel is None:
        raise KeyError("cursor has neither pos nor vel")
    if vel is None:
        assert pos is not None
        vel = np.gradient(pos, cursor_times, axis=0)
        notes.append("velocity is the gradient of position")
    if pos is None:
        pos = np.zeros_like(vel)
        notes.append("no position recorded")

    times, units, was_sorted = sorted_spikes(
        _timestamps(file["spikes"]), file["spikes"]["unit_index"][:].astype(np.int64)
    )
    if was_sorted:
        notes.append("spikes were out of order and have been sorted")
    domain = _interval(file, "domain")
    if domain is None:
        domain = continuous_domain(cursor_times)
    trials = _trials(file)
    splits = [_interval(file, f"{name}_domain") for name in ("train", "valid", "test")]
    if any(part is None or len(part) == 0 for part in splits):
        splits = list(chronological_domains(domain, trials))
        notes.append("no domains stored; cut 70/10/20 in time order")
    train, valid, test = (part for part in splits if part is not None)
    return Session(
        session_id=_text(file, "session", "id") or default_id,
        subject_id=_text(file, "subject", "id") or "unknown",
        unit_ids=tuple(_strings(file["units"]["id"][:])),
        spike_times=times,
        spike_units=units,
        cursor_times=cursor_times,
        cursor_pos=pos[:, :2],
        cursor_vel=vel[:, :2],
        domain=domain,
        train_domain=train,
        valid_domain=valid,
        test_domain=test,
        trials=trials,
        source=_text(file, "brainset", "source") or "unknown",
        notes=tuple(notes),
    )


def _array(group: h5py.Group, name: str) -> Floats:
    return np.asarray(group[name][:], dtype=np.float64)


def _timestamps(group: h5py.Group) -> Floats:
    """Times of an irregular series, or of a regular one from its sampling rate and domain."""
    if "timestamps" in group:
        return _array(group, "timestamps")
    rate_hz = group.attrs.get("sampling_rate")
    if rate_hz is None:
        raise KeyError(f"{group.name} has neither timestamps nor a sampling_rate")
    n_samples = max(len(item) for item in group.values() if isinstance(item, h5py.Dataset))
    start = float(group["domain"]["start"][0])
    return np.asarray(start + np.arange(n_samples) / float(rate_hz))


def _interval(file: h5py.File, name: str) -> Floats | None:
    if name not in file or "start" not in file[name]:
        return None
    edges = np.stack([_array(file[name], "start"), _array(file[name], "end")], axis=1)
    return edges[np.argsort(edges[:, 0], kind="stable")]


def _trials(file: h5py.File) -> Trials | None:
    intervals = _interval(file, "trials")
    if intervals is None or len(intervals) == 0:
        return None
    target = _array(file["trials"], "target_pos") if "target_pos" in file["trials"] else None
    return Trials(intervals=intervals, target_pos=target)


def _strings(values: NDArray[np.generic]) -> Iterator[str]:
    for value in values:
        yield value.decode() if isinstance(value, bytes) else str(value)


def _text(file: h5py.File, group: str, name: str) -> str | None:
    if group not in file:
        return None
    value = file[group].attrs.get(name)
    if value is None:
        return None
    return value.decode() if isinstance(value, bytes) else str(value)


def with_domains(session: Session) -> Session:
    """`session` with its train, valid and test domains cut anew, 70/10/20 in time order."""
    train, valid, test = chronological_domains(session.domain, session.trials)
    return replace(session, train_domain=train, valid_domain=valid, test_domain=test)
