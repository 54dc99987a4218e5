"""A trained model becomes a bundle: the streaming graph, and tables for one session's units.

    volition export RUN --session ID -o NAME.bundle

The graph is the model's inference, rewritten exactly:

- Keys and values of spikes come in already rotated to the clock (`decoder.memory.tokens`), so their
  cost is paid once, when a spike arrives. Rotations compose, so instead of moving every key
  into the window's frame, the few latent queries are rotated to the clock.
- Start and end tokens of all units stand still in the window. Their attention is folded into
  one log-sum-exp and one attended value a latent (`fold_tables`), which join the softmax as a
  single column.
- A streaming model's graph is one step: the open chunk's spikes and a state in, outputs and the
  next state out.

So the graph knows no unit: new units mean new tables, never a new export. It is batch one,
for any number of spikes, none included.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch_brain.models.poyo import POYO

from decoder.bundles import bundle
from decoder.bundles.families import UnitTables
from decoder.errors import TrainingError
from training.models import possm
from training.models.config import ModelConfig, PossmConfig
from training.models.encoder import (
    END,
    SPIKE,
    START,
    latent_phases,
    latent_queries,
    merge_spikes,
    omega,
    unit_tables,
)
from training.models.families import Config, Model, family, sizes
from training.models.possm import Possm
from training.models.poyo import process, read_out
from training.models.rotary import Phases, from_pairs, rotate
from training.pretraining import runs

OPSET = 23
EMBEDDINGS = ("unit_emb", "session_emb")
EXAMPLE_SPIKES = 64
SPIKE_INPUTS = ("tokens", "window_cos", "window_sin", "boundary_lse", "boundary_value", "session")
INPUTS = {"poyo": SPIKE_INPUTS, "possm": (*SPIKE_INPUTS, "state", "share")}
OUTPUTS = {"poyo": ("output",), "possm": ("output", "next_state")}


class Gather(nn.Module):
    """What latents gather from token rows and folded tables: (cross_heads, n_latents, dim_head)."""

    queries: Tensor

    def __init__(self, model: Model, encoder: ModelConfig) -> None:
        super().__init__()
        self.cross_heads = encoder.cross_heads
        queries = latent_queries(model, encoder, latent_phases(model, encoder))
        self.register_buffer("queries", queries.detach() * encoder.dim_head**-0.5)

    def forward(
        self,
        tokens: Tensor,
        window_cos: Tensor,
        window_sin: Tensor,
        boundary_lse: Tensor,
        boundary_value: Tensor,
    ) -> Tensor:
        """tokens: (n_spikes, 2 * cross_heads, dim_head), keys then values, rotated to the clock.

        window_cos, window_sin: (n_rotary,), phases of the window's (chunk's) start on the clock.
        boundary_lse, boundary_value: see `decoder.bundles.families.UnitTables`.
        """
        window_at = Phases(cos=window_cos, sin=window_sin)
        keys = tokens[:, : self.cross_heads].permute(1, 2, 0)
        values = tokens[:, self.cross_heads :].permute(1, 0, 2)
        scores = torch.matmul(rotate(self.queries, window_at), keys)
        weights = torch.softmax(torch.cat([boundary_lse[..., None], scores], dim=-1), dim=-1)
        attended = rotate(torch.matmul(weights[..., 1:], values), window_at.back())
        return attended + weights[..., :1] * boundary_value


class StreamingPOYO(nn.Module):
    """POYO at one window's end, from token rows and tables; the module that is exported."""

    latent_cos: Tensor
    latent_sin: Tensor
    output_cos: Tensor
    output_sin: Tensor

    def __init__(self, model: POYO, config: ModelConfig) -> None:
        super().__init__()
        self.model, self.config = model.eval(), config
        self.gather = Gather(model, config)
        latents_at = latent_phases(model, config)
        end = torch.tensor([[config.sequence_length]], dtype=torch.float64)
        output_at = Phases.of(end, omega(model, config))
        for name, value in {
            "latent_cos": latents_at.cos,
            "latent_sin": latents_at.sin,
            "output_cos": output_at.cos,
            "output_sin": output_at.sin,
        }.items():
            self.register_buffer(name, value)

    def forward(
        self,
        tokens: Tensor,
        window_cos: Tensor,
        window_sin: Tensor,
        boundary_lse: Tensor,
        boundary_value: Tensor,
        session: Tensor,
    ) -> Tensor:
        """Outputs (dim_out,) of the query at the window's end, in units of the output scale."""
        latents_at = Phases(cos=self.latent_cos, sin=self.latent_sin)
        outputs_at = Phases(cos=self.output_cos, sin=self.output_sin)
        attended = self.gather(tokens, window_cos, window_sin, boundary_lse, boundary_value)
        latents = merge_spikes(self.model, self.config, attended, latents_at)
        latents = process(self.model, self.config, latents[None], latents_at)
        output = read_out(
            self.model,
            self.config,
            latents,
            session[None],
            latents_at=latents_at,
            outputs_at=outputs_at,
        )
        return output[0, 0]


