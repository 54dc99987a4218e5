"""Plausibility checks of a session: do spikes and movement match, and is the movement a hand's?

Imports and recordings use the same checks. An oddity becomes a note. A certain mistake (another
clock, another unit) is refused, with the likely cause.
"""

from __future__ import annotations

import datetime
from dataclasses import replace

import numpy as np

from decoder.arrays import Floats
from decoder.errors import SessionError
from streaming.faults import Faults, faults_of
from streaming.sessions.intervals import duration_s, within
from streaming.sessions.kinematics import velocity_of
from streaming.sessions.layout import FASTEST_HAND, TOO_FAST
from streaming.sessions.session import Session

MIN_INSIDE = 0.5  # least share of the spikes in the kinematics' time span
NOTED_OUTSIDE = 0.01
SILENT_S = 2.0  # a silence of all units is this long, or longer at low rates
SILENT_SPIKES = 50.0  # least number of spikes expected during a silence
WIDEST_M = 2.0  # greatest workspace of a hand
NOTED_MISSING = 0.01
EPOCH_S = 1e9  # greater times are Unix time (after 2001)
TOGETHER = 0.01  # share of spikes that may have the time of another spike of their unit
SAME_S = 1e-6
FAR_TARGETS = 10.0  # greatest distance of targets, relative to that of the position
LEAST_REACH_M = 0.005  # least reach of a moving position
AGREES = 5.0  # greatest ratio of velocity to the gradient of position
FOLLOWS = 0.5  # with a higher correlation, both describe one movement
STRANGE = 0.2  # with a lower one, they don't
IN_SECONDS = "expected seconds; stamp them in seconds, or write the file again"
SCALES = {
    1e3: "milliseconds",
    1e6: "microseconds",
    3e4: "samples of 30 kHz",
    2.4414e4: "samples of 24.4 kHz",
}


def judged(
    session: Session,
    *,
    sure_of_unit: bool = False,
    sure_of_times: bool = False,
    can_convert: bool = False,
    compared: bool = False,
) -> Session:
    """Returns the session with notes on oddities. Raises SessionError if it is implausible.

    sure_of_unit: the unit of length was given, so implausible sizes are only noted.
    sure_of_times: most spikes may lie outside the kinematics (`--spikes-outside`).
    can_convert: whether errors may suggest `--spike-unit` for this file.
    compared: whether velocity has already been compared with position.
    """
    notes = [*session.notes]
    _judge_overlap(session, notes, sure_of_times, can_convert)
    _judge_stamps(session, notes)
    _judge_silence(session, notes, sure_of_times)
    notes += faults_in(session).sentences()
    _judge_rate(session, notes)
    _judge_trials(session, notes)
    _judge_size(session, notes, sure_of_unit)
    _judge_targets(session, notes)
    if not compared:
        _judge_velocity(session, notes)
    return replace(session, notes=tuple(notes))


def faults_in(session: Session) -> Faults:
    """The faulty units of a session, by all of its spikes."""
    return faults_of(session.spike_times, session.spike_units, session.unit_ids)


def agreement(pos: Floats, vel: Floats, times: Floats) -> tuple[float, float] | None:
    """Correlation of velocity with the gradient of position, and the ratio of their sizes.

    Returns None if one of them doesn't move.
    """
    gradient = velocity_of(pos, times)
    power = float((gradient**2).sum()), float((vel**2).sum())
    if not min(power) > 0:
        return None
    correlation = float((gradient * vel).sum()) / float(np.sqrt(power[0] * power[1]))
    return correlation, float(np.sqrt(power[1] / power[0]))


def _judge_overlap(session: Session, notes: list[str], sure: bool, can_convert: bool) -> None:
    times, domain = session.spike_times, session.domain
    low, high = float(domain[0, 0]), float(domain[-1, 1])
    n_inside = int(((times >= low) & (times < high)).sum())
    if len(times) == 0 or n_inside >= (1 - NOTED_OUTSIDE) * len(times):
        return
    share = n_inside / len(times)
    seen = (
        f"{n_inside:,} of {len(times):,} spikes ({share:.1%}) are in the kinematics' time "
        f"span [{low:.3f}, {high:.3f}] s; the spikes' is [{times[0]:.3f}, {times[-1]:.3f}] s"
    )
    if share < MIN_INSIDE and not sure:
        raise SessionError(
            f"{session.session_id}: {seen}; are both on one clock? "
            + _likely_cause(times, low, high, can_convert)
        )
    notes.append(seen)


