"""Exports linear decoders as bundles that the daemon can run.

Ridge regression and the velocity Kalman filter are fitted like the offline baselines. At runtime,
both sum one table row per spike (`decoder.runtimes.linear`). Their graphs don't depend on the
session: all decoders of one kind have the same graph. Needs numpy and onnx, not torch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from decoder.arrays import Floats
from decoder.bundles import bundle
from decoder.bundles.families import KalmanSizes, KalmanTables, RidgeSizes, RidgeTables, Tables
from streaming.sessions.intervals import duration_s
from streaming.sessions.session import Session
from training.baselines.kalman import Kalman
from training.baselines.ridge import BIN_S, N_LAGS, Ridge

Kind = Literal["kalman", "ridge"]

OPSET, IR_VERSION = 23, 10  # as in the bundles exported by torch
N_OUTPUTS = 2
WARM_UP_S = 1.0  # after this time at most 2 % of a state is left (96 simulated units)


@dataclass(frozen=True, kw_only=True)
class _Fitted:
    """The contents of a bundle; `weights` are the fitted matrices."""

    sizes: RidgeSizes | KalmanSizes
    tables: Tables
    weights: Mapping[str, NDArray[np.generic]]
    graph: onnx.ModelProto
    offset: Floats
    chosen: str
    valid_r2: float


def fit_linear(
    session: Session, kind: Kind, path: Path | str, *, base: str | None = None
) -> bundle.Bundle:
    """Fit on the training domain, choose hyper-parameters on the validation domain, write a bundle.

    base: the decoder that later calibrations start from, if any.
    Raises TrainingError if a domain contains no complete window.
    """
    fitted = _ridge(session) if kind == "ridge" else _kalman(session)
    manifest = bundle.Manifest(
        decoder_id=bundle.new_decoder_id(session.session_id),
        family=kind,
        preset=f"{1e3 * BIN_S:g} ms",
        sizes=fitted.sizes,
        outputs=tuple(
            bundle.Output(name=name, unit="m/s", scale=1.0, offset=offset)
            for name, offset in zip(("vel_x", "vel_y"), fitted.offset.tolist(), strict=True)
        ),
        session_id=session.session_id,
        unit_ids=session.unit_ids,
        provenance={
            **({"base": base} if base else {}),
            "chosen": fitted.chosen,
            "training_data_s": round(duration_s(session.train_domain), 1),
            "opset": OPSET,
        },
        metrics={"validation_r2": fitted.valid_r2},
        checksums={},
    )
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / bundle.GRAPH
        onnx.save(fitted.graph, str(graph))
        return bundle.write(
            path, manifest=manifest, graph=graph, tables=fitted.tables, weights=fitted.weights
        )


def _ridge(session: Session) -> _Fitted:
    ridge = Ridge(session)
    return _Fitted(
        sizes=RidgeSizes(bin_s=BIN_S, n_lags=N_LAGS, dim_out=N_OUTPUTS),
        tables=RidgeTables(tokens=ridge.weights.astype(np.float32)),
        weights={"weights": ridge.weights, "offset": ridge.offset},
        graph=ridge_graph(),
        offset=ridge.offset,
        chosen=ridge.chosen,
        valid_r2=ridge.valid_r2,
    )


def _kalman(session: Session) -> _Fitted:
    """`x' = A x + K (y - mean - C A x)`, split into a term per bin and a term per spike."""
    kalman = Kalman(session)
    fitted = kalman.filter
    carried = fitted.transition - fitted.gain @ fitted.observation @ fitted.transition
    return _Fitted(
        sizes=KalmanSizes(
            bin_s=BIN_S, lead_bins=fitted.lag, warm_up_s=WARM_UP_S, dim_out=N_OUTPUTS
        ),
        tables=KalmanTables(
            tokens=fitted.gain.T.astype(np.float32),
            transition=carried.astype(np.float32),
            drift=(-fitted.gain @ kalman.mean_count).astype(np.float32),
        ),
        weights={
            "transition": fitted.transition,
            "observation": fitted.observation,
            "gain": fitted.gain,
            "mean_count": kalman.mean_count,
        },
        graph=kalman_graph(),
        offset=np.zeros(N_OUTPUTS),
        chosen=kalman.chosen,
        valid_r2=kalman.valid_r2,
    )


def ridge_graph() -> onnx.ModelProto:
    """`output (n_outputs,) = sum over spikes of tokens[spike, lags[spike]]`.

    tokens: (n_spikes, n_lags, n_outputs) float32. lags: (n_spikes, 1) int64.
    """
    return _model(
        "ridge",
        inputs=[
            _floats("tokens", "n_spikes", "n_lags", "n_outputs"),
            helper.make_tensor_value_info("lags", TensorProto.INT64, ["n_spikes", 1]),
        ],
        nodes=[
            helper.make_node("GatherND", ["tokens", "lags"], ["rows"], batch_dims=1),
            helper.make_node("ReduceSum", ["rows", "spikes_axis"], ["output"], keepdims=0),
        ],
        output=_floats("output", "n_outputs"),
    )


def kalman_graph() -> onnx.ModelProto:
    """`next_state = transition @ state + drift + sum over the bin's spikes of tokens`.

    tokens: (n_spikes, n_outputs) float32. state, drift: (n_outputs,).
    transition: (n_outputs, n_outputs).
    """
    return _model(
        "kalman",
        inputs=[
            _floats("tokens", "n_spikes", "n_outputs"),
            _floats("state", "n_outputs"),
            _floats("transition", "n_outputs", "n_outputs"),
            _floats("drift", "n_outputs"),
        ],
        nodes=[
            helper.make_node("ReduceSum", ["tokens", "spikes_axis"], ["seen"], keepdims=0),
            helper.make_node("MatMul", ["transition", "state"], ["carried"]),
            helper.make_node("Sum", ["carried", "drift", "seen"], ["next_state"]),
        ],
        output=_floats("next_state", "n_outputs"),
    )


def _floats(name: str, *shape: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _model(
    name: str,
    *,
    inputs: list[onnx.ValueInfoProto],
    nodes: list[onnx.NodeProto],
    output: onnx.ValueInfoProto,
) -> onnx.ModelProto:
    first_axis = helper.make_tensor("spikes_axis", TensorProto.INT64, [1], [0])
    graph = helper.make_graph(nodes, name, inputs, [output], initializer=[first_axis])
    return helper.make_model(
        graph,
        producer_name="volition",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
