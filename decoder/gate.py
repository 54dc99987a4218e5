"""The promotion gate: is the candidate decoder better than the active one, and how sure is that?

Both decode the same labelled data; the candidate decodes them with models that were not trained on
them. Squared errors are summed over blocks of `BLOCK_S`, longer than the autocorrelation of the
errors, and compared in pairs, because a block that is hard for one decoder is hard for the other.
The difference in R² has a confidence interval over blocks (a ratio estimate with Student's t;
Cochran, Sampling Techniques, 1977, 6.4), widened if neighbouring blocks are still correlated.

    promote     better: the interval is above zero, and the lower bound of R² above `LEAST_R2`
    reject      worse: the interval is below zero; or no better than chance
    undecided   the data are not enough to tell

Without labels (`judge_unlabelled`), a candidate is judged by how far the states of both decoders
are from those of the days that they know (`decoder.usual`), and by how alike their velocities are.

The data come from `training.calibration.crossval` and `server.calibration.shadow`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, Self

import numpy as np

from decoder.arrays import Floats

Answer = Literal["promote", "reject", "undecided"]

BLOCK_S = 2.0  # the errors of reach decoders are correlated over 0.2 to 0.5 s
MIN_BLOCKS = 5  # fewer give no estimate of their spread
CONFIDENCE = 0.95  # of each bound: that a promoted decoder is better, a rejected one worse
LEAST_R2 = 0.1  # a decoder trained on shuffled labels scores about 0
# Without labels.
LEAST_UNLABELLED_S = 10.0
CHANGED = (
    4.0  # distance of the active decoder, in limits; `align` may cost more than it gains below
)
NEARER = 0.5  # the greatest distance of the candidate beyond its limit, of the active decoder's
LEAST_AGREEMENT = 0.5  # correlation of both velocities
SAME = 0.98  # correlation of velocities between which there is nothing to gain
SPEED_RATIOS = 0.5, 2.0  # mean speed of the candidate, relative to that of the active decoder


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with a lower and an upper bound, each at confidence `CONFIDENCE`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Squared errors of two decoders at the same instants, summed over blocks; (n_blocks,) each.

    seconds: length of each block. total: squared deviation of the true velocity from its mean.
    candidate, active: squared errors; `active` is None if it knows none of the units.
    """

    seconds: Floats
    total: Floats
    candidate: Floats
    active: Floats | None

    @classmethod
    def none(cls) -> Self:
        """Evidence without data."""
        empty = np.empty(0)
        return cls(seconds=empty, total=empty, candidate=empty, active=empty)

    @classmethod
    def of(cls, true: Floats, candidate: Floats, active: Floats | None, *, tick_s: float) -> Self:
        """Evidence from velocities (n, 2) at successive instants, `tick_s` apart except for gaps.

        The blocks have equal length, at least `BLOCK_S`.
        """
        if len(true) == 0:
            return cls.none()
        n_blocks = max(1, int(len(true) * tick_s / BLOCK_S + 1e-6))
        block = np.arange(len(true)) * n_blocks // len(true)

        def summed(errors: Floats) -> Floats:
            return np.bincount(block, weights=np.square(errors).sum(axis=1)).astype(np.float64)

        return cls(
            seconds=np.bincount(block).astype(np.float64) * tick_s,
            total=summed(true - true.mean(axis=0)),
            candidate=summed(true - candidate),
            active=None if active is None else summed(true - active),
        )

    def __add__(self, other: Evidence) -> Evidence:
        """Combine both. If one of them lacks the active decoder, so does the sum."""
        if not len(self.seconds) or not len(other.seconds):
            return self if len(self.seconds) else other
        known = self.active is not None and other.active is not None
        return Evidence(
            seconds=np.append(self.seconds, other.seconds),
            total=np.append(self.total, other.total),
            candidate=np.append(self.candidate, other.candidate),
            active=np.append(self.active, other.active) if known else None,  # type: ignore[arg-type]
        )

    def as_lists(self) -> dict[str, list[float] | None]:
        """The evidence as lists for JSON; the inverse of `from_lists`."""
        return {name: None if v is None else v.tolist() for name, v in vars(self).items()}

    @classmethod
    def from_lists(cls, lists: dict[str, Any]) -> Self:
        """Evidence from the lists of `as_lists`."""
        arrays: dict[str, Any] = {n: None if v is None else np.array(v) for n, v in lists.items()}
        return cls(**arrays)

    @property
    def compared_s(self) -> float:
        """Length of the scored data, s."""
        return float(self.seconds.sum())

    def r2(self) -> Interval:
        """R² of the candidate, both axes pooled."""
        return _ratio(self.total - self.candidate, self.total)

    def active_r2(self) -> float | None:
        """R² of the active decoder, both axes pooled; None if it was not compared."""
        return None if self.active is None else _ratio(self.total - self.active, self.total).value

    def better_by(self) -> Interval | None:
        """R² of the candidate minus R² of the active decoder; None if that was not compared."""
        return None if self.active is None else _ratio(self.active - self.candidate, self.total)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The gate's answer, with the reason as text."""

    answer: Answer
    why: str


