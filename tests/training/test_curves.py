"""The plot of R² over training time, from the history of a real run."""

from __future__ import annotations

import json
from pathlib import Path

from training.data.simulate import simulate
from training.pretraining.pretrain import pretrain
from training.pretraining.settings import PretrainSettings
from training.studies.curves import curves, plot


def test_runs_become_curves(tmp_path: Path) -> None:
    session = simulate(n_units=8, minutes=1.5, subject=0, seed=3)
    folders = []
    for seed in (0, 1):
        folders.append(tmp_path / f"run{seed}")
        settings = PretrainSettings(
            preset="stream", steps=20, minutes=None, batch_size=2, seed=seed
        )
        pretrain([session], folders[-1], settings)
    found = curves(folders)
    assert [run["seed"] for run in found] == [0, 1]
    assert all(run["steps"] == [10, 20] for run in found)
    plot(json.loads(json.dumps(found)), tmp_path / "curves.svg")
    assert "<svg" in (tmp_path / "curves.svg").read_text()
