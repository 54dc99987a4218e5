"""Pretraining on a small session: it learns, goes on where it stood, and keeps the best."""

from __future__ import annotations

from pathlib import Path

import pytest

from decoder.errors import TrainingError
from training import runs
from training.pretrain import PretrainSettings, pretrain
from training.simulate import simulate


@pytest.fixture(scope="module")
def session():
    return simulate(n_units=20, minutes=1.5, subject=2, seed=3)


def settings(**changes) -> PretrainSettings:
    given = {"preset": "rt", "minutes": None, "steps": 20, "batch_size": 4} | changes
    return PretrainSettings(**given)


def test_a_run_is_written_and_loads_again(session, tmp_path: Path) -> None:
    losses: list[float] = []
    record = pretrain(
        [session], tmp_path / "run", settings(), on_step=lambda p: losses.append(p.loss)
    )
    assert record.step == 20
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "best.safetensors", "last.safetensors", "run.json",
    ]  # fmt: skip
    model, loaded = runs.load_model(tmp_path / "run")
    assert loaded.best_r2 == record.best_r2
    assert loaded.session_words == [session.session_id]
    assert not model.training


def test_a_run_goes_on_where_it_stood(session, tmp_path: Path) -> None:
    pretrain([session], tmp_path / "run", settings(steps=10))
    steps: list[int] = []
    record = pretrain(
        [session], tmp_path / "run", settings(steps=15), resume=True,
        on_step=lambda p: steps.append(p.step),
    )  # fmt: skip
    assert steps == [11, 12, 13, 14, 15]
    assert record.step == 15


def test_ctrl_c_keeps_the_best_so_far(session, tmp_path: Path) -> None:
    def interrupt(progress) -> None:
        if progress.step == 5:
            raise KeyboardInterrupt

    record = pretrain([session], tmp_path / "run", settings(), on_step=interrupt)
    assert record.step == 5
    runs.load_model(tmp_path / "run")


def test_a_run_is_never_overwritten(session, tmp_path: Path) -> None:
    pretrain([session], tmp_path / "run", settings(steps=2))
    with pytest.raises(TrainingError, match="there is a run already"):
        pretrain([session], tmp_path / "run", settings(steps=2))


def test_a_run_without_an_end_is_refused() -> None:
    with pytest.raises(TrainingError, match="would never end"):
        PretrainSettings(minutes=None, steps=None)
