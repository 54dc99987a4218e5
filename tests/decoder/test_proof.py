"""A decoder is proven before use: with made-up and real spikes, in a separate process."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from decoder.bundles.bundle import Bundle, open_bundle
from decoder.bundles.manifest import GRAPH, MANIFEST, TABLES, checksum
from decoder.errors import BundleError
from decoder.runtimes.onnx import RuntimeSettings
from decoder.runtimes.opening import open_runtime
from decoder.runtimes.proof import Spikes, prove, prove_apart
from tests.rig import wait_for


@pytest.fixture
def copy(tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.bundle.path, tmp_path / "copy.bundle"))


def sealed(path: Path) -> Bundle:
    """Open a bundle after recomputing its checksums."""
    content = json.loads((path / MANIFEST).read_text())
    for name in (GRAPH, TABLES):
        content["checksums"][name] = hashlib.sha256((path / name).read_bytes()).hexdigest()
    content["checksums"][MANIFEST] = checksum(content)
    (path / MANIFEST).write_text(json.dumps(content))
    return open_bundle(path)


def recent(tiny) -> Spikes:
    part = tiny.session.spikes_between(0.0, 1.5)
    return Spikes(times=tiny.session.spike_times[part], unit_index=tiny.session.spike_units[part])


def test_a_good_decoder_passes_in_both_processes(tiny) -> None:
    runtime = open_runtime(tiny.bundle, epoch=0.0)
    assert prove(runtime, epoch=0.0, recent=recent(tiny)) > 0
    prove_apart(tiny.bundle, RuntimeSettings(), recent(tiny))
    assert runtime.decode(2.0) == pytest.approx(open_runtime(tiny.bundle, epoch=0.0).decode(2.0)), (
        "the proof must leave no spikes"
    )


def test_tables_that_overflow_are_refused(tiny, copy: Path) -> None:
    tables = load_file(copy / TABLES)
    big = np.full_like(tables["boundary_value"], 3e38)
    save_file(tables | {"boundary_value": big}, copy / TABLES)
    bundle = sealed(copy)
    with pytest.raises(BundleError, match="expected two finite numbers"):
        prove(open_runtime(bundle, epoch=0.0), epoch=0.0, recent=recent(tiny))


def one_output(model: onnx.ModelProto) -> None:
    """Return only the first number; numpy would silently broadcast it to both axes."""
    output = model.graph.output[0]
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
    model.graph.node.append(helper.make_node("Gather", [output.name, "first"], ["one"]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("one", TensorProto.FLOAT, [1]))


def one_input_more(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    model.graph.node.append(helper.make_node("Identity", ["more"], ["unused"]))
    model.graph.output.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, [1]))


def endless(model: onnx.ModelProto) -> None:
    """Put a loop of 2^62 iterations before the output."""
    output = model.graph.output[0].name
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Sin", ["value"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, [2]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [2]),
        ],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(2**62), "turns"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "true"))
    model.graph.node.append(
        helper.make_node("Loop", ["turns", "true", output], ["late"], body=body)
    )
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("late", TensorProto.FLOAT, [2]))


def with_graph(path: Path, change: Callable[[onnx.ModelProto], None]) -> Bundle:
    model = onnx.load(path / GRAPH)
    change(model)
    onnx.save(model, path / GRAPH)
    return sealed(path)


@pytest.mark.parametrize("change", [one_output, one_input_more])
def test_a_graph_that_is_not_a_decoder_is_refused_in_both_processes(
    tiny, copy: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    bundle = with_graph(copy, change)
    with pytest.raises(BundleError, match="graph"):
        prove(open_runtime(bundle, epoch=0.0), epoch=0.0)
    with pytest.raises(BundleError, match="graph") as refused:
        prove_apart(bundle, RuntimeSettings())
    assert "\n" not in str(refused.value)


def test_a_proof_ends_when_its_daemon_is_killed(copy: Path) -> None:
    bundle = with_graph(copy, endless)
    code = (
        "import sys\nfrom decoder.bundles.bundle import open_bundle\n"
        "from decoder.runtimes.proof import *\n"
        "prove_apart(open_bundle(sys.argv[1]), RuntimeSettings())"
    )
    asks = subprocess.Popen([sys.executable, "-c", code, str(bundle.path)])
    children = Path(f"/proc/{asks.pid}/task/{asks.pid}/children")
    child = int(wait_for("the proof", lambda: children.read_text().split())[0])
    asks.kill()
    asks.wait()
    wait_for("its end", lambda: not Path(f"/proc/{child}").exists())


def test_an_endless_graph_is_stopped_in_time(tiny, copy: Path) -> None:
    bundle = with_graph(copy, endless)
    with pytest.raises(BundleError, match="gave no velocity within 4 s"):
        prove_apart(bundle, RuntimeSettings(), allowed_s=4.0)
