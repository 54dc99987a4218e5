"""The whole loop, in processes of its own: calibrated, steered, drifted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clients.rig.closed_loop import LoopSettings, running_loop
from clients.rig.score import score_trials
from clients.task.trial import read_trials
from tests.rig import learning_s


@pytest.mark.slow
def test_a_participant_steers_with_a_decoder_of_its_own_units_until_they_drift(
    tmp_path: Path,
) -> None:
    settings = LoopSettings(
        folder=tmp_path, seed=1, trials=2, seconds=20.0, method="units", allowed_s=learning_s()
    )
    with running_loop(settings) as loop:
        calibration = loop.calibrate()
        loop.steer("calibrated", limit_s=12.0)
        loop.drift()
        loop.steer("drifted", trials=1, limit_s=2.0)
        with loop.server.client() as client:
            assert client.status().daemon.state == "decoding"
    trials = read_trials(tmp_path / "trials.jsonl")
    closed = [trial for trial in trials if trial.mode == "closed"]
    assert {trial.decoder for trial in closed} == {calibration.candidate}
    scores = {score.block: score for score in score_trials(closed)}
    assert (scores["calibrated"].trials, scores["drifted"].trials) == (2, 1)
    steered = [trial for trial in closed if trial.counts and trial.block == "calibrated"]
    ways = [np.hypot(*trial.target) - trial.radius for trial in steered]
    assert min(ways) > 0.03, "targets are away from where the cursor begins"
    assert all(trial.entered is not None for trial in steered), "it came to every target"
    assert any(trial.success for trial in steered), "and stayed on one"
