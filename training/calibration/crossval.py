"""Cross-validation of a calibration on all of its labelled seconds.

The labelled time is split into `N_FOLDS` folds. Each fold is decoded by a model trained on the
others with the same method, with checkpoint and method chosen within those. The active decoder
decodes the same instants. So every labelled second contributes to the comparison, and none of them
was used to train or choose the model that decodes it. The candidate is trained on all seconds
(`training.calibration.candidate`), more than any of these models, so the estimate is conservative.
In a session of several blocks only the recent ones are folds; every model trains on the older ones.

Without labels, the last third of the data is held out (`held_out_third`), and both decoders are
compared on it by their states and velocities (`without_labels`).

Training is in `training.calibration.adapt`, the decision in `decoder.gate`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from decoder.arrays import Floats
from decoder.bundles.bundle import Bundle
from decoder.errors import TrainingError
from decoder.gate import Evidence, Unlabelled
from decoder.runtimes.base import Runtime
from decoder.traces import Traces
from streaming.sessions.intervals import duration_s, intersect, time_after
from streaming.sessions.session import Session
from training.calibration.blocks import recent
from training.evaluation.offline import Decoded, decode_split

log = logging.getLogger("volition.crossval")

N_FOLDS = 4
APART_S = 0.5  # gap between training and test data, as velocity is autocorrelated
SCORE_TICK_S = 0.05
STATES_TICK_S = 0.2  # if only the states matter; they are as many at any tick
THIRD = 1 / 3  # share of the data that a candidate without labels is judged on
Learn = Callable[[Session, int], Bundle]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Velocities (n, 2) m/s at times (n,): labels, cross-validated models, active decoder."""

    times: Floats
    true: Floats
    candidate: Floats
    active: Floats | None
    tick_s: float = SCORE_TICK_S

    def evidence(self) -> Evidence:
        """The squared errors, for the gate."""
        return Evidence.of(self.true, self.candidate, self.active, tick_s=self.tick_s)

    def traces(self, session: Session) -> Traces:
        """The velocities, at times since the start of the data that judge."""
        return Traces(
            times=_since_start(self.times, session), true=self.true, candidate=self.candidate,
            active=self.active, tick_s=self.tick_s,
        )  # fmt: skip


def folds(session: Session, n_folds: int = N_FOLDS) -> list[Session]:
    """One session per fold: a part of the training domain is the test domain, the rest trains."""
    domain, judged = session.train_domain, recent(session)
    edges = [time_after(judged, duration_s(judged) * i / n_folds) for i in range(n_folds + 1)]
    first, last = float(domain[0, 0]), float(domain[-1, 1])
    parts = []
    for start, end in pairwise(edges):
        before = intersect(domain, first, max(first, start - APART_S))
        after = intersect(domain, min(last, end + APART_S), last)
        train, test = np.concatenate([before, after]), intersect(judged, start, end)
        parts.append(replace(session, train_domain=train, test_domain=test))
    return parts


def cross_validate(
    learn: Learn,
    session: Session,
    active: Bundle | None,
    *,
    compares: bool = True,
    tick_s: float = SCORE_TICK_S,
    at_most_s: float = math.inf,
    opened: dict[str, Runtime] | None = None,
    on_learned: Callable[[int], None] = lambda number: None,
) -> Compared | None:
    """Decode a session's recent training domain with models trained on the other folds.

    learn: makes a bundle from a fold's training domain; called with the fold and its number.
    compares: whether to decode; if not, the models are only trained.
    tick_s: between the instants that are compared.
    at_most_s: of labels that are compared, the first of each fold.
    opened: see `decode_split`.
    on_learned: called with the number of a fold before it is decoded.
    Returns None if no fold is long enough to train on and decode, or none is decoded.
    """
    opened = {} if opened is None else opened
    parts: list[Compared] = []
    for number, fold in enumerate(folds(session)):
        try:
            made = learn(fold, number)
            if not compares:
                continue
            on_learned(number)
            test = fold.test_domain
            if (most_s := at_most_s / N_FOLDS) < duration_s(test):
                compared = intersect(test, test[0, 0], time_after(test, most_s))
                fold = replace(fold, test_domain=compared)
            parts.append(_compared(made, fold, active, tick_s, opened))
        except TrainingError as error:
            log.info("fold %d was skipped: %s", number, error)
    if not parts:
        return None
    known = [part.active for part in parts if part.active is not None]
    return Compared(
        times=np.concatenate([part.times for part in parts]),
        true=np.concatenate([part.true for part in parts]),
        candidate=np.concatenate([part.candidate for part in parts]),
        active=np.concatenate(known) if len(known) == len(parts) else None,
        tick_s=tick_s,
    )


