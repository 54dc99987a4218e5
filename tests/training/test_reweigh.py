"""A base bundle's graph with new weights decodes like the torch model and like a full export."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from tests.conftest import TinyDecoder
from training.calibration.adapt import Adapted, AdaptSettings, calibrate
from training.data.simulate import simulate
from training.evaluation.offline import decode_split
from training.exports import reweigh
from training.exports.export import export_model
from training.exports.reweigh import write_adapted
from training.pretraining import runs
from training.pretraining.scoring import decode_windows, window_source

FEW = AdaptSettings(steps=4, batch_size=2, learning_rate=1e-2)


@pytest.fixture(scope="module")
def today():
    return replace(simulate(n_units=30, minutes=1.0, subject=4, seed=9), session_id="today")


def learned(tiny: TinyDecoder, session, method) -> Adapted:
    return calibrate(*runs.load_model(tiny.bundle.path), session, replace(FEW, method=method))


@pytest.mark.parametrize(
    "method",
    ["full", *(pytest.param(m, marks=pytest.mark.slow) for m in ("units+head", "scratch"))],
)
def test_a_reweighed_graph_equals_a_full_export(tiny, today, method, tmp_path, monkeypatch) -> None:
    model, record, _ = learned(tiny, today, method)
    exported = export_model(model, record, "today", tmp_path / "exported.bundle")
    monkeypatch.setattr(reweigh, "export_model", None)  # fails if a full export is needed
    written = write_adapted(tiny.bundle, model, record, "today", tmp_path / "one.bundle", {"a": 1})
    assert written.manifest.outputs == exported.manifest.outputs
    assert written.manifest.unit_ids == exported.manifest.unit_ids
    assert written.manifest.metrics == {"a": 1.0}
    graphs = [onnx.load(bundle.graph_path).graph for bundle in (written, exported)]
    for one, other in zip(*(graph.initializer for graph in graphs), strict=True):
        values = [onnx.numpy_helper.to_array(constant) for constant in (one, other)]
        np.testing.assert_allclose(*values, atol=1e-6, err_msg=one.name)
    velocities = [decode_split(b, today, "test").velocity for b in (written, exported)]
    np.testing.assert_allclose(*velocities, atol=1e-6)


def test_the_written_weights_decode_as_the_model(tiny: TinyDecoder, today, tmp_path) -> None:
    model, record, _ = learned(tiny, today, "full")
    written = write_adapted(tiny.bundle, model, record, "today", tmp_path / "one.bundle")
    again, again_record = runs.load_model(written.path)
    assert again_record.unit_words == record.unit_words
    config = record.config()
    source = window_source([today], model, config, record)
    source_again = window_source([today], again, config, again_record)
    for split in ("valid", "test"):
        expected = decode_windows(model, config, source, 0, split, step_s=0.1)[1]
        seen = decode_windows(again, config, source_again, 0, split, step_s=0.1)[1]
        np.testing.assert_array_equal(seen, expected)


def test_a_change_of_units_only_keeps_the_graph(tiny: TinyDecoder, today, tmp_path) -> None:
    model, record, _ = learned(tiny, today, "units")
    written = write_adapted(tiny.bundle, model, record, "today", tmp_path / "one.bundle")
    name = "graph.onnx"
    assert written.manifest.checksums[name] == tiny.bundle.manifest.checksums[name]


def test_a_graph_with_unknown_constants_is_exported_in_full(
    tiny: TinyDecoder, today, tmp_path, monkeypatch
) -> None:
    model, record, _ = learned(tiny, today, "scratch")
    other, other_record = runs.load_model(tiny.bundle.path)
    with torch.no_grad():
        other.enc_atn.to_out.weight += 1.0
    monkeypatch.setattr(runs, "load_model", lambda path: (other, other_record))
    calls: list[str] = []

    def export(*arguments):
        calls.append("export")
        return export_model(*arguments)

    monkeypatch.setattr(reweigh, "export_model", export)
    written = write_adapted(tiny.bundle, model, record, "today", tmp_path / "one.bundle")
    assert calls == ["export"]
    exported = export_model(model, record, "today", tmp_path / "exported.bundle")
    velocities = [decode_split(b, today, "test").velocity for b in (written, exported)]
    np.testing.assert_array_equal(*velocities)
