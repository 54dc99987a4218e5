"""Calibration methods: the weights that each trains, the time limit, and the choice of `auto`."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from decoder.errors import TrainingError
from streaming.sessions.session import Session
from tests.conftest import TinyDecoder, identifying
from training.calibration import adapt
from training.calibration.adapt import EMBEDDINGS, HEADS, AdaptSettings, calibrate
from training.data.simulate import simulate
from training.pretraining import runs

FEW = AdaptSettings(steps=3, batch_size=2)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the `units` phase of the other methods."""
    monkeypatch.setattr(adapt, "COLD", replace(adapt.COLD, steps=3, batch_size=2))


@pytest.fixture(scope="module")
def today() -> Session:
    return simulate(n_units=30, minutes=1.0, subject=4, seed=9)


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Names of the weights that differ, ignoring new rows."""
    return {
        name
        for name, tensor in before.items()
        if not torch.equal(after[name][: len(tensor)], tensor)
    }


@pytest.mark.parametrize("method", ["instant", "units", "units+head", "full"])
def test_a_method_trains_its_own_weights_and_no_known_unit(
    tiny: TinyDecoder, today, method, tmp_path: Path
) -> None:
    base = identifying(tiny, tmp_path) if method == "instant" else tiny.bundle
    model, record = runs.load_model(base.path)
    before = {name: tensor.clone() for name, tensor in runs.weights(model).items()}
    adapted = calibrate(model, record, today, replace(FEW, method=method))
    assert adapted.method == method
    assert not moved(before, runs.weights(model)), "the original model was changed"
    names = moved(before, runs.weights(adapted.model))
    assert not any(name.startswith(EMBEDDINGS) for name in names), "a known unit changed"
    output_layer = {"readout.weight", "readout.bias"}
    assert names >= output_layer
    assert (names == output_layer) == (method in ("instant", "units"))
    assert np.isnan(adapted.record.best_r2) == (method == "instant"), "nothing was held out"
    if method == "units+head":
        assert all(name.startswith(HEADS) for name in names)
    assert all(parameter.requires_grad for parameter in adapted.model.parameters())
    assert not adapted.model.training
    assert adapted.record.session_words == [tiny.session.session_id, today.session_id]


def test_instant_needs_a_model_that_identifies_units(tiny: TinyDecoder, today) -> None:
    model, record = runs.load_model(tiny.bundle.path)
    with pytest.raises(TrainingError, match="choose the method units, or pretrain on four"):
        calibrate(model, record, today, AdaptSettings(method="instant"))


def test_scratch_knows_only_this_session(tiny: TinyDecoder, today) -> None:
    model, record = runs.load_model(tiny.bundle.path)
    made, own, method = calibrate(model, record, today, replace(FEW, method="scratch"))
    assert method == "scratch"
    assert own.session_words == [today.session_id]
    assert len(own.unit_words) == len(own.unit_tuning) == today.n_units
    assert set(own.output_mean) == set(own.output_std) == {today.session_id}
    assert len(made.unit_emb.weight) == 1 + today.n_units
    assert own.model == record.model
    assert record.session_words == [tiny.session.session_id], "the original record was changed"


def test_auto_runs_full_and_keeps_units_if_full_is_worse(tiny, today) -> None:
    model, record = runs.load_model(tiny.bundle.path)
    phases: list[str] = []
    settings = replace(FEW, method="auto")
    good = calibrate(
        model, record, today, replace(settings, learning_rate=1e-5),
        on_step=lambda share, r2, phase: phases.append(phase),
    )  # fmt: skip
    assert good.method == "full"
    assert list(dict.fromkeys(phases)) == ["units", "full"]
    spoilt = calibrate(model, record, today, replace(settings, learning_rate=0.5))
    assert spoilt.method == "units"
    units = calibrate(model, record, today)
    assert spoilt.record.best_r2 == units.record.best_r2
    for name, tensor in runs.weights(units.model).items():
        assert torch.equal(runs.weights(spoilt.model)[name], tensor), name


@pytest.mark.parametrize("method", ["auto", "scratch"])
def test_training_within_its_time_limit_depends_only_on_the_seed(
    tiny: TinyDecoder, today, method
) -> None:
    model, record = runs.load_model(tiny.bundle.path)
    settings = replace(FEW, method=method, allowed_s=600.0)
    once, again = (calibrate(model, record, today, settings) for _ in range(2))
    assert once.record == again.record
    for name, tensor in runs.weights(once.model).items():
        assert torch.equal(runs.weights(again.model)[name], tensor), name


def test_the_time_limit_is_kept_and_the_learning_rate_annealed_over_it(
    tiny: TinyDecoder, today
) -> None:
    model, record = runs.load_model(tiny.bundle.path)
    shares: list[float] = []
    times: list[float] = []

    def note(share: float, r2: float, phase: str) -> None:
        shares.append(share)
        times.append(time.monotonic())

    allowed_s = 1.0
    settings = AdaptSettings(method="scratch", steps=10**6, batch_size=2, allowed_s=allowed_s)
    calibrate(model, record, today, settings, on_step=note)
    assert shares == sorted(shares)
    assert shares[0] < 0.5
    assert shares[-1] == 1.0
    assert len(shares) > 2
    learning_s, slowest_s = times[-2] - times[0], np.diff(times[:-1]).max()
    assert learning_s <= allowed_s + 2 * slowest_s, "more than one step and one check over"
    assert learning_s >= 0.5 * allowed_s - 2 * slowest_s, "the time limit was not used up"


def test_invalid_settings_and_too_little_data_are_refused(
    tiny: TinyDecoder, today: Session
) -> None:
    model, record = runs.load_model(tiny.bundle.path)
    with pytest.raises(TrainingError, match="collect more data"):
        calibrate(model, record, today, replace(FEW, seconds=4.0))
    with pytest.raises(TrainingError, match=r"expected one of instant, align, units, units\+head"):
        AdaptSettings(method="some")  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="more than 0"):
        AdaptSettings(allowed_s=0.0)
