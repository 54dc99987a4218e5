"""Unit identification: learns a new session, and keeps all known embeddings bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from decoder.bundles import bundle as bundles
from decoder.errors import TrainingError
from decoder.runtimes.opening import open_runtime
from streaming.sessions.intervals import duration_s
from streaming.sessions.session import Session
from training.calibration.adapt import AdaptSettings, calibrate
from training.calibration.blocks import first_seconds, hold_out_last_fifth
from training.data.simulate import simulate
from training.exports.export import export_model, refold
from training.models.families import copied
from training.pretraining import runs
from training.pretraining.newcomer import fit_readout, with_session
from training.pretraining.pretrain import pretrain
from training.pretraining.scoring import read_training_domain
from training.pretraining.settings import PretrainSettings


@pytest.fixture(scope="module", params=[pytest.param("rt", marks=pytest.mark.slow), "stream"])
def pretrained(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest):
    run = tmp_path_factory.mktemp("pretrained") / "run"
    session = simulate(n_units=24, minutes=2.0, subject=0, seed=1)
    n_windows = {"rt": 4, "stream": 2}[request.param]
    settings = PretrainSettings(preset=request.param, steps=150, minutes=None, batch_size=n_windows)
    pretrain([session], run, settings)
    return runs.load_model(run)


@pytest.fixture(scope="module")
def today() -> Session:
    return simulate(n_units=30, minutes=2.0, subject=4, seed=9)


def test_new_units_and_the_output_layer_are_learned_and_nothing_else(pretrained, today) -> None:
    model, record = pretrained
    before = {name: tensor.clone() for name, tensor in runs.weights(model).items()}
    scores: list[float] = []
    adapted, extended, _ = calibrate(
        model, record, today, AdaptSettings(steps=60, learning_rate=3e-3),
        on_step=lambda share, r2, phase: scores.append(r2) if phase == "units" else None,
    )  # fmt: skip
    assert scores[-1] == max(scores) > scores[0]
    assert extended.best_r2 > scores[-1], "the output layer is corrected last"
    after = runs.weights(adapted)
    for name, tensor in before.items():
        assert torch.equal(runs.weights(model)[name], tensor), "the original model was changed"
        is_same = torch.equal(after[name][: len(tensor)], tensor)
        assert is_same != name.startswith("readout"), name
    assert len(after["unit_emb.weight"]) == len(before["unit_emb.weight"]) + today.n_units
    new = after["unit_emb.weight"][-today.n_units :]
    assert (new.std(dim=0) > 0.01).any(), "the embeddings of the new units are almost equal"
    assert extended.session_words[-1] == today.session_id


def test_new_units_start_like_known_units_with_similar_tuning(pretrained) -> None:
    model, record = pretrained
    record = record.model_copy(update={"n_profile": 0})  # as in an older version
    known = simulate(n_units=24, minutes=2.0, subject=0, seed=1)
    again = replace(known, session_id="another day")
    extended, more = with_session(model, record, again)
    assert len(more.unit_tuning) == len(more.unit_words) == 48
    old, new = extended.unit_emb.weight[1:25], extended.unit_emb.weight[25:]
    own = torch.cdist(new, old).argmin(dim=1) == torch.arange(24)
    assert own.float().mean() > 0.6, "by chance it would be 1 in 24"

    without = record.model_copy(update={"unit_tuning": []})
    extended, more = with_session(model, without, again)
    assert more.unit_tuning == []
    assert torch.isfinite(extended.unit_emb.weight).all()


def test_only_the_first_seconds_are_used_and_their_last_fifth_is_held_out(today: Session) -> None:
    labelled = hold_out_last_fifth(first_seconds(today, 40.0))
    start = today.train_domain[0, 0]
    assert duration_s(labelled.train_domain) == pytest.approx(32.0)
    assert duration_s(labelled.valid_domain) == pytest.approx(8.0)
    assert labelled.train_domain[0, 0] == start
    assert labelled.valid_domain[-1, 1] <= labelled.test_domain[0, 0]


def test_the_output_layer_is_corrected_the_more_the_longer_the_labels(pretrained, today) -> None:
    known, extended = with_session(*pretrained, today)
    turned = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    errors, apart = [], []
    for seconds in (0.1, 5.0, 60.0):
        model = copied(known)
        with torch.no_grad():
            model.readout.weight.copy_(turned @ model.readout.weight)
        before = model.readout.weight.detach().clone()
        fit_readout(model, extended, first_seconds(today, seconds))
        apart.append(float((model.readout.weight.detach() - before).norm()))
        read = read_training_domain(model, extended, today, step_s=0.1)
        errors.append(float(np.square(read.true - read.decoded).mean()))
    assert apart[0] == 0.0, "no window fits"
    assert apart[0] < apart[1] < apart[2]
    assert errors[2] < errors[1] < errors[0]


def test_a_known_session_is_refused(pretrained, today) -> None:
    model, record = pretrained
    known = simulate(n_units=24, minutes=2.0, subject=0, seed=1)
    with pytest.raises(TrainingError, match="known to this run already"):
        calibrate(model, record, known, AdaptSettings(steps=1))


def test_an_adapted_model_is_saved_and_loaded_as_a_run(pretrained, today, tmp_path: Path) -> None:
    from training.exports.checkpoints import save_run

    model, record, _ = calibrate(*pretrained, today, AdaptSettings(steps=2))
    save_run(tmp_path / "today", record, runs.weights(model))
    loaded, loaded_record = runs.load_model(tmp_path / "today")
    assert loaded_record.session_words == record.session_words
    assert torch.equal(loaded.unit_emb.weight, model.unit_emb.weight)


def test_a_bundle_can_be_adapted_without_its_run_and_keeps_its_graph(
    pretrained, today, tmp_path
) -> None:
    model, record = pretrained
    record.session_paths["a session"] = "/somewhere/here.h5"
    (known,) = record.session_words
    base = export_model(model, record, known, tmp_path / "base.bundle")
    loaded, loaded_record = runs.load_model(base.path)
    assert loaded_record.unit_words == record.unit_words
    assert not loaded_record.session_paths, "the bundle contains a local path"
    assert loaded_record.unit_tuning == record.unit_tuning
    adapted, extended, _ = calibrate(
        loaded, loaded_record, today, AdaptSettings(steps=4, learning_rate=2e-2)
    )
    folded = refold(base, adapted, extended, today.session_id, tmp_path / "today.bundle")
    exported = export_model(adapted, extended, today.session_id, tmp_path / "again.bundle")
    checksums = folded.manifest.checksums
    assert checksums["graph.onnx"] == base.manifest.checksums["graph.onnx"]
    assert checksums["tables.safetensors"] == exported.manifest.checksums["tables.safetensors"]
    outputs = []
    for one in (folded, exported):
        runtime = open_runtime(one, epoch=0.0)
        part = today.spikes_between(0.0, 2.0)
        runtime.append(today.spike_times[part], today.spike_units[part])
        outputs.append(runtime.decode(2.0))
    np.testing.assert_allclose(*outputs, atol=1e-6)

    with torch.no_grad():
        adapted.enc_atn.to_out.weight += 0.1
    with pytest.raises(TrainingError, match="weight differs from"):
        refold(base, adapted, extended, today.session_id, tmp_path / "wrong.bundle")
    assert not (tmp_path / "wrong.bundle").exists()


def test_a_bundle_without_unit_embeddings_cannot_be_adapted(tiny, tmp_path: Path) -> None:
    bare = bundles.write(
        tmp_path / "bare.bundle", manifest=tiny.bundle.manifest, graph=tiny.bundle.graph_path,
        tables=tiny.bundle.tables, weights={"nothing": np.zeros(1)},
    )  # fmt: skip
    with pytest.raises(TrainingError, match="export the run again"):
        runs.load_model(bare.path)
