"""The gate on simulated errors: how often it is wrong, and how much data it needs."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from decoder.arrays import Floats
from decoder.gate import (
    BLOCK_S,
    LEAST_R2,
    MIN_BLOCKS,
    Evidence,
    Unlabelled,
    decide,
    judge,
    judge_unlabelled,
    student_t,
)

TICK_S = 0.05
N_TRIALS = 200


def alike(rng: np.random.Generator, n: int, seconds: float) -> Floats:
    """Noise (n, 2) of variance 1, an AR(1) process with time constant `seconds`."""
    keep = np.exp(-TICK_S / seconds)
    steps = rng.standard_normal((n, 2)) * np.sqrt(1 - keep**2)
    noise = np.empty((n, 2))
    noise[0] = rng.standard_normal(2)
    for i in range(1, n):
        noise[i] = keep * noise[i - 1] + steps[i]
    return noise


def evidence(
    rng: np.random.Generator, seconds: float, r2: tuple[float, float], error_s: float = 0.3
) -> Evidence:
    """Evidence of a candidate and an active decoder with these R², over reaches and rests.

    Errors scale with the movement, last `error_s`, and share half of their power.
    """
    n = round(seconds / TICK_S)
    effort = np.repeat(rng.uniform(0.2, 1.8, n // 20 + 1), 20)[:n, None]
    true = effort * alike(rng, n, 0.25)
    common = alike(rng, n, error_s)
    candidate, active = (
        true + effort * np.sqrt(1 - r2) * (common + alike(rng, n, error_s)) / np.sqrt(2)
        for r2 in r2
    )
    return Evidence.of(true, candidate, active, tick_s=TICK_S)


def answers(seconds: float, r2: tuple[float, float], error_s: float = 0.3) -> Counter[str]:
    """How often the gate gave each answer."""
    rng = np.random.default_rng(round(1e3 * seconds + 10 * error_s))
    given = (evidence(rng, seconds, r2, error_s) for _ in range(N_TRIALS))
    return Counter(judge(one, "made-up errors").answer for one in given)


@pytest.mark.parametrize("error_s", [0.1, 0.3, 1.0])
@pytest.mark.parametrize("seconds", [20.0, 60.0])
def test_equal_decoders_are_mostly_undecided(seconds: float, error_s: float) -> None:
    count = answers(seconds, (0.6, 0.6), error_s)
    assert count["promote"] <= 0.1 * N_TRIALS
    assert count["reject"] <= 0.1 * N_TRIALS


def test_a_worse_decoder_is_not_promoted() -> None:
    for seconds in (10.0, 20.0, 60.0):
        assert answers(seconds, (0.5, 0.6))["promote"] <= 0.02 * N_TRIALS


def test_more_data_promote_a_better_decoder_more_often() -> None:
    shares = [answers(s, (0.6, 0.45))["promote"] / N_TRIALS for s in (10.0, 20.0, 40.0, 80.0)]
    assert shares == sorted(shares)
    assert shares[-1] > 0.8
    assert answers(40.0, (0.6, 0.0))["promote"] > 0.95 * N_TRIALS
    assert answers(40.0, (0.45, 0.6))["reject"] > 0.3 * N_TRIALS


def test_similar_decoders_are_undecided_and_the_reason_has_the_numbers() -> None:
    verdict = judge(evidence(np.random.default_rng(1), 12.0, (0.6, 0.55)), "the calibration")
    assert verdict.answer == "undecided"
    assert "too few to tell" in verdict.why
    assert "12 s of the calibration" in verdict.why


def test_a_candidate_at_chance_is_rejected_even_if_the_active_decoder_is_worse() -> None:
    verdict = judge(evidence(np.random.default_rng(2), 40.0, (-0.1, -3.0)), "the calibration")
    assert verdict.answer == "reject"
    assert "check both streams" in verdict.why


def test_a_candidate_that_may_be_at_chance_is_undecided() -> None:
    lucky = evidence(np.random.default_rng(3), 10.0, (LEAST_R2 + 0.05, -3.0))
    low = lucky.r2()
    assert low.low < LEAST_R2 < low.value
    assert judge(lucky, "the calibration").answer == "undecided"


def test_without_an_active_decoder_r2_alone_decides() -> None:
    one = evidence(np.random.default_rng(4), 40.0, (0.6, 0.6))
    alone = Evidence(seconds=one.seconds, total=one.total, candidate=one.candidate, active=None)
    assert alone.better_by() is alone.active_r2() is None
    assert judge(alone, "the calibration").answer == "promote"


def test_too_few_seconds_are_undecided() -> None:
    short = evidence(np.random.default_rng(5), (MIN_BLOCKS - 1) * BLOCK_S, (0.9, -5.0))
    verdict = judge(short, "the calibration")
    assert verdict.answer == "undecided"
    assert "too few to decide" in verdict.why
    assert judge(Evidence.none(), "the calibration").answer == "undecided"


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_nan_and_infinity_are_never_promoted(number: float) -> None:
    one = evidence(np.random.default_rng(6), 40.0, (0.6, 0.5))
    lost = np.full_like(one.total, number)
    for candidate, active in ((lost, one.active), (one.candidate, lost)):
        odd = Evidence(seconds=one.seconds, total=one.total, candidate=candidate, active=active)
        assert judge(odd, "the calibration").answer != "promote"


def test_the_live_stream_decides_an_undecided_calibration() -> None:
    rng = np.random.default_rng(7)
    held_out = evidence(rng, 12.0, (0.6, 0.55))
    assert decide(held_out, Evidence.none()).answer == "undecided"
    live = evidence(rng, 240.0, (0.6, 0.5))
    assert decide(held_out, live).answer == "promote"
    assert (held_out + live).compared_s == pytest.approx(252.0)


def test_a_candidate_that_is_worse_on_the_live_stream_is_rejected() -> None:
    rng = np.random.default_rng(8)
    held_out, live = evidence(rng, 600.0, (0.7, 0.2)), evidence(rng, 40.0, (0.2, 0.7))
    verdict = decide(held_out, live)
    assert verdict.answer == "reject"
    assert "live stream" in verdict.why


def test_evidence_survives_a_round_trip_through_json() -> None:
    one = evidence(np.random.default_rng(9), 20.0, (0.6, 0.5))
    again = Evidence.from_lists(one.as_lists())
    assert again.better_by() == one.better_by()
    assert again.compared_s == pytest.approx(20.0)


def test_students_t_matches_the_table() -> None:
    table = {4: 2.132, 9: 1.833, 19: 1.729, 29: 1.699}  # of 0.95
    for freedom, value in table.items():
        assert student_t(0.95, freedom) == pytest.approx(value, rel=0.01)


NEAR = {
    "seconds": 40.0, "candidate": 0.3, "candidate_limit": 0.4, "active": 2.4, "active_all": 2.2,
    "active_limit": 0.4, "agreement": 0.9, "speed_ratio": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(("changes", "answer", "why"), [
    ({}, "promote", "correlate by 0.90"),
    ({"candidate": 1.2}, "promote", "1.20"),  # half of the active decoder's, beyond the limit
    ({"active": 0.41, "active_all": 1.61, "candidate": 0.4}, "promote", ""),  # within the limit
    ({"candidate": 1.3}, "undecided", "not near enough"),
    ({"candidate": 2.5}, "reject", "farther from the known days"),
    ({"candidate": math.nan}, "reject", "farther from the known days"),
    ({"active_all": 1.6}, "undecided", "expected more than 1.60 (4 times its limit)"),
    ({"agreement": 0.98}, "undecided", "nearly the same"),
    ({"active_all": 0.1, "candidate": 3.0}, "undecided", "too little to gain without labels"),
    ({"agreement": 0.49}, "undecided", "expected at least 0.5"),
    ({"agreement": math.nan}, "undecided", "correlate by nan"),
    ({"speed_ratio": 0.4}, "undecided", "0.40 times as fast"),
    ({"speed_ratio": 2.1}, "undecided", "expected 0.5 to 2 times"),
    ({"seconds": 9.0}, "undecided", "collect longer"),
    ({"active": None}, "undecided", "the active decoder does not know its usual states"),
    ({"candidate_limit": None}, "undecided", "the candidate does not know its usual states"),
])  # fmt: skip
def test_without_labels_distance_and_agreement_decide(
    changes: dict[str, float | None], answer: str, why: str
) -> None:
    verdict = judge_unlabelled(Unlabelled(**(NEAR | changes)))
    assert verdict.answer == answer, verdict
    assert why in verdict.why


def test_a_doubt_leaves_a_promotion_without_labels_to_the_operator() -> None:
    verdict = judge_unlabelled(Unlabelled(**NEAR), ["half of the units were silent"])
    assert verdict.answer == "undecided"
    assert verdict.why == "half of the units were silent"