class StreamingPossm(nn.Module):
    """One step of a streaming model over the open chunk; the module that is exported."""

    def __init__(self, model: Possm, config: PossmConfig) -> None:
        super().__init__()
        self.model, self.config = model.eval(), config
        self.gather = Gather(model, config.encoder)

    def forward(
        self,
        tokens: Tensor,
        window_cos: Tensor,
        window_sin: Tensor,
        boundary_lse: Tensor,
        boundary_value: Tensor,
        session: Tensor,
        state: Tensor,
        share: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Outputs (dim_out,) in units of the output scale, and the state after the chunk.

        state: (hidden,), of the last closed chunk. share: (), of this chunk that has passed.
        """
        gathered = self.gather(tokens, window_cos, window_sin, boundary_lse, boundary_value)
        inputs = possm.chunk_input(self.model, self.config, gathered, share)
        state = possm.step(self.model, inputs, state)
        return possm.read_state(self.model, state, session), state


@torch.no_grad()
def fold_tables(
    model: Model, config: Config, unit_words: list[str], session_word: str
) -> UnitTables:
    """Everything that depends on one session's units, computed in float64.

    unit_words: words of the model's unit vocabulary, in the order of the bundle's unit ids.
    Raises TrainingError where the model never saw a unit or the session.
    """
    words, sessions = model.unit_emb.vocab, model.session_emb.vocab
    if missing := [word for word in unit_words if word not in words]:
        raise TrainingError(
            f"{len(missing)} units ({missing[0]}, …) are not in the run; it was trained on others"
        )
    if session_word not in sessions:
        raise TrainingError(
            f"session {session_word!r} is not in the run; it has {sorted(set(sessions) - {'NA'})}"
        )
    encoder = config.encoder if isinstance(config, PossmConfig) else config
    precise = copy.deepcopy(model).double()
    units = torch.tensor([words[word] for word in unit_words])
    rows = from_pairs(unit_tables(precise, encoder, units), encoder)
    heads = encoder.cross_heads
    frequencies = omega(model, encoder)
    boundary = rows[START].flatten(1, 2)
    if isinstance(config, ModelConfig):
        end = torch.tensor([config.sequence_length], dtype=torch.float64)
        boundary = torch.cat([boundary, _rotate64(rows[END].flatten(1, 2), end, frequencies)])
    keys, values = boundary[:, :heads], boundary[:, heads:]
    queries = _latent_queries64(precise, encoder) * encoder.dim_head**-0.5
    scores = torch.einsum("hld,nhd->hln", queries, keys)
    attended = torch.einsum("hln,nhd->hld", scores.softmax(-1), values)
    return UnitTables(
        tokens=rows[SPIKE].flatten(1, 2).float().numpy(),
        boundary_lse=scores.logsumexp(-1).float().numpy(),
        boundary_value=attended.float().numpy(),
        session=model.session_emb.weight[sessions[session_word]].float().numpy(),
        omega=frequencies.numpy(),
    )


def _rotate64(x: Tensor, times: Tensor, frequencies: Tensor) -> Tensor:
    angles = times[:, None] * frequencies
    return rotate(x, Phases(cos=angles.cos(), sin=angles.sin()))


def _latent_queries64(model: Model, config: ModelConfig) -> Tensor:
    latents_at = latent_phases(model, config)
    return latent_queries(
        model, config, Phases(cos=latents_at.cos.double(), sin=latents_at.sin.double())
    )


def streaming_module(model: Model, config: Config) -> StreamingPOYO | StreamingPossm:
    """The module of a model that is exported."""
    if isinstance(config, PossmConfig):
        assert isinstance(model, Possm)
        return StreamingPossm(model, config)
    assert isinstance(model, POYO)
    return StreamingPOYO(model, config)


def example_inputs(module: StreamingPOYO | StreamingPossm) -> tuple[Tensor, ...]:
    """What the graph takes, in order, with nothing in it."""
    config = module.config
    encoder = config.encoder if isinstance(config, PossmConfig) else config
    width, heads = encoder.dim_head, encoder.cross_heads
    n_latents = module.gather.queries.shape[1]
    inputs = (
        torch.zeros(EXAMPLE_SPIKES, 2 * heads, width),
        torch.ones(encoder.n_rotary),
        torch.zeros(encoder.n_rotary),
        torch.zeros(heads, n_latents),
        torch.zeros(heads, n_latents, width),
        torch.zeros(encoder.dim),
    )
    if isinstance(config, PossmConfig):
        return (*inputs, torch.zeros(config.hidden), torch.ones(()))
    return inputs


def export_graph(model: Model, config: Config, path: Path) -> None:
    """Write the streaming graph of one preset's weights as ONNX."""
    streaming = streaming_module(model, config)
    example = example_inputs(streaming)
    n_spikes = torch.export.Dim("n_spikes", min=0, max=2**24)
    # without gradients `rotate` is plain arithmetic; its autograd function would export as scatters
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
    """Without what torch notes of every node: lines of source, with paths of this machine."""
    parts = [graph, graph.graph, *graph.functions]
    for part in (graph.graph, *graph.functions):
        parts += [*part.node, *part.value_info]
    for part in parts:
        del part.metadata_props[:]
    return graph


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Without the warnings that torch.onnx and onnxscript give about their own insides."""
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


def export_run(run: Path | str, session_id: str | None, path: Path | str) -> bundle.Bundle:
    """Write the best weights of a run as a bundle for one of its sessions.

    session_id: may be left out where the run has one session only.
    """
    model, record = runs.load_model(run)
    if session_id is None:
        if len(record.session_words) != 1:
            raise TrainingError(f"{run} has {len(record.session_words)} sessions; name one")
        session_id = record.session_words[0]
    return export_model(model, record, session_id, path, metrics={"validation_r2": record.best_r2})


def export_model(
    model: Model,
    record: runs.RunRecord,
    session_id: str,
    path: Path | str,
    metrics: dict[str, float] | None = None,
) -> bundle.Bundle:
    """Write a model as a bundle for one session of its record."""
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / bundle.GRAPH
        export_graph(model, record.config(), graph)
        return write_bundle(model, record, session_id, path, graph, metrics)


def refold(
    base: bundle.Bundle,
    model: Model,
    record: runs.RunRecord,
    session_id: str,
    path: Path | str,
    metrics: dict[str, float] | None = None,
) -> bundle.Bundle:
    """`export_model` where only embeddings were learned since `base`: its graph, new tables.

    Raises TrainingError where anything else of the model differs from the bundle's weights.
    """
    if changed := changed_weights(base, model):
        raise TrainingError(f"{changed[0]} is not that of {base.path}; export the model anew")
    return write_bundle(model, record, session_id, path, base.graph_path, metrics)


def changed_weights(base: bundle.Bundle, model: Model) -> list[str]:
    """Names of what differs from a bundle's weights, besides embeddings."""
    before = runs.load_tensors(base.weights_path)
    return [
        name
        for name, tensor in runs.weights(model).items()
        if not name.startswith(EMBEDDINGS)
        and not (name in before and torch.equal(tensor, before[name]))
    ]


def _point(point: dict[str, float]) -> bundle.HistoryPoint:
    """A validation for the manifest; a run that went on for no step has no loss of its own."""
    loss = point["loss"]
    return bundle.HistoryPoint.model_validate(
        point | {"loss": loss if math.isfinite(loss) else None}
    )


def write_bundle(
    model: Model,
    record: runs.RunRecord,
    session_id: str,
    path: Path | str,
    graph: Path,
    metrics: dict[str, float] | None,
) -> bundle.Bundle:
    """A model as a bundle, with a streaming graph that is its own."""
    config = record.config()
    prefix = f"{session_id}/"
    words = [word for word in record.unit_words if word.startswith(prefix)]
    scale = record.scale(session_id)
    manifest = bundle.Manifest(
        decoder_id=bundle.new_decoder_id(session_id),
        family=record.family,
        preset=record.preset,
        sizes=sizes(config),
        outputs=tuple(
            bundle.Output(name=name, unit="m/s", scale=scale.std[i], offset=scale.mean[i])
            for i, name in enumerate(("vel_x", "vel_y"))
        ),
        session_id=session_id,
        unit_ids=tuple(word.removeprefix(prefix) for word in words),
        provenance=_provenance(record),
        metrics={name: value for name, value in (metrics or {}).items() if math.isfinite(value)},
        history=tuple(_point(point) for point in record.history),
        checksums={},
    )
    return bundle.write(
        path,
        manifest=manifest,
        graph=graph,
        tables=fold_tables(model, config, words, session_id),
        weights={k: np.ascontiguousarray(v.numpy()) for k, v in runs.weights(model).items()},
        run=runs.portable(record),
    )


def _provenance(record: runs.RunRecord) -> dict[str, str | float | int]:
    from importlib.metadata import version

    base = record.settings.get("base")  # the decoder that it was recalibrated from
    return {
        **({"base": base} if base else {}),
        "seed": record.seed,
        "steps": record.step,
        "training_seconds": round(record.seconds, 1),
        "torch": torch.__version__,
        "torch_brain": version("torch-brain"),
        "opset": OPSET,
    }
