"""Assembles a session from the parts of a foreign file. Every repair is noted."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from decoder.arrays import Floats, Ints
from decoder.errors import ImportFailedError, SessionError
from streaming.recording.markers import block_notes_of
from streaming.sessions.checks import check
from streaming.sessions.intervals import continuous_domain, with_domains
from streaming.sessions.kinematics import velocity_of
from streaming.sessions.plausible import AGREES, FOLLOWS, STRANGE, agreement, judged
from streaming.sessions.session import Session, Trials, sorted_spikes
from streaming.sessions.stamps import in_order, placed
from training.conversion.options import ImportOptions
from training.conversion.track import Track

LONGEST_ID = 100  # characters of a session id


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The contents of a file, as its reader found them.

    position, velocity: each with its own timestamps; one of them may be None.
    cuts: (n, 2) intervals in seconds without spike recording.
    arbitrary: the kinematics are in arbitrary units.
    can_convert: the format may store spike times in units other than seconds.
    written: times, s, and texts of notes that people wrote during the recording.
    """

    path: Path
    session_id: str
    subject_id: str
    recorded_at: datetime.datetime | None
    source: str
    unit_ids: list[str]
    unit_times: list[Floats]
    position: Track | None
    velocity: Track | None
    trials: Trials | None
    notes: list[str]
    arbitrary: bool = False
    cuts: tuple[tuple[float, float], ...] = ()
    can_convert: bool = False
    written: list[tuple[float, str]] = field(default_factory=list)


def assemble(parts: Parts, options: ImportOptions) -> Session:
    """Make a session of a file's parts. Raises ImportFailedError if that is impossible."""
    notes, path = parts.notes, parts.path
    unit_times = _finite(parts.unit_times, notes)
    unit_ids, unit_times = _drop_empty_units(path, parts.unit_ids, unit_times, notes)
    cursor_times, pos, vel = _kinematics(path, parts.position, parts.velocity, notes)
    domain = continuous_domain(cursor_times)
    if len(domain) > 1:
        notes.append(f"{len(domain) - 1} gaps in the kinematics; no window spans a gap")
    domain = _without(domain, parts.cuts)
    if len(domain) == 0:
        raise ImportFailedError(
            f"{path}: spikes and kinematics were never recorded at the same time; expected them to "
            "overlap. Check that both are on one clock. Notes: " + "; ".join(notes)
        )
    times, units = _merge(unit_times, notes)
    session_id = clean_id(parts.session_id)
    if session_id != parts.session_id:
        notes.append(f"session {parts.session_id[:200]!r} was renamed to {session_id}")
    session = Session(
        session_id=session_id,
        subject_id=parts.subject_id,
        unit_ids=tuple(unit_ids),
        spike_times=times,
        spike_units=units,
        cursor_times=cursor_times,
        cursor_pos=pos,
        cursor_vel=vel,
        domain=domain,
        train_domain=domain,
        valid_domain=domain,
        test_domain=domain,
        trials=parts.trials,
        recorded_at=parts.recorded_at,
        source=parts.source,
        block_notes=block_notes_of(parts.written, cursor_times, notes),
        notes=tuple(notes),
    )
    sure = options.unit is not None or parts.arbitrary
    try:
        session = judged(
            check(session), sure_of_unit=sure, sure_of_times=options.spikes_outside,
            can_convert=parts.can_convert, compared=True,
        )  # fmt: skip
        return with_domains(session)
    except SessionError as error:
        raise ImportFailedError(f"{path}: {error}") from error


def clean_id(name: str) -> str:
    """Turn a name into a session id that is a valid file name."""
    return re.sub(r"[^\w.-]+", "_", name)[:LONGEST_ID].strip("_.") or "session"


def _without(domain: Floats, cuts: tuple[tuple[float, float], ...]) -> Floats:
    """The domain without the intervals in `cuts`."""
    for start, end in cuts:
        left, right = domain.copy(), domain.copy()
        left[:, 1], right[:, 0] = np.minimum(left[:, 1], start), np.maximum(right[:, 0], end)
        both = np.concatenate([left, right])
        both = both[both[:, 1] - both[:, 0] > 0]
        domain = both[np.argsort(both[:, 0], kind="stable")]
    return domain


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


