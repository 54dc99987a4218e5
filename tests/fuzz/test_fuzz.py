"""A few cases of every target; `python -m tests.fuzz TARGET --count N` runs as many as you like."""

from __future__ import annotations

from tests.fuzz import harness


def test_mutated_bundles_are_refused_in_one_line_or_decode() -> None:
    report = harness.run("bundles", 120)
    assert not report.failures, str(report)
    assert report.outcomes["refused"] > 60
