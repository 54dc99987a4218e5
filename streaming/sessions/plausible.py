"""Whether a session can be what happened: do spikes and movement belong together, is it a hand's?

One judge for imports and for recordings. What is odd becomes a note; what can only be a mistake
(another clock, another unit) is refused, with the likely cause.
"""

from __future__ import annotations

import datetime
from dataclasses import replace

import numpy as np

from decoder.arrays import Floats
from decoder.errors import SessionError
from streaming.sessions.intervals import duration_s, within
from streaming.sessions.kinematics import velocity_of
from streaming.sessions.layout import FASTEST_HAND, TOO_FAST
from streaming.sessions.session import Session

MIN_INSIDE = 0.5  # share of the spikes in the kinematics' time span
NOTED_OUTSIDE = 0.01
SILENT_S = 2.0  # without a spike of any unit; longer if spikes are few
SILENT_SPIKES = 50.0  # that would have come meanwhile
WIDEST_M = 2.0  # workspace of a hand
NOTED_MISSING = 0.01
EPOCH_S = 1e9  # stamps above it are Unix time: 2001
TOGETHER = 0.01  # of the spikes may come at the very time of another of their unit
SAME_S = 1e-6
FAR_TARGETS = 10.0  # targets may lie so much further out than the position
LEAST_REACH_M = 0.005  # of a position that moves
AGREES = 5.0  # velocity may be so many times the position's gradient, or less
FOLLOWS = 0.5  # correlation from which on the two are of one movement
STRANGE = 0.2  # and below which they aren't
IN_SECONDS = "expected seconds; have them stamped in seconds, or write the file again"
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
    """The session with notes on what is odd. Raises SessionError if it can't be what happened.

    sure_of_unit: somebody said which unit of length it is; sizes no hand has are only noted.
    sure_of_times: somebody said that most spikes may lie outside the kinematics.
    can_convert: `--spike-unit` can be given for such a file.
    compared: velocity was compared with position already, by the names of their series.
    """
    notes = [*session.notes]
    _judge_overlap(session, notes, sure_of_times, can_convert)
    _judge_stamps(session, notes)
    _judge_silence(session, notes, sure_of_times)
    _judge_rate(session, notes)
    _judge_trials(session, notes)
    _judge_size(session, notes, sure_of_unit)
    _judge_targets(session, notes)
    if not compared:
        _judge_velocity(session, notes)
    return replace(session, notes=tuple(notes))


def agreement(pos: Floats, vel: Floats, times: Floats) -> tuple[float, float] | None:
    """Correlation of velocity with the position's gradient, and how many times as large it is.

    None if one of them doesn't move.
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
    """What may be wrong with spike times that don't meet the kinematics' span, and what to do."""
    if min(abs(times[-1]), abs(times[0])) > EPOCH_S > high:
        when = datetime.datetime.fromtimestamp(min(float(times[0]), 4e9), datetime.UTC)
        return (
            f"The spikes look stamped with Unix time ({when:%Y-%m-%d}), the kinematics with "
            "another clock: stamp both with one, and write the file again"
        )
    if low > EPOCH_S > times[-1]:
        return (
            "The kinematics look stamped with Unix time, the spikes with another clock: stamp both "
            "with one, and write the file again"
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
            f"They look shifted by {times[0] - low:.1f} s: bring both to one clock, and write the "
            "file again"
        )
    return "If the kinematics were recorded for a part of the time only, add `--spikes-outside`"


def _judge_silence(session: Session, notes: list[str], sure: bool) -> None:
    """Stretches of the domain without a spike of any unit."""
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
    more = f" (and {silent.sum() - 1} more stretches)" if silent.sum() > 1 else ""
    seen = (
        f"no unit fires for {lengths[longest]:.1f} s from {starts[longest]:.1f} s on{more}, "
        f"{total:.1f} of {seconds:.1f} s together: lost data, or another clock?"
    )
    if total > (1 - MIN_INSIDE) * seconds and not sure:
        raise SessionError(
            f"{session.session_id}: {seen} Expected spikes throughout; check that their times are "
            "in seconds and on the kinematics' clock, or add `--spikes-outside`"
        )
    notes.append(seen)


def _judge_stamps(session: Session, notes: list[str]) -> None:
    """Spikes that share a stamp with another of their unit, which no neuron fires."""
    order = np.argsort(session.spike_units, kind="stable")
    times, units = session.spike_times[order], session.spike_units[order]
    n_shared = int(((np.diff(times) < SAME_S) & (np.diff(units) == 0)).sum())
    if n_shared > TOGETHER * len(times):
        notes.append(
            f"{n_shared:,} of {len(times):,} spikes come at the very time of another of their "
            "unit: stamped once per chunk, counted in bins, or stored twice?"
        )


def _judge_rate(session: Session, notes: list[str]) -> None:
    """Samples that are missing between others."""
    steps = np.diff(session.cursor_times)
    usual = float(np.median(steps))
    if usual > 1.0:
        raise SessionError(
            f"{session.session_id}: kinematics are sampled every {usual:.3g} s; expected 10 a "
            "second or more. Are their times in milliseconds? Write them in seconds"
        )
    near = steps[steps <= max(5 * usual, 0.2)]
    n_missing = int((np.round(near / usual) - 1).clip(0).sum())
    if n_missing > NOTED_MISSING * len(steps):
        notes.append(
            f"about {n_missing} of {len(steps) + n_missing} kinematics samples are missing "
            f"({1 / usual:.0f} Hz); between their neighbours movement is taken as linear"
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
            f"{session.session_id}: {seen}, which no hand does (up to {FASTEST_HAND:g} m/s and "
            f"{WIDEST_M:g} m); is it in another unit? Say which with `--unit` (cm, mm, or metres "
            "in one unit; m if it is right), or let the sender name it"
        )
    notes.append(f"{seen}, more than a hand does; taken as said")


def _judge_outliers(session: Session, notes: list[str]) -> None:
    """Single samples that no hand has, such as those of lost tracking, in movement that one has."""
    speed = np.linalg.norm(session.cursor_vel, axis=1)
    away = np.abs(session.cursor_pos - np.median(session.cursor_pos, axis=0)).max(axis=1)
    wild = (speed > FASTEST_HAND) | (away > WIDEST_M)
    if n_wild := int(wild.sum()):
        notes.append(
            f"{n_wild} of {len(wild)} kinematics samples are of no hand (up to {speed.max():.3g} "
            f"m/s, {away.max():.3g} m from the middle) and were kept: was tracking lost there?"
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
            f"targets lie up to {far:.3g} m from the middle of the movement, which reaches "
            f"{reach:.3g} m: are they in another unit, or from another origin?"
        )


def _judge_velocity(session: Session, notes: list[str]) -> None:
    found = agreement(session.cursor_pos, session.cursor_vel, session.cursor_times)
    if found is None:
        return
    correlation, ratio = found
    if correlation > FOLLOWS and not 1 / AGREES < ratio < AGREES:
        notes.append(
            f"velocity is {ratio:.3g} times the gradient of position, the same movement: is one of "
            "them in another unit?"
        )
    if correlation < STRANGE:
        notes.append(
            f"velocity isn't the movement of position (correlation {correlation:.2f}): are they of "
            "one effector, and are their columns in one order?"
        )
