"""The transfer and few-shot studies on a small scale write their data and plots."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from training.data.simulate import simulate
from training.pretraining.pretrain import pretrain
from training.pretraining.settings import PretrainSettings
from training.studies.transfer import plot, transfer


@pytest.mark.soak
def test_each_count_is_pretrained_once_and_identified_on_every_unseen_session(
    tmp_path: Path, monkeypatch
) -> None:
    from training.calibration.adapt import AdaptSettings
    from training.studies import fewshot as module

    monkeypatch.setattr(
        module, "AdaptSettings", lambda seconds, steps: AdaptSettings(seconds=seconds, steps=4)
    )
    corpus = [simulate(n_units=10, minutes=1.5, subject=s, seed=s) for s in (0, 1)]
    unseen = [simulate(n_units=10, minutes=1.5, subject=9, seed=s) for s in (50, 51)]
    settings = PretrainSettings(steps=3, minutes=None, batch_size=4)

    def result() -> dict:
        return transfer(
            corpus, unseen, (1, 2), run=tmp_path, settings=settings, console=Console(quiet=True)
        )

    first = result()
    assert [point["sessions"] for point in first["points"]] == [1, 2]
    assert np.isfinite([point["r2"] for point in first["points"]]).all()
    assert len(first["ridge_r2"]) == 2
    assert result() == first, "a finished pretraining was not reused"
    plot(json.loads(json.dumps(first)), tmp_path / "curve.svg")
    assert (tmp_path / "curve.svg").read_text().count("<path") > 3


@pytest.mark.soak
def test_fewshot_compares_with_scratch_and_ridge(tmp_path: Path, monkeypatch) -> None:
    from training.calibration.adapt import AdaptSettings
    from training.studies import fewshot as module

    monkeypatch.setattr(
        module, "AdaptSettings", lambda seconds, steps: AdaptSettings(seconds=seconds, steps=4)
    )
    monkeypatch.setattr(module, "SCRATCH_MINUTES", 0.02)
    session = simulate(n_units=10, minutes=1.5, subject=0, seed=0)
    unseen = [simulate(n_units=10, minutes=1.5, subject=9, seed=50)]
    settings = PretrainSettings(preset="stream", steps=3, minutes=None, batch_size=4)
    pretrain([session], tmp_path / "run", settings)
    result = module.fewshot([tmp_path / "run"], unseen, (20.0, 30.0), console=Console(quiet=True))
    rows = result["presets"]["stream"]
    assert list(rows) == ["20", "30", "all"]
    assert np.isfinite([*rows["20"]["r2"], *rows["20"]["scratch_r2"], *rows["all"]["r2"]]).all()
    assert rows["30"]["took_s"][0] > 0
    module.plot(json.loads(json.dumps(result)), tmp_path / "fewshot.svg")
    assert (tmp_path / "fewshot.svg").read_text().count("<path") > 3
