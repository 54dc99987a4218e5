"""A few cases of every target; `python -m tests.fuzz TARGET --count N` runs more."""

from __future__ import annotations

from tests.fuzz import control, frames, harness


def test_mutated_bundles_are_refused_in_one_line_or_decode() -> None:
    report = harness.run("bundles", 120)
    assert not report.failures, str(report)
    assert report.outcomes["refused"] > 60


def test_random_control_messages_are_answered_and_ticks_go_on() -> None:
    report = control.run(300)
    assert not report.failures, str(report)
    assert report.outcomes["refused"] > 150


def test_random_frames_crash_neither_subscribers_nor_the_watchdog() -> None:
    report = frames.run(300)
    assert not report.failures, str(report)