def _likely_cause(times: Floats, low: float, high: float, can_convert: bool) -> str:
    """The likely cause and remedy for spike times outside the kinematics' span."""
    if min(abs(times[-1]), abs(times[0])) > EPOCH_S > high:
        when = datetime.datetime.fromtimestamp(min(float(times[0]), 4e9), datetime.UTC)
        return (
            f"The spikes look stamped with Unix time ({when:%Y-%m-%d}), the kinematics with "
            "another clock: stamp both with one clock, and write the file again"
        )
    if low > EPOCH_S > times[-1]:
        return (
            "The kinematics look stamped with Unix time, the spikes with another clock: stamp both "
            "with one clock, and write the file again"
        )
    ends = float(times[-1]) / high if high > 0 else 0.0
    for scale, name in SCALES.items():
        if 0.5 * scale < ends < 1.5 * scale:
            word = {1e3: "ms", 1e6: "us"}.get(scale, f"{scale:g}")
            return f"The spike times look like {name}: " + (
                f"import with `--spike-unit {word}`" if can_convert else IN_SECONDS
            )
    if ends > 1000:
        return "The spike times look like samples: " + (
            "import with `--spike-unit RATE`, samples per second" if can_convert else IN_SECONDS
        )
    if times[-1] - times[0] < 1.5 * (high - low):
        return (
            f"They look shifted by {times[0] - low:.1f} s: use one clock for both, and write the "
            "file again"
        )
    return "If kinematics were recorded only for part of the time, add `--spikes-outside`"


def _judge_silence(session: Session, notes: list[str], sure: bool) -> None:
    """Intervals of the domain in which no unit fires."""
    times, domain = session.spike_times, session.domain
    inside = times[within(times, domain)]
    seconds = duration_s(domain)
    if seconds <= 0 or len(inside) == 0:
        raise SessionError(f"{session.session_id}: no spike is in the kinematics' intervals")
    least = max(SILENT_S, SILENT_SPIKES * seconds / len(inside))
    edges = np.sort(np.concatenate([inside, domain.ravel()]))
    starts, lengths = edges[:-1], np.diff(edges)
    silent = (lengths > least) & within(starts + lengths / 2, domain)
    if not silent.any():
        return
    total = float(lengths[silent].sum())
    longest = int(np.argmax(np.where(silent, lengths, 0.0)))
    more = f" (and {silent.sum() - 1} more intervals)" if silent.sum() > 1 else ""
    seen = (
        f"no unit fires for {lengths[longest]:.1f} s from {starts[longest]:.1f} s on{more}, "
        f"{total:.1f} of {seconds:.1f} s in total: lost data, or another clock?"
    )
    if total > (1 - MIN_INSIDE) * seconds and not sure:
        raise SessionError(
            f"{session.session_id}: {seen} Expected spikes throughout; check that their times are "
            "in seconds and on the kinematics' clock, or add `--spikes-outside`"
        )
    notes.append(seen)


def _judge_stamps(session: Session, notes: list[str]) -> None:
    """Spikes with the same time as another spike of their unit, which no neuron fires."""
    order = np.argsort(session.spike_units, kind="stable")
    times, units = session.spike_times[order], session.spike_units[order]
    n_shared = int(((np.diff(times) < SAME_S) & (np.diff(units) == 0)).sum())
    if n_shared > TOGETHER * len(times):
        notes.append(
            f"{n_shared:,} of {len(times):,} spikes have the same time as another spike of their "
            "unit: stamped once per chunk, counted in bins, or stored twice?"
        )