def _compared(
    made: Bundle, fold: Session, active: Bundle | None, tick_s: float, opened: dict[str, Runtime]
) -> Compared:
    after_s = made.manifest.sizes.window_s
    if active is not None:
        after_s = max(after_s, active.manifest.sizes.window_s)
    candidate = decode_split(made, fold, "test", tick_s=tick_s, after_s=after_s, opened=opened)
    other = _decoded(active, fold, after_s, tick_s, opened)
    return Compared(
        times=candidate.times,
        true=fold.velocity_at(candidate.times),
        candidate=candidate.velocity,
        active=other.velocity if other is not None else None,
    )


def _decoded(
    active: Bundle | None, fold: Session, after_s: float, tick_s: float, opened: dict[str, Runtime]
) -> Decoded | None:
    """Output of the active decoder; None if there is none, or it knows none of the units."""
    if active is None:
        return None
    try:
        return decode_split(active, fold, "test", tick_s=tick_s, after_s=after_s, opened=opened)
    except TrainingError as error:
        log.info("%s can't be scored: %s", active.path.name, error)
        return None


def held_out_third(session: Session) -> Session:
    """The session with the last third of its recent training domain as test domain."""
    domain, judged = session.train_domain, recent(session)
    cut = time_after(judged, (1 - THIRD) * duration_s(judged))
    train = intersect(domain, float(domain[0, 0]), cut - APART_S)
    test = intersect(judged, cut, float(domain[-1, 1]))
    if len(train) == 0 or len(test) == 0:
        raise TrainingError(
            f"{session.session_id}: {duration_s(domain):.1f} s are too few; collect 60 s"
        )
    return replace(session, train_domain=train, test_domain=test)


def without_labels(
    made: Bundle,
    session: Session,
    active: Bundle | None,
    *,
    opened: dict[str, Runtime] | None = None,
) -> tuple[Unlabelled, Traces]:
    """Compare a candidate with the active decoder on a session's test domain, by spikes alone.

    opened: see `decode_split`. Returns what was found, and the velocities of both decoders.
    Raises TrainingError if the candidate can't decode the test domain.
    """
    after_s = made.manifest.sizes.window_s
    if active is not None:
        after_s = max(after_s, active.manifest.sizes.window_s)
    opened = {} if opened is None else opened
    candidate = decode_split(
        made, session, "test", tick_s=SCORE_TICK_S, after_s=after_s, opened=opened
    )
    other = _decoded(active, session, after_s, SCORE_TICK_S, opened)
    seconds = len(candidate.times) * SCORE_TICK_S
    traces = Traces(
        times=_since_start(candidate.times, session), true=None, candidate=candidate.velocity,
        active=other.velocity if other is not None else None, tick_s=SCORE_TICK_S,
    )  # fmt: skip
    if other is None:
        alone = Unlabelled(
            seconds=seconds, candidate=candidate.distance, candidate_limit=candidate.limit,
            active=None, active_all=None, active_limit=None, agreement=None, speed_ratio=None,
        )  # fmt: skip
        return alone, traces
    judged = intersect(session.domain, recent(session)[0, 0], session.test_domain[-1, 1])
    whole = replace(session, test_domain=judged)
    everywhere = _decoded(active, whole, after_s, STATES_TICK_S, opened)
    first, second = candidate.velocity, other.velocity
    power = float(np.square(_centred(first)).sum() * np.square(_centred(second)).sum())
    alike = float((_centred(first) * _centred(second)).sum()) / max(math.sqrt(power), 1e-12)
    speeds = [float(np.linalg.norm(one, axis=1).mean()) for one in (first, second)]
    found = Unlabelled(
        seconds=seconds,
        candidate=candidate.distance,
        candidate_limit=candidate.limit,
        active=other.distance,
        active_all=everywhere.distance if everywhere else None,
        active_limit=other.limit,
        agreement=alike,
        speed_ratio=speeds[0] / max(speeds[1], 1e-9),
    )
    return found, traces


def _since_start(times: Floats, session: Session) -> Floats:
    """Times of a session, counted from the start of its recent training domain."""
    return times - float(recent(session)[0, 0])


def _centred(velocity: Floats) -> Floats:
    return np.asarray(velocity - velocity.mean(axis=0))
