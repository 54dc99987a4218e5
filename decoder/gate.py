"""Whether a candidate decoder is better than the active one, and how sure that is.

Both decode the same labelled seconds, none of which the candidate that decodes them has learned
from. Their squared errors are summed over blocks of `BLOCK_S`, longer than errors stay alike, and
compared in pairs: what makes a second hard is hard for both. The difference of R² comes with a
confidence interval over blocks (a ratio estimate with Student's t; Cochran, Sampling Techniques,
1977, 6.4), widened where neighbouring blocks still resemble each other.

    promote     better, with the whole interval above zero, and R² surely above `LEAST_R2`
    reject      worse, with the whole interval below zero, or no better than chance
    undecided   so many seconds can't tell

It does not know where the seconds come from (`training.calibration.crossval`,
`server.calibration.shadow`).
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

BLOCK_S = 2.0  # errors of decoders of reaches are alike for 0.2 to 0.5 s
MIN_BLOCKS = 5  # fewer say nothing of their own spread
CONFIDENCE = 0.95  # that a promoted decoder is better, and that a rejected one is worse
LEAST_R2 = 0.1  # a decoder trained on shuffled labels scores about 0


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with a lower and an upper bound, each kept with a confidence of `CONFIDENCE`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Squared errors of two decoders on the same instants; (n_blocks,) each, sums over a block.

    seconds: that each block holds. total: squared distance of the true velocity from its mean.
    candidate, active: squared errors; `active` is None if it knows none of the units.
    """

    seconds: Floats
    total: Floats
    candidate: Floats
    active: Floats | None

    @classmethod
    def none(cls) -> Self:
        """Of no data."""
        empty = np.empty(0)
        return cls(seconds=empty, total=empty, candidate=empty, active=empty)

    @classmethod
    def of(cls, true: Floats, candidate: Floats, active: Floats | None, *, tick_s: float) -> Self:
        """Of velocities (n, 2) at successive instants, `tick_s` apart where data have no gap.

        All blocks are equally long, `BLOCK_S` at least.
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
        """Of both data. What only one of them compared counts for the candidate alone."""
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
        """For a line of JSON; `from_lists` reads it."""
        return {name: None if v is None else v.tolist() for name, v in vars(self).items()}

    @classmethod
    def from_lists(cls, lists: dict[str, Any]) -> Self:
        """What `as_lists` made."""
        arrays: dict[str, Any] = {n: None if v is None else np.array(v) for n, v in lists.items()}
        return cls(**arrays)

    @property
    def compared_s(self) -> float:
        """Seconds that were scored."""
        return float(self.seconds.sum())

    def r2(self) -> Interval:
        """Of the candidate, both axes together."""
        return _ratio(self.total - self.candidate, self.total)

    def active_r2(self) -> float | None:
        """Of the active decoder."""
        return None if self.active is None else _ratio(self.total - self.active, self.total).value

    def better_by(self) -> Interval | None:
        """The candidate's R² less the active decoder's."""
        return None if self.active is None else _ratio(self.active - self.candidate, self.total)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The gate's answer, and why, for people."""

    answer: Answer
    why: str


def judge(evidence: Evidence, where: str) -> Verdict:
    """Decide between candidate and active decoder. where: the data's name, for people."""
    seconds, n_blocks = evidence.compared_s, len(evidence.seconds)
    if n_blocks < MIN_BLOCKS:
        return Verdict(
            answer="undecided",
            why=f"{seconds:.1f} s of {where} are too few to judge by; expected "
            f"{MIN_BLOCKS * BLOCK_S:g} or more",
        )
    r2, better = evidence.r2(), evidence.better_by()
    if not r2.value >= LEAST_R2:  # NaN isn't either
        return Verdict(
            answer="reject",
            why=f"R² {r2.value:.3f} on {where}, expected {LEAST_R2:g} or more: spikes and labels "
            "have little to do with each other; check both streams, collect longer",
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
        return Verdict(answer="undecided", why=f"{compared}; so many seconds can't tell")
    return Verdict(answer="promote", why="")


def decide(held_out: Evidence, live: Evidence, doubts: Sequence[str] = ()) -> Verdict:
    """Decide by all labelled seconds, of the calibration and of the live stream after it.

    What is worse on the live stream alone is rejected, whatever came before. doubts: what may be
    wrong with the data; with any, nothing is promoted without a person.
    """
    alone = judge(live, "the live stream")
    if alone.answer == "reject":
        return alone
    where = "the calibration" + (" and the live stream" if len(live.seconds) else "")
    verdict = judge(held_out + live, where)
    if verdict.answer == "promote" and doubts:
        return Verdict(answer="undecided", why="; ".join(doubts))
    return verdict


def _text(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"


def _ratio(parts: Floats, wholes: Floats) -> Interval:
    """Sum of `parts` over sum of `wholes`, (n_blocks,) each, with its confidence interval."""
    whole, n = float(wholes.sum()), len(parts)
    if n < 2 or not whole > 0 or not np.isfinite(parts).all():
        return Interval(value=math.nan, low=-math.inf, high=math.inf)
    value = float(parts.sum()) / whole
    residual = parts - value * wholes
    variance = float(residual @ residual) * n / (n - 1)
    alike = float(residual[1:] @ residual[:-1]) / max(float(residual @ residual), 1e-300)
    variance *= 1.0 + 2.0 * max(0.0, alike + 1.0 / n)  # estimates of it are 1/n too low
    margin = student_t(CONFIDENCE, n - 1) * math.sqrt(variance) / whole
    return Interval(value=value, low=value - margin, high=value + margin)


def student_t(probability: float, freedom: int) -> float:
    """Quantile of Student's t, to 1 % from 4 degrees of freedom on (Abramowitz & Stegun 26.7.5)."""
    z = NormalDist().inv_cdf(probability)
    terms: tuple[float, ...] = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return float(z + sum(term / freedom**power for power, term in enumerate(terms, 1)))
