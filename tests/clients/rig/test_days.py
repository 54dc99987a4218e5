"""The closed loop in simulated time, and days of it without labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clients.harness.daemon import BUNDLES
from clients.participant.simulated import ParticipantSettings
from clients.rig import days
from clients.rig.stepped import TICK_S, Steered, SteppedLoop
from clients.task.workspace import Block
from decoder.bundles.bundle import open_bundle
from decoder.runtimes.opening import open_runtime

SETTINGS = ParticipantSettings(prefix="days", n_units=24, seed=3)


def played() -> tuple[Steered, Steered]:
    """An observed block, and one that an uncalibrated decoder moves."""
    loop = SteppedLoop(SETTINGS)
    watched = loop.play(Block(mode="observation", trials=2), "watched")
    runtime = open_runtime(open_bundle(BUNDLES / "possm.bundle"), epoch=loop.now)
    return watched, loop.play(Block(trials=1, limit_s=1.0), "steered", runtime, gain=0.5)


def test_a_stepped_loop_records_what_was_played_and_repeats_exactly() -> None:
    watched, steered = played()
    assert [trial.success for trial in watched.trials if trial.counts] == [True, True]
    session = watched.session
    assert session.trials is not None
    assert session.trials.target_pos is not None
    assert len(session.trials.intervals) == len(watched.trials)
    speed = np.linalg.norm(session.cursor_vel, axis=1)
    assert 0.1 < speed.max() < 0.5
    np.testing.assert_allclose(
        session.cursor_vel[1:], np.diff(session.cursor_pos, axis=0) / TICK_S, atol=0.02
    )
    moved = np.diff(steered.session.cursor_pos, axis=0) / TICK_S
    inside = np.abs(steered.session.cursor_pos[1:]).max(axis=1) < 0.11
    inside &= (
        steered.session.cursor_times[1:] > steered.session.domain[0, 0] + 3 * TICK_S
    )  # recentred
    inside &= steered.session.cursor_times[1:] < steered.trials[0].end
    np.testing.assert_allclose(moved[inside], 0.5 * steered.session.cursor_vel[1:][inside])
    again = played()
    for one, other in zip((watched, steered), again, strict=True):
        assert one.trials == other.trials
        np.testing.assert_array_equal(one.session.spike_times, other.session.spike_times)


@pytest.mark.soak
def test_days_are_steered_and_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(days, "OBSERVED_S", 30.0)
    monkeypatch.setattr(days, "LEARNED_TRIALS", 8)
    rows = days.chain("targets", 1, 2, 4, tmp_path / "rows.jsonl")
    assert [row["day"] for row in rows] == [1, 2]
    assert sum(row["successes"] for row in rows) >= 6
    assert rows[1]["answer"] in ("promote", "undecided", "reject")
    assert rows[1]["limit"] > 0
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2
    assert days.summary(rows)["targets"]["days"] == 2
