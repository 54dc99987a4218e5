"""Velocity labels of a calibration: the recorded velocity, or an estimate of the intention.

    kinematics      the recorded velocity
    intention       rotated toward the target, zero while holding (ReFIT: Gilja et al. 2012)
    retrospective   toward the acquired target, at the speed of the approach; movement away from
                    the target is left out (Jarosiewicz et al. 2015)
    targets         the decoder's own output, corrected so that each trial ends at its target; no
                    kinematics are used
    decoded         the decoder's own output as it is (self-training); neither kinematics nor
                    targets are used

In closed loop the recorded velocity is the decoder's own output, errors included. `intention`,
`retrospective` and `targets` estimate the user's intention instead, and need trials with targets.
Needs numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from decoder.arrays import Bools, Floats
from decoder.errors import TrainingError
from streaming.sessions.intervals import intersect
from streaming.sessions.session import Session

Labels = Literal["kinematics", "intention", "retrospective", "targets", "decoded"]
LABELS: tuple[Labels, ...] = get_args(Labels)
OWN: tuple[Labels, ...] = ("targets", "decoded")  # made from the decoder's own output
Decode = Callable[[Session], tuple[Floats, Floats]]
HOLD_RADIUS_M = 0.01  # closer to the target counts as holding
REACTION_S = 0.2  # reaction time after a target appears; left out
MIN_KEPT_S = 0.1  # shorter intervals are left out
FARTHEST_M = 10.0  # of a target from the middle of all; no hand or cursor goes farther
LONGEST_STEP_S = 0.2  # between decoded samples; longer is a gap
MAX_OFF = 0.6  # of the distance; a movement that ends farther from where it should is left out
LONGEST_RETURN_S = 6.0  # between trials; after longer pauses the cursor may be anywhere


def relabelled(
    session: Session,
    labels: Labels,
    *,
    hold_radius: float = HOLD_RADIUS_M,
    decode: Decode | None = None,
) -> Session:
    """The session with relabelled velocity, its domains cut to the labelled time; labels from the
    decoder's own output cut only the training domain.

    hold_radius: distance from the target in metres that counts as holding.
    decode: gives the times (n,) and the velocity (n, 2) m/s that the decoder in use makes of a
        session's training domain; needed by `targets` and `decoded`.
    Raises TrainingError if the session has no trials with targets.
    """
    if labels not in LABELS:
        raise TrainingError(f"labels {labels!r}; expected one of {', '.join(LABELS)}")
    if labels == "kinematics":
        return session
    if labels in OWN:
        if decode is None:
            raise TrainingError(f"labels {labels!r} need a decoder that is in use")
        own = moved_by(session, *decode(session))
        return own if labels == "decoded" else _ending_at_targets(own)
    target, in_trial = _targets(session)
    away = target - session.cursor_pos
    distance = np.linalg.norm(away, axis=1)
    toward = away / np.maximum(distance, 1e-9)[:, None]
    speed = np.linalg.norm(session.cursor_vel, axis=1)
    holding = distance < hold_radius
    velocity = np.where(holding[:, None], 0.0, speed[:, None] * toward)
    usable = in_trial
    if labels == "retrospective":
        approach = (session.cursor_vel * toward).sum(axis=1)
        velocity = np.where(holding[:, None], 0.0, np.maximum(approach, 0.0)[:, None] * toward)
        usable = in_trial & (holding | (approach > 0))
    domain, train, valid, test = (
        _runs_of(session.cursor_times, usable, session.intervals(split))
        for split in ("all", "train", "valid", "test")
    )
    if len(train) == 0:
        raise TrainingError(
            f"{session.session_id}: no {MIN_KEPT_S:g} s in a row can be labelled by {labels}; "
            "label by kinematics"
        )
    return replace(
        session, cursor_vel=velocity, domain=domain,
        train_domain=train, valid_domain=valid, test_domain=test,
    )  # fmt: skip


def moved_by(session: Session, times: Floats, velocity: Floats) -> Session:
    """The session as if a cursor had been moved by a decoder: velocity (n, 2) m/s at times (n,)."""
    breaks = np.flatnonzero(np.diff(times) > LONGEST_STEP_S)
    first, last = np.concatenate(([0], breaks + 1)), np.concatenate((breaks, [len(times) - 1]))
    parts = [
        intersect(session.train_domain, times[a], times[b])
        for a, b in zip(first, last, strict=True)
        if times[b] - times[a] >= MIN_KEPT_S
    ]
    return replace(
        session,
        cursor_times=times,
        cursor_vel=velocity,
        cursor_pos=np.cumsum(velocity * _steps(times)[:, None], axis=0),
        train_domain=np.concatenate([np.empty((0, 2)), *parts]),
    )


def _steps(times: Floats) -> Floats:
    """Seconds (n,) that each sample stands for; none after a gap."""
    steps = np.diff(times, prepend=times[:1])
    return np.where(steps > LONGEST_STEP_S, 0.0, steps)


def _ending_at_targets(session: Session) -> Session:
    """A session moved by its decoder, corrected so that each movement ends where it should.

    A movement is a trial, or the way back to the next one. Its velocity is changed in proportion to
    its speed. Movements that would need too much correction are left out.
    """
    times, velocity, pos = (
        session.cursor_times,
        session.cursor_vel.copy(),
        session.cursor_pos.copy(),
    )
    steps = _steps(times)
    usable = np.zeros(len(times), dtype=bool)
    for start_s, end_s, start, target in _movements(session):
        part = slice(*np.searchsorted(times, (start_s, end_s)))
        travelled = np.linalg.norm(velocity[part], axis=1) * steps[part]
        missing = target - start - (velocity[part] * steps[part, None]).sum(axis=0)
        if (
            steps[part].sum() < end_s - start_s - MIN_KEPT_S  # not all of it was decoded
            or travelled.sum() == 0
            or np.linalg.norm(missing) > MAX_OFF * np.linalg.norm(target - start)
        ):
            continue
        share = travelled / travelled.sum() / np.maximum(steps[part], 1e-9)
        velocity[part] += share[:, None] * missing
        pos[part] = start + np.cumsum(velocity[part] * steps[part, None], axis=0)
        usable[part] = True
    train = _runs_of(times, usable, session.train_domain)
    if len(train) == 0:
        raise TrainingError(
            f"{session.session_id}: no decoded movement ends near its target; label by kinematics, "
            "or start from a decoder that works better"
        )
    return replace(session, cursor_vel=velocity, cursor_pos=pos, train_domain=train)


def _movements(session: Session) -> Iterator[tuple[float, float, Floats, Floats]]:
    """Start and end of each movement: times (s), and positions (2,) in m.

    Trials start in the middle of the targets, or where the last one ended: whichever fits the
    decoded movement between trials.
    """
    edges, targets = _trials_with_targets(session)
    low, high = session.train_domain[0, 0], session.train_domain[-1, 1]
    times, pos = session.cursor_times, session.cursor_pos
    at = np.stack([np.interp(edges, times, xy) for xy in pos.T], axis=-1)  # (n, 2 edges, 2)
    back = at[1:, 0] - at[:-1, 1]
    decoded = (edges[:-1, 1] >= low) & (edges[1:, 0] <= high)
    middle = targets.mean(axis=0)
    stays = np.square(back[decoded]).sum()
    goes_back = np.square((back - (middle - targets[:-1]))[decoded]).sum() <= stays
    starts = np.tile(middle, (len(targets), 1))
    if not goes_back:
        starts[1:] = targets[:-1]
    for number, ((start_s, end_s), start, target) in enumerate(
        zip(edges, starts, targets, strict=True)
    ):
        if number or goes_back:  # otherwise the first start is unknown
            yield start_s, end_s, start, target
        if number + 1 < len(edges) and goes_back:
            next_s = edges[number + 1, 0]
            if next_s <= end_s + LONGEST_RETURN_S:
                yield end_s, next_s, target, middle


def _trials_with_targets(session: Session) -> tuple[Floats, Floats]:
    """Intervals (n, 2) in s and targets (n, 2) in m of the trials that have a target.

    Values that were never set (2.7e34 m in one file) are no targets. Raises TrainingError if the
    session has no targets at all.
    """
    trials = session.trials
    if trials is not None and trials.target_pos is not None:
        known = np.isfinite(trials.target_pos).all(axis=1)
        edges, targets = trials.intervals[known], trials.target_pos[known]
        if len(targets):
            near = np.abs(targets - np.median(targets, axis=0)).max(axis=1) < FARTHEST_M
            return edges[near], targets[near]
    raise TrainingError(
        f"{session.session_id} has no trials with targets; send target_x, target_y and trial "
        "markers (docs/STREAMS.md), or label by kinematics"
    )


def _targets(session: Session) -> tuple[Floats, Bools]:
    """Each kinematics sample's target (n, 2), and whether it has one after the reaction time."""
    target = np.zeros((len(session.cursor_times), 2))
    in_trial = np.zeros(len(target), dtype=bool)
    for (start, end), position in zip(*_trials_with_targets(session), strict=True):
        part = slice(*np.searchsorted(session.cursor_times, (start + REACTION_S, end)))
        target[part], in_trial[part] = position, True
    return target, in_trial


def _runs_of(times: Floats, usable: Bools, domain: Floats) -> Floats:
    """Intervals (n, 2) of a domain with usable samples only, at least `MIN_KEPT_S` long."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], usable.astype(int), [0]))))
    runs = [(times[a], times[b - 1]) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    parts = [intersect(domain, a, b) for a, b in runs if b - a >= MIN_KEPT_S]
    return np.concatenate(parts) if parts else np.empty((0, 2))
