"""Write a model's streaming graph as ONNX."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch

from training.exports.modules import INPUTS, OUTPUTS, example_inputs, streaming_module
from training.models.families import Config, Model, family

OPSET = 23


def export_graph(model: Model, config: Config, path: Path) -> None:
    """Write a model's streaming graph as ONNX."""
    streaming = streaming_module(model, config)
    example = example_inputs(streaming)
    n_spikes = torch.export.Dim("n_spikes", min=0, max=2**24)
    # Without gradients, `rotate` is plain arithmetic; its autograd function exports as scatters.
    with quiet_export(), torch.no_grad():
        program = torch.onnx.export(
            streaming,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=INPUTS[family(config)],
            output_names=OUTPUTS[family(config)],
            dynamic_shapes=({0: n_spikes}, *[None] * (len(example) - 1)),
            verbose=False,
        )
    assert program is not None
    onnx.save(without_traces(program.model_proto), str(path))


def without_traces(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Remove torch's metadata of each node: source lines, with paths of this machine."""
    parts = [graph, graph.graph, *graph.functions]
    for part in (graph.graph, *graph.functions):
        parts += [*part.node, *part.value_info]
    for part in parts:
        del part.metadata_props[:]
    return graph


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Silence the warnings of torch.onnx and onnxscript about their own internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
