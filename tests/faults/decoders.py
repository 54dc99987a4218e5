"""Bundles that decode well until the trigger unit fires, and then misbehave.

They are ridge decoders for the units of the shipped bundle. The trigger unit is the last one. A
sender keeps it silent until it gets an order, so the bundles pass all checks before they are used.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from clients.harness.daemon import BUNDLES
from decoder.bundles import bundle
from decoder.bundles.families import RidgeSizes, RidgeTables
from training.baselines.linear import ridge_graph

TRIGGER_HZ = 2000.0  # rate of the trigger unit; 0.5 s at this rate gives 1 m/s
LAGS, BIN_S = 10, 0.05
PER_SPIKE = 1e-3


def write(folder: Path, kind: str) -> Path:
    """Write a bundle that is `good`, or when triggered `hangs`, `raises`, gives `nan` or `huge`."""
    base = bundle.open_bundle(BUNDLES / "possm.bundle").manifest
    n_units = len(base.unit_ids)
    tokens = np.random.default_rng(0).normal(0.0, PER_SPIKE / 10, (n_units, LAGS, 2))
    tokens[-1] = PER_SPIKE
    manifest = bundle.Manifest(
        decoder_id=f"{kind}-{bundle.new_decoder_id('faults')}",
        family="ridge",
        preset="faults",
        sizes=RidgeSizes(bin_s=BIN_S, n_lags=LAGS, dim_out=2),
        outputs=tuple(bundle.Output(name=n, unit="m/s", scale=1.0, offset=0.0)
                      for n in ("vel_x", "vel_y")),
        session_id=base.session_id,
        unit_ids=base.unit_ids,
        provenance={},
        metrics={},
        checksums={},
    )  # fmt: skip
    graph = folder / f"{kind}.onnx"
    onnx.save(_graph(kind), str(graph))
    tables = RidgeTables(tokens=tokens.astype(np.float32))
    made = bundle.write(
        folder / f"{kind}.bundle", manifest=manifest, graph=graph, tables=tables,
        weights={"weights": tokens},
    )  # fmt: skip
    return made.path


def _graph(kind: str) -> onnx.ModelProto:
    """The ridge graph with extra nodes that do nothing while the summed x is below 0.3 m/s."""
    model = ridge_graph()
    if kind == "good":
        return model
    graph = model.graph
    graph.node[-1].output[0] = "sum"
    constants = {
        "first": np.int64(0), "least": np.float32(0.3), "zero": np.float32(0.0),
        "most": np.float32(3e38 if kind == "nan" else 1e30), "steps": np.int64(10**11),
        "yes": np.bool_(True), "far": np.int64(1000),
    }  # fmt: skip
    for name, value in constants.items():
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    graph.node.extend([
        helper.make_node("Gather", ["sum", "first"], ["x"]),
        helper.make_node("Greater", ["x", "least"], ["triggered"]),
    ])  # fmt: skip
    graph.node.extend(_tail(kind))
    return model


def _tail(kind: str) -> list[onnx.NodeProto]:
    as_number = helper.make_node("Cast", ["triggered"], ["n"], to=TensorProto.INT64)
    as_float = helper.make_node("Cast", ["triggered"], ["on"], to=TensorProto.FLOAT)
    if kind == "huge":
        return [
            as_float,
            helper.make_node("Mul", ["on", "most"], ["added"]),
            helper.make_node("Add", ["sum", "added"], ["output"]),
        ]
    if kind == "nan":  # exp(3e38) is infinite, and 0 * inf is NaN
        return [
            as_float,
            helper.make_node("Mul", ["on", "most"], ["power"]),
            helper.make_node("Exp", ["power"], ["grown"]),
            helper.make_node("Mul", ["grown", "zero"], ["added"]),
            helper.make_node("Add", ["sum", "added"], ["output"]),
        ]
    if kind == "raises":  # an index out of range
        return [
            as_number,
            helper.make_node("Mul", ["n", "far"], ["index"]),
            helper.make_node("Gather", ["sum", "index"], ["there"]),
            helper.make_node("Mul", ["there", "zero"], ["added"]),
            helper.make_node("Add", ["sum", "added"], ["output"]),
        ]
    assert kind == "hangs", kind
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("Sin", ["carried"], ["next"]),
        ],
        "body",
        [
            value("step", TensorProto.INT64, []),
            value("going", TensorProto.BOOL, []),
            value("carried", TensorProto.FLOAT, [2]),
        ],
        [value("goes_on", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, [2])],
    )
    return [
        as_number,
        helper.make_node("Mul", ["n", "steps"], ["count"]),
        helper.make_node("Loop", ["count", "yes", "sum"], ["looped"], body=body),
        helper.make_node("Mul", ["looped", "zero"], ["added"]),
        helper.make_node("Add", ["sum", "added"], ["output"]),
    ]