def _judge_rate(session: Session, notes: list[str]) -> None:
    """Missing kinematics samples."""
    steps = np.diff(session.cursor_times)
    usual = float(np.median(steps))
    if usual > 1.0:
        raise SessionError(
            f"{session.session_id}: kinematics are sampled every {usual:.3g} s; expected 10 Hz or "
            "more. Are their times in milliseconds? Write them in seconds"
        )
    near = steps[steps <= max(5 * usual, 0.2)]
    n_missing = int((np.round(near / usual) - 1).clip(0).sum())
    if n_missing > NOTED_MISSING * len(steps):
        notes.append(
            f"about {n_missing} of {len(steps) + n_missing} kinematics samples are missing "
            f"({1 / usual:.0f} Hz); movement is interpolated linearly there"
        )


def _judge_trials(session: Session, notes: list[str]) -> None:
    if session.trials is None:
        return
    low, high = session.domain[0, 0], session.domain[-1, 1]
    start, end = session.trials.intervals.T
    n_outside = int(((end <= low) | (start >= high)).sum())
    if n_outside:
        notes.append(f"{n_outside} of {len(start)} trials lie outside the kinematics")


def _judge_size(session: Session, notes: list[str], sure: bool) -> None:
    speed = float(np.quantile(np.linalg.norm(session.cursor_vel, axis=1), 0.99))
    width = float(np.ptp(np.quantile(session.cursor_pos, (0.005, 0.995), axis=0), axis=0).max())
    too_large = [
        *([f"{TOO_FAST}{speed:.3g} m/s"] if speed > FASTEST_HAND else []),
        *([f"the workspace is {width:.3g} m wide"] if width > WIDEST_M else []),
    ]
    if not too_large:
        _judge_outliers(session, notes)
        return
    seen = " and ".join(too_large)
    if not sure:
        raise SessionError(
            f"{session.session_id}: {seen}, too much for a hand (up to {FASTEST_HAND:g} m/s and "
            f"{WIDEST_M:g} m); is it in another unit? Give it with `--unit` (cm, mm, or metres per "
            "unit; m if it is right), or have the sender name it"
        )
    notes.append(f"{seen}, too much for a hand; the given unit was used")


def _judge_outliers(session: Session, notes: list[str]) -> None:
    """Single implausible samples in a plausible movement, as from lost tracking."""
    speed = np.linalg.norm(session.cursor_vel, axis=1)
    away = np.abs(session.cursor_pos - np.median(session.cursor_pos, axis=0)).max(axis=1)
    wild = (speed > FASTEST_HAND) | (away > WIDEST_M)
    if n_wild := int(wild.sum()):
        notes.append(
            f"{n_wild} of {len(wild)} kinematics samples are implausible for a hand (up to "
            f"{speed.max():.3g} m/s, {away.max():.3g} m from the middle) and were kept: was "
            "tracking lost there?"
        )


def _judge_targets(session: Session, notes: list[str]) -> None:
    if session.trials is None or session.trials.target_pos is None:
        return
    targets, pos = session.trials.target_pos, session.cursor_pos
    targets = targets[np.isfinite(targets).all(axis=1)]
    if len(targets) == 0:
        return
    middle = np.median(pos, axis=0)
    reach = max(float(np.quantile(np.abs(pos - middle), 0.99)), LEAST_REACH_M)
    far = float(np.abs(targets - middle).max())
    if far > FAR_TARGETS * reach:
        notes.append(
            f"targets are up to {far:.3g} m from the middle of the movement, which reaches "
            f"{reach:.3g} m: are they in another unit, or relative to another origin?"
        )


def _judge_velocity(session: Session, notes: list[str]) -> None:
    found = agreement(session.cursor_pos, session.cursor_vel, session.cursor_times)
    if found is None:
        return
    correlation, ratio = found
    if correlation > FOLLOWS and not 1 / AGREES < ratio < AGREES:
        notes.append(
            f"velocity is {ratio:.3g} times the gradient of position, for the same movement: is "
            "one of them in another unit?"
        )
    if correlation < STRANGE:
        notes.append(
            f"velocity doesn't match the movement of position (correlation {correlation:.2f}): are "
            "both of one effector, with their columns in the same order?"
        )