def _kinematics(
    path: Path, position: Track | None, velocity: Track | None, notes: list[str]
) -> tuple[Floats, Floats, Floats]:
    """Ascending times (n,), and finite position and velocity (n, 2) at those times."""
    reference = velocity or position
    assert reference is not None
    times = reference.times
    vel = velocity.values if velocity else None
    pos = None
    if position is not None:
        pos = position.values if velocity is None else _at_times(times, position, notes)
    times, pos, vel = _clean(path, times, pos, vel, notes)
    if vel is None:
        assert pos is not None
        vel = velocity_of(pos, times)
        notes.append("velocity is the gradient of position")
    elif pos is None:
        pos = np.zeros_like(vel)
        notes.append("no position in the file; stored as zero")
    elif position is not None and velocity is not None:
        _compare(path, position.name, velocity.name, times, pos, vel, notes)
    return times, pos, vel


def _at_times(wanted: Floats, position: Track, notes: list[str]) -> Floats:
    """Position interpolated at the velocity's times; NaN in gaps of the position."""
    times, pos = position.times, position.values
    if np.array_equal(times, wanted, equal_nan=True):
        return pos
    notes.append("position and velocity have different timestamps; position was interpolated")
    good = np.flatnonzero(np.isfinite(times) & np.isfinite(pos).all(axis=1))
    good = good[placed(times[good])]
    if len(good) < 2:
        return np.full((len(wanted), 2), np.nan)
    at = np.stack([np.interp(wanted, times[good], pos[good, axis]) for axis in (0, 1)], axis=1)
    intervals = continuous_domain(times[good])
    index = np.searchsorted(intervals[:, 0], wanted, side="right") - 1
    inside = (index >= 0) & (wanted <= intervals[np.maximum(index, 0), 1])
    return np.where(inside[:, None], at, np.nan)


def _clean(
    path: Path, times: Floats, pos: Floats | None, vel: Floats | None, notes: list[str]
) -> tuple[Floats, Floats | None, Floats | None]:
    """Finite samples only, at ascending times."""
    columns = np.concatenate([v for v in (pos, vel) if v is not None], axis=1)
    good = np.flatnonzero(np.isfinite(times) & np.isfinite(columns).all(axis=1))
    if n_bad := len(times) - len(good):
        notes.append(f"{n_bad} kinematics samples with NaN were left out")
    try:
        kept, at = in_order(times[good], notes)
    except SessionError as error:
        raise ImportFailedError(f"{path}: {error}") from error
    rows = good[kept]
    return at, None if pos is None else pos[rows], None if vel is None else vel[rows]


def _compare(
    path: Path, pos_name: str, vel_name: str, times: Floats, pos: Floats, vel: Floats,
    notes: list[str],
) -> None:  # fmt: skip
    """Check that velocity is the gradient of position, in size and in shape.

    Raises ImportFailedError if they differ by a factor; notes if they don't correlate.
    """
    found = agreement(pos, vel, times)
    if found is None:
        return
    correlation, ratio = found
    if correlation > FOLLOWS and not 1 / AGREES < ratio < AGREES:
        raise ImportFailedError(
            f"{path}: {vel_name} is {ratio:.3g} times the gradient of {pos_name}: the same "
            "movement in different units. Import one of them (`--velocity none` or "
            "`--position none`), or correct the unit in the file"
        )
    if correlation < STRANGE:
        notes.append(
            f"{vel_name} doesn't follow {pos_name} (correlation {correlation:.2f}): do both belong "
            "to one effector, with columns in the same order?"
        )


def _merge(unit_times: list[Floats], notes: list[str]) -> tuple[Floats, Ints]:
    """The spikes of all units in one ascending array, with each spike's unit."""
    times = np.concatenate(unit_times)
    units = np.repeat(np.arange(len(unit_times)), [len(t) for t in unit_times])
    if any((np.diff(t) < 0).any() for t in unit_times):
        notes.append("spikes of some units were out of order and were sorted")
    times, units, _ = sorted_spikes(times, units)
    return times, units
