"""Checks that the arrays of a session are consistent."""

from __future__ import annotations

import numpy as np

from decoder.arrays import Floats, Ints
from decoder.errors import SessionError
from streaming.sessions.session import Session
from streaming.units import repeated_units

MAX_SPAN_S = 7 * 86_400.0  # torch_brain stores an index entry for every second of the span


def check(session: Session) -> Session:
    """Return `session` unchanged. Raises SessionError if its arrays are inconsistent."""
    name = session.session_id
    _check_units(name, session.unit_ids)
    _check_spikes(name, session.spike_times, session.spike_units, session.n_units)
    check_kinematics(name, session.cursor_times, pos=session.cursor_pos, vel=session.cursor_vel)
    for split in ("all", "train", "valid", "test"):
        _check_intervals(name, split, session.intervals(split))
    _check_span(name, session)
    return session


def _check_span(name: str, session: Session) -> None:
    """Refuse a stray time stamp years away: torch_brain stores an index of every second."""
    written = [note.time_s for note in session.block_notes]
    first = min(session.cursor_times[0], session.domain[0, 0], *written)
    last = max(session.cursor_times[-1], session.domain[-1, 1], *written)
    if last - first > MAX_SPAN_S:
        raise SessionError(
            f"{name}: kinematics, domains and notes span {last - first:.3g} s, from {first:.3f} to "
            f"{last:.3f}; expected at most {MAX_SPAN_S:.0f} s (7 days). Are some time stamps from "
            "another clock, or in another unit?"
        )


def _check_units(name: str, unit_ids: tuple[str, ...]) -> None:
    if not unit_ids:
        raise SessionError(f"{name}: no units; expected at least one sorted or thresholded unit")
    if problem := repeated_units(unit_ids):
        raise SessionError(f"{name}: {problem}")
    if odd := [unit_id for unit_id in unit_ids if not unit_id or "\0" in unit_id]:
        raise SessionError(f"{name}: a unit id is {odd[0][:80]!r}; expected a name")


def _check_spikes(name: str, times: Floats, units: Ints, n_units: int) -> None:
    if times.ndim != 1 or times.shape != units.shape:
        raise SessionError(
            f"{name}: spike times of shape {times.shape} but unit indices of shape "
            f"{units.shape}; expected one of each per spike"
        )
    if not np.isfinite(times).all():
        raise SessionError(f"{name}: spike times have NaN or infinity; remove those spikes")
    if (np.diff(times) < 0).any():
        raise SessionError(f"{name}: spike times are not ascending; sort them (`sorted_spikes`)")
    if len(units) and not (units.min() >= 0 and units.max() < n_units):
        raise SessionError(
            f"{name}: spikes of units {units.min()}..{units.max()}, but there are {n_units} units; "
            f"expected indices in 0..{n_units - 1}"
        )


def check_kinematics(name: str, times: Floats, **columns: Floats) -> None:
    if times.ndim != 1 or len(times) < 2:
        raise SessionError(
            f"{name}: kinematics timestamps of shape {times.shape}; expected at least two, in 1-D"
        )
    for label, values in columns.items():
        if values.shape != (len(times), 2):
            raise SessionError(
                f"{name}: cursor {label} has shape {values.shape}, but there are {len(times)} "
                f"timestamps; expected ({len(times)}, 2)"
            )
        if not np.isfinite(values).all():
            raise SessionError(f"{name}: cursor {label} has NaN or infinity; remove or fill them")
    if not np.isfinite(times).all():
        raise SessionError(
            f"{name}: kinematics timestamps have NaN or infinity; remove those samples"
        )
    if (np.diff(times) <= 0).any():
        raise SessionError(f"{name}: kinematics timestamps don't ascend; sort and deduplicate them")


def _check_intervals(name: str, split: str, intervals: Floats) -> None:
    edges = intervals.ravel()
    if not (len(edges) and np.isfinite(edges).all() and (np.diff(edges) >= 0).all()):
        raise SessionError(
            f"{name}: the {split} domain is empty or out of order; expected finite intervals "
            "that ascend and don't overlap (`with_domains` makes new ones)"
        )