def judge(evidence: Evidence, where: str) -> Verdict:
    """Decide between candidate and active decoder. where: a name of the data, for messages."""
    seconds, n_blocks = evidence.compared_s, len(evidence.seconds)
    if n_blocks < MIN_BLOCKS:
        return Verdict(
            answer="undecided",
            why=f"{seconds:.1f} s of {where} are too few to decide, expected "
            f"at least {MIN_BLOCKS * BLOCK_S:g} s; collect longer",
        )
    r2, better = evidence.r2(), evidence.better_by()
    if not r2.value >= LEAST_R2:  # also true of NaN
        return Verdict(
            answer="reject",
            why=f"R² {r2.value:.3f} on {where}, expected at least {LEAST_R2:g}: spikes and labels "
            "hardly correlate; check both streams, or collect longer",
        )
    compared = (
        ""
        if better is None
        else (
            f"R² {r2.value:.3f} on {seconds:.0f} s of {where}, the active decoder has "
            f"{evidence.active_r2():.3f}: better by {_text(better)}"
        )
    )
    if better is not None and not (better.high >= 0 and math.isfinite(better.value)):
        return Verdict(answer="reject", why=compared)
    if not r2.low >= LEAST_R2:
        return Verdict(
            answer="undecided",
            why=f"R² {_text(r2)} on {seconds:.0f} s of {where} may be chance; collect longer",
        )
    if better is not None and not better.low > 0:
        return Verdict(
            answer="undecided", why=f"{compared}; the data are too few to tell, collect longer"
        )
    return Verdict(answer="promote", why="")


def decide(held_out: Evidence, live: Evidence, doubts: Sequence[str] = ()) -> Verdict:
    """Decide on all labelled data, of the calibration and of the live stream after it.

    A candidate that is worse on the live stream alone is rejected, whatever its cross-validation.
    doubts: possible problems with the data; with any doubt, promotion is left to the operator.
    """
    alone = judge(live, "the live stream")
    if alone.answer == "reject":
        return alone
    where = "the calibration" + (" and the live stream" if len(live.seconds) else "")
    verdict = judge(held_out + live, where)
    if verdict.answer == "promote" and doubts:
        return Verdict(answer="undecided", why="; ".join(doubts))
    return verdict


@dataclass(frozen=True, kw_only=True)
class Unlabelled:
    """What the spikes alone tell about two decoders, on seconds that the candidate has not seen.

    candidate, active: distances in nats of their states from those of the days that they know.
    active_all: the same on all of the data, of which the active decoder has seen none. Distances of
        few seconds are too large by chance, and too large for the limit.
    candidate_limit, active_limit: nats; beyond them, the neurons count as changed.
    agreement: correlation of both velocities, both axes pooled.
    speed_ratio: mean speed of the candidate, relative to that of the active decoder.
    A value is None if it can't be known: another family, an older bundle, no known unit.
    """

    seconds: float
    candidate: float | None
    candidate_limit: float | None
    active: float | None
    active_all: float | None
    active_limit: float | None
    agreement: float | None
    speed_ratio: float | None


