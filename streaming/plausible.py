"""Whether a session can be what happened: do spikes and movement belong together, is it a hand's?

One judge for imports and for recordings. What is odd becomes a note; what can only be a mistake
(another clock, another unit) is refused, with the likely cause.
"""

from __future__ import annotations

import datetime
from dataclasses import replace

import numpy as np

from decoder.errors import SessionError
from streaming.sessions import FASTEST_HAND, TOO_FAST, Floats, Session, duration_s, within

MIN_INSIDE = 0.5  # share of the spikes in the kinematics' time span
NOTED_OUTSIDE = 0.01
SILENT_S = 2.0  # without a spike of any unit; longer if spikes are few
SILENT_SPIKES = 50.0  # that would have come meanwhile
WIDEST_M = 2.0  # workspace of a hand
NOTED_MISSING = 0.01
EPOCH_S = 1e9  # stamps above it are Unix time: 2001
SCALES = {
    1e3: "milliseconds",
    1e6: "microseconds",
    3e4: "samples of 30 kHz",
    2.4414e4: "samples of 24.4 kHz",
}


def judged(session: Session, *, sure_of_unit: bool = False, sure_of_times: bool = False) -> Session:
    """The session with notes on what is odd. Raises SessionError if it can't be what happened.

    sure_of_unit: somebody said which unit of length it is; sizes no hand has are only noted.
    sure_of_times: somebody said that most spikes may lie outside the kinematics.
    """
    notes = [*session.notes]
    _judge_overlap(session, notes, sure_of_times)
    _judge_silence(session, notes, sure_of_times)
    _judge_rate(session, notes)
    _judge_trials(session, notes)
    _judge_size(session, notes, sure_of_unit)
    return replace(session, notes=tuple(notes))


def _judge_overlap(session: Session, notes: list[str], sure: bool) -> None:
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
            + _likely_cause(times, low, high)
        )
    notes.append(seen)


def _likely_cause(times: Floats, low: float, high: float) -> str:
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
            return f"The spike times look like {name}: import with `--spike-unit {word}`"
    if ends > 1000:
        return (
            "The spike times look like samples: import with `--spike-unit RATE`, samples per second"
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
        return
    seen = " and ".join(too_large)
    if not sure:
        raise SessionError(
            f"{session.session_id}: {seen}, which no hand does (up to {FASTEST_HAND:g} m/s and "
            f"{WIDEST_M:g} m); is it in another unit? Say which with `--unit` (cm, mm, or metres "
            "in one unit; m if it is right), or let the sender name it"
        )
    notes.append(f"{seen}, more than a hand does; taken as said")
