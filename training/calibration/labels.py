"""Velocity labels of a calibration: the recorded velocity, or an estimate of the intention.

    kinematics      the recorded velocity
    intention       rotated toward the target, zero while holding (ReFIT: Gilja et al. 2012)
    retrospective   toward the acquired target, at the speed of the approach; movement away from
                    the target is left out (Jarosiewicz et al. 2015)

In closed loop the recorded velocity is the decoder's own output, errors included. The other two
estimate the user's intention instead, and need trials with targets. Needs numpy only.
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
HOLD_RADIUS_M = 0.01  # closer to the target counts as holding
REACTION_S = 0.2  # reaction time after a target appears; left out
MIN_KEPT_S = 0.1  # shorter intervals are left out


def relabelled(session: Session, labels: Labels, *, hold_radius: float = HOLD_RADIUS_M) -> Session:
    """The session with relabelled velocity, its domains cut to the labelled time.

    hold_radius: distance from the target in metres that counts as holding.
    Raises TrainingError if the session has no trials with targets.
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
            f"{session.session_id}: no {MIN_KEPT_S:g} s in a row can be labelled by {labels}; "
            "label by kinematics"
        )
    return replace(
        session, cursor_vel=velocity, domain=domain,
        train_domain=train, valid_domain=valid, test_domain=test,
    )  # fmt: skip


def _targets(session: Session) -> tuple[Floats, Bools]:
    """Each kinematics sample's target (n, 2), and whether it has one after the reaction time."""
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
    """Intervals (n, 2) of a domain with usable samples only, at least `MIN_KEPT_S` long."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], usable.astype(int), [0]))))
    runs = [(times[a], times[b - 1]) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    parts = [intersect(domain, a, b) for a, b in runs if b - a >= MIN_KEPT_S]
    return np.concatenate(parts) if parts else np.empty((0, 2))