def judge_unlabelled(found: Unlabelled, doubts: Sequence[str] = ()) -> Verdict:
    """Decide without labels. doubts: as for `decide`."""

    def undecided(why: str) -> Verdict:
        return Verdict(answer="undecided", why=why)

    if found.seconds < LEAST_UNLABELLED_S:
        return undecided(
            f"{found.seconds:.1f} s without labels are too few to decide, expected at least "
            f"{LEAST_UNLABELLED_S:g} s; collect longer"
        )
    if found.active is None or found.active_all is None or found.active_limit is None:
        return undecided("the active decoder does not know its usual states, or today's units")
    if found.candidate is None or found.candidate_limit is None:
        return undecided("the candidate does not know its usual states, or today's units")
    distances = (
        f"on {found.seconds:.0f} s without labels, the distance of the candidate is "
        f"{found.candidate:.2f}, and that of the active decoder {found.active:.2f} "
        f"(limit {found.active_limit:.2f})"
    )
    if found.active_all <= CHANGED * found.active_limit:
        return undecided(
            f"the distance of the active decoder is {found.active_all:.2f} on all of the data, "
            f"expected more than {CHANGED * found.active_limit:.2f} ({CHANGED:g} times its limit): "
            "the neurons have changed too little to gain without labels"
        )
    if not found.candidate <= found.active:  # also true of NaN
        return Verdict(answer="reject", why=f"{distances}: it is farther from the known days")
    if found.candidate > max(NEARER * found.active, found.candidate_limit):
        return undecided(f"{distances}: not near enough to the known days; collect longer")
    agreement, ratio = found.agreement or 0.0, found.speed_ratio or 0.0
    if not agreement >= LEAST_AGREEMENT:  # also true of NaN
        return undecided(
            f"the velocities of both decoders correlate by {agreement:.2f}, expected at least "
            f"{LEAST_AGREEMENT:g}; compare them in use"
        )
    if agreement >= SAME:
        return undecided(
            f"the velocities of both decoders correlate by {agreement:.2f}: they are nearly the "
            "same, so there is little to gain without labels"
        )
    if not SPEED_RATIOS[0] <= ratio <= SPEED_RATIOS[1]:
        return undecided(
            f"the candidate is {ratio:.2f} times as fast as the active decoder, expected "
            f"{SPEED_RATIOS[0]:g} to {SPEED_RATIOS[1]:g} times; compare them in use"
        )
    if doubts:
        return undecided("; ".join(doubts))
    return Verdict(
        answer="promote", why=f"{distances}; both velocities correlate by {agreement:.2f}"
    )


def _text(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _ratio(parts: Floats, wholes: Floats) -> Interval:
    """The sum of `parts` over the sum of `wholes`, (n_blocks,) each, with confidence interval."""
    whole, n = float(wholes.sum()), len(parts)
    if n < 2 or not whole > 0 or not np.isfinite(parts).all():
        return Interval(value=math.nan, low=-math.inf, high=math.inf)
    value = float(parts.sum()) / whole
    residual = parts - value * wholes
    variance = float(residual @ residual) * n / (n - 1)
    alike = float(residual[1:] @ residual[:-1]) / max(float(residual @ residual), 1e-300)
    variance *= 1.0 + 2.0 * max(0.0, alike + 1.0 / n)  # the estimate is biased low by 1/n
    margin = student_t(CONFIDENCE, n - 1) * math.sqrt(variance) / whole
    return Interval(value=value, low=value - margin, high=value + margin)


def student_t(probability: float, freedom: int) -> float:
    """Quantile of Student's t, within 1 % for `freedom` >= 4 (Abramowitz & Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(probability)
    terms: tuple[float, ...] = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return float(z + sum(term / freedom**power for power, term in enumerate(terms, 1)))
