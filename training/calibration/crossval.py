"""A calibration judged on all of its labelled seconds, each by a model that never saw it.

The labelled time is cut into `N_FOLDS` stretches. Each is decoded by a model that learned from the
others, by the same method, checkpoint and method chosen within those; the active decoder decodes
the same instants. So every labelled second helps to decide between the two, and none that decides
chose anything. The decoder that may be promoted comes from all seconds
(`training.calibration.learn`): from more than any of these models, so that it is judged a little
too low rather than too high.

It does not know how models learn (`training.calibration.adapt`) or how errors are weighed
(`decoder.gate`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from decoder.arrays import Floats
from decoder.bundles.bundle import Bundle
from decoder.errors import TrainingError
from decoder.gate import Evidence
from streaming.sessions.intervals import duration_s, intersect, time_after
from streaming.sessions.session import Session
from training.evaluation.offline import Decoded, decode_split

log = logging.getLogger("volition.crossval")

N_FOLDS = 4
APART_S = 0.5  # between what is learned and what is decoded: velocity is alike for so long
SCORE_TICK_S = 0.05
Learn = Callable[[Session, int], Bundle]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Velocities (n, 2) m/s at times (n,): labels, of models that never saw them, of the active."""

    times: Floats
    true: Floats
    candidate: Floats
    active: Floats | None

    def evidence(self) -> Evidence:
        """Their squared errors, for the gate."""
        return Evidence.of(self.true, self.candidate, self.active, tick_s=SCORE_TICK_S)


def folds(session: Session, n_folds: int = N_FOLDS) -> list[Session]:
    """The session `n_folds` times: a stretch to decode (test), the others to learn from (train)."""
    domain = session.train_domain
    edges = [time_after(domain, duration_s(domain) * i / n_folds) for i in range(n_folds + 1)]
    first, last = float(domain[0, 0]), float(domain[-1, 1])
    parts = []
    for start, end in pairwise(edges):
        before = intersect(domain, first, max(first, start - APART_S))
        after = intersect(domain, min(last, end + APART_S), last)
        train, test = np.concatenate([before, after]), intersect(domain, start, end)
        parts.append(replace(session, train_domain=train, test_domain=test))
    return parts


def cross_validate(learn: Learn, session: Session, active: Bundle | None) -> Compared | None:
    """Decode all of a session's training domain by models that never saw it.

    learn: makes a bundle from a session's training domain; also told the fold's number.
    None where no fold is long enough to learn from, or to decode.
    """
    parts: list[Compared] = []
    for number, fold in enumerate(folds(session)):
        try:
            parts.append(_compared(learn(fold, number), fold, active))
        except TrainingError as error:
            log.info("fold %d says nothing: %s", number, error)
    if not parts:
        return None
    known = [part.active for part in parts if part.active is not None]
    return Compared(
        times=np.concatenate([part.times for part in parts]),
        true=np.concatenate([part.true for part in parts]),
        candidate=np.concatenate([part.candidate for part in parts]),
        active=np.concatenate(known) if len(known) == len(parts) else None,
    )


def _compared(made: Bundle, fold: Session, active: Bundle | None) -> Compared:
    after_s = made.manifest.sizes.window_s
    if active is not None:
        after_s = max(after_s, active.manifest.sizes.window_s)
    candidate = decode_split(made, fold, "test", tick_s=SCORE_TICK_S, after_s=after_s)
    other = _decoded(active, fold, after_s)
    return Compared(
        times=candidate.times,
        true=fold.velocity_at(candidate.times),
        candidate=candidate.velocity,
        active=other.velocity if other is not None else None,
    )


def _decoded(active: Bundle | None, fold: Session, after_s: float) -> Decoded | None:
    """By the active decoder; None where there is none, or it knows none of the units."""
    if active is None:
        return None
    try:
        return decode_split(active, fold, "test", tick_s=SCORE_TICK_S, after_s=after_s)
    except TrainingError as error:
        log.info("%s can't be scored: %s", active.path.name, error)
        return None
