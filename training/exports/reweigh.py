"""Put new weights into a bundle's graph of the same sizes, without a new export.

`torch.onnx.export` takes seconds, and models of the same sizes always give the same graph. If more
than the tables was learned, the base bundle's graph is kept and its constants are replaced.
Constants are identified by value: a constant is a parameter, as it is, transposed or with the rows
of its heads reordered, or it is a part of the folded latent queries (`_parts`). Nothing is guessed.
If no part of the base model matches a constant, or the new graph's output differs from torch's, the
model is exported in full.

This module does not depend on how the weights were learned (`training.calibration.adapt`).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from decoder.bundles import bundle
from training.exports.export import (
    OUTSIDE_GRAPH,
    changed_weights,
    export_model,
    refold,
    takes_readout,
    write_bundle,
)
from training.exports.modules import (
    INPUTS,
    StreamingPossm,
    StreamingPOYO,
    example_inputs,
    streaming_module,
)
from training.models.config import ModelConfig, PossmConfig
from training.models.encoder import latent_phases
from training.models.families import Config, Model, family
from training.models.rotary import Phases, split_rows
from training.pretraining import runs

Array = NDArray[np.generic]
SAME = 1e-6  # tolerance for weights, which are copied and reordered but never computed with
SAME_PHASE = 1e-4  # torch's exporter computes sines in float32: 3e-6 off at the shortest periods
AGREE = 1e-4  # between ONNX Runtime and torch, in units of the output scale
# The constants in `training.models.possm.chunk_input`.
LITERALS = (torch.tensor(math.pi), torch.tensor([0.5, 1.0]))


class ReweighError(Exception):
    """The base bundle's graph can't take these weights. Never leaves this module."""


def write_adapted(
    base: bundle.Bundle,
    model: Model,
    record: runs.RunRecord,
    session_id: str,
    path: Path | str,
    metrics: dict[str, float] | None = None,
) -> bundle.Bundle:
    """Write a model adapted from `base` as a bundle, by the fastest exact way.

    If only embeddings and the output layer differ, the base's graph is copied. Otherwise its
    constants are replaced, or the model is exported in full if they can't be.
    """
    if not takes_readout(base):
        return export_model(model, record, session_id, path, metrics)
    write = reweigh if changed_weights(base, model) else refold
    return write(base, model, record, session_id, path, metrics)


def reweigh(
    base: bundle.Bundle,
    model: Model,
    record: runs.RunRecord,
    session_id: str,
    path: Path | str,
    metrics: dict[str, float] | None = None,
) -> bundle.Bundle:
    """`export_model` by replacing the constants of `base`'s graph, or in full if they don't fit.

    `base` is of version 2 or later.
    """
    before, base_record = runs.load_model(base.path)
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / bundle.GRAPH
        try:
            if base_record.model != record.model or base_record.family != record.family:
                raise ReweighError(f"{base.path} has a model of other sizes")
            reweigh_graph(base.graph_path, before, model, record.config(), graph)
        except ReweighError:
            return export_model(model, record, session_id, path, metrics)
        return write_bundle(model, record, session_id, path, graph, metrics)


def reweigh_graph(source: Path, before: Model, after: Model, config: Config, path: Path) -> None:
    """Write the graph `source` of the model `before` with the constants of the model `after`.

    Raises ReweighError if a constant matches no part of `before`, or the outputs differ from
    torch's.
    """
    graph = onnx.load(source)
    module = streaming_module(after, config)
    old, new = parts(streaming_module(before, config)), parts(module)
    fixed = [tensor.numpy() for tensor in _fixed(module)]
    for constant in graph.graph.initializer:
        value = numpy_helper.to_array(constant)
        is_fixed = any(_same(value, one, SAME_PHASE) for one in fixed)
        if value.dtype == np.float32 and not is_fixed:
            fresh = _replacement(constant.name, value, old, new)
            constant.CopyFrom(numpy_helper.from_array(fresh, constant.name))
    onnx.save(graph, str(path))
    _check(path, module)


def _replacement(name: str, value: Array, old: dict[str, Array], new: dict[str, Array]) -> Array:
    """The part of the new model that corresponds to the constant `value` in the old model."""
    own = name.removeprefix("model.")
    matches = [own] if own in old and _same(value, old[own]) else []
    matches = matches or [part for part in old if _same(value, old[part])]
    if not matches:
        raise ReweighError(f"no part of the model matches {name} {value.shape}")
    fresh = [new[part] for part in matches]
    if any(not np.array_equal(fresh[0], other) for other in fresh[1:]):
        raise ReweighError(f"{name} matches more than one part of the model: {matches}")
    return np.ascontiguousarray(fresh[0].reshape(value.shape), dtype=np.float32)


def _same(value: Array, part: Array, apart: float = SAME) -> bool:
    if value.size != part.size or _lengths(value) != _lengths(part):
        return False
    return bool(np.allclose(value.reshape(part.shape), part, rtol=apart, atol=apart))


def _lengths(array: Array) -> list[int]:
    return [n for n in array.shape if n != 1]


def parts(module: StreamingPOYO | StreamingPossm) -> dict[str, Array]:
    """All constants that the graph of a streaming module may contain, by unique names."""
    with torch.no_grad():
        return {name: tensor.detach().numpy() for name, tensor in _parts(module)}


def _parts(module: StreamingPOYO | StreamingPossm) -> Iterator[tuple[str, Tensor]]:
    config = module.config
    encoder = config.encoder if isinstance(config, PossmConfig) else config
    for name, weight in runs.weights(module.model).items():
        if not name.startswith(OUTSIDE_GRAPH):
            yield name, weight
            yield f"{name}, transposed", weight.mT if weight.ndim > 1 else weight
            yield from _split(name, weight, encoder)
    latents = module.model.latent_emb.weight
    n_latents = module.gather.queries.shape[1]
    yield "latents", latents.repeat(n_latents // len(latents), 1)
    n = encoder.n_rotary
    queries = module.gather.queries.split([n, n, encoder.dim_head - 2 * n], dim=-1)
    yield from zip(("real", "imaginary", "unrotated"), queries, strict=True)


def _split(name: str, weight: Tensor, encoder: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """A projection with the rows of its heads in the streaming graph's layout (`split_rows`)."""
    if name.endswith(("to_q.weight", "to_kv.weight", "to_qkv.weight")):
        for n_parts in (1, 2, 3):
            for index, part in enumerate(weight.chunk(n_parts)):
                if len(part) % encoder.dim_head == 0:
                    rows = split_rows(part, encoder)
                    yield f"{name}, {index} of {n_parts}, split", rows
                    yield f"{name}, {index} of {n_parts}, split, transposed", rows.mT
    if name.endswith("to_out.weight"):
        yield f"{name}, split", split_rows(weight.mT, encoder).mT
        yield f"{name}, split, transposed", split_rows(weight.mT, encoder)


def _fixed(module: StreamingPOYO | StreamingPossm) -> Iterator[Tensor]:
    """Constants without weights: rotations, and the factors from chunk shares to angles."""
    config = module.config
    encoder = config.encoder if isinstance(config, PossmConfig) else config
    phases = [latent_phases(module.model, encoder)]
    if isinstance(module, StreamingPOYO):
        phases.append(Phases(cos=module.output_cos, sin=module.output_sin))
    for one in phases:
        yield from (one.cos, one.sin, -one.sin)
    yield from LITERALS


def _check(path: Path, module: StreamingPOYO | StreamingPossm) -> None:
    """Compare the outputs of the graph and the module on the same random inputs."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(like.shape, generator=generator) for like in example_inputs(module)]
    names = INPUTS[family(module.config)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    seen = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    with torch.no_grad():
        expected = module(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    apart = max(float(np.abs(a - b.numpy()).max()) for a, b in zip(seen, expected, strict=True))
    if not apart < AGREE:
        raise ReweighError(f"the outputs of the graph and torch differ by {apart:.1e}")
