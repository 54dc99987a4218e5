"""The harness detects every kind of failure."""

from __future__ import annotations

import numpy as np
import pytest

from tests.fuzz import harness
from tests.fuzz.misbehaving import KINDS


def test_every_kind_of_failure_is_detected_and_the_other_cases_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(harness, "CASE_S", 5.0)
    seed, count = 34, 11
    kinds = [
        KINDS[int(np.random.default_rng([seed, number]).integers(len(KINDS)))]
        for number in range(count)
    ]
    assert set(kinds) == set(KINDS), "one of each"
    assert kinds.count("hangs") == 1, "it costs the whole limit"
    report = harness.run("misbehaving", count, seed=seed)
    failed = {failure.number: failure.how for failure in report.failures}
    said = {
        "raises": "raised KeyError",
        "talks": "the error is not one short line",
        "crashes": "the process ended with code -11",
        "hangs": "no answer within 5 s",
        "grows": "raised MemoryError",
    }
    assert failed == {n: said[kind] for n, kind in enumerate(kinds) if kind in said}
    assert report.outcomes["opened"] == kinds.count("passes")
    assert report.outcomes["refused"] == kinds.count("refuses")
