"""What the velocity of a calibration means: the hand's, or what the person wanted.

    kinematics      the velocity as it was recorded
    intention       turned toward the target, zero while holding (ReFIT: Gilja et al. 2012)
    retrospective   straight toward the target that was acquired, at the speed of the approach;
                    stretches that led away from it are left out (Jarosiewicz et al. 2015)

In closed loop the cursor's velocity is the decoder's own, errors and all; the last two label it
with what its user must have meant. They need trials with targets. numpy only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from decoder.arrays import Bools, Floats
from decoder.errors import TrainingError
from streaming.sessions.intervals import intersect
from streaming.sessions.session import Session

Labels = Literal["kinematics", "intention", "retrospective"]
LABELS: tuple[Labels, ...] = ("kinematics", "intention", "retrospective")
HOLD_RADIUS_M = 0.01  # closer to the target than this is holding
REACTION_S = 0.2  # after a target came on, nobody moves toward it yet
MIN_KEPT_S = 0.1


def relabelled(session: Session, labels: Labels, *, hold_radius: float = HOLD_RADIUS_M) -> Session:
    """The session with another velocity; of each domain only what can be labelled is left.

    hold_radius: metres from the target within which the cursor is held.
    Raises TrainingError where the session has no trials with targets.
    """
    if labels not in LABELS:
        raise TrainingError(f"labels {labels!r}; expected one of {', '.join(LABELS)}")
    if labels == "kinematics":
        return session
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
            f"{session.session_id}: no stretch of {MIN_KEPT_S:g} s can be labelled by its targets"
        )
    return replace(
        session, cursor_vel=velocity, domain=domain,
        train_domain=train, valid_domain=valid, test_domain=test,
    )  # fmt: skip


def _targets(session: Session) -> tuple[Floats, Bools]:
    """Of each kinematics sample: its trial's target (n, 2), and whether it has one, reacted to."""
    trials = session.trials
    if trials is None or trials.target_pos is None:
        raise TrainingError(
            f"{session.session_id} has no trials with targets; send target_x, target_y and trial "
            "markers (docs/STREAMS.md), or label by kinematics"
        )
    target = np.zeros((len(session.cursor_times), 2))
    in_trial = np.zeros(len(target), dtype=bool)
    for (start, end), position in zip(trials.intervals, trials.target_pos, strict=True):
        part = slice(*np.searchsorted(session.cursor_times, (start + REACTION_S, end)))
        if np.isfinite(position).all():
            target[part], in_trial[part] = position, True
    return target, in_trial


def _runs_of(times: Floats, usable: Bools, domain: Floats) -> Floats:
    """Intervals (n, 2) of a domain over which every sample is usable, and long enough."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], usable.astype(int), [0]))))
    runs = [(times[a], times[b - 1]) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    parts = [intersect(domain, a, b) for a, b in runs if b - a >= MIN_KEPT_S]
    return np.concatenate(parts) if parts else np.empty((0, 2))
