"""Export a graph that embeds spikes itself, for accelerators.

It has the weights and tables of the streaming graph (`training.exports.modules`). The streaming
graph takes token rows, which were rotated to the clock when their spikes arrived. Here a spike is
a unit number and the seconds since the start of the window (or chunk). Look-up, rotation and all
that follows are nodes of the graph. Empty slots are masked, so any number of spikes fits a fixed
shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from decoder.arrays import Float32s
from decoder.bundles.families import AttentionTables
from decoder.runtimes.device import SLOTS
from training.exports.graph import OPSET, quiet_export, without_traces
from training.exports.modules import StreamingPossm, StreamingPOYO, streaming_module
from training.models import possm
from training.models.config import ModelConfig, PossmConfig
from training.models.encoder import omega
from training.models.families import Config, Model
from training.models.poyo import read_out
from training.models.rotary import Phases, split_rows

EXAMPLE_UNITS, EXAMPLE_SLOTS = 4, 8
TABLES = ("tokens", "boundary_lse", "boundary_value", "session")
MASKED = -1e30


class Rotations(nn.Module):
    """Cosine and sine of rotations, laid out to rotate whole heads with one product and one sum.

    The rotation of a head `[real | imaginary | unrotated]` is `x * cos + swapped(x) * sin`, where
    `swapped(x)` is `[-imaginary | real | 0]`. The rows of a projection can be swapped in advance,
    so the device computes both halves in one matrix product, without slices.
    """

    turns_per_s: Tensor
    shift: Tensor

    def __init__(self, frequencies: Tensor, dim_head: int) -> None:
        super().__init__()
        still = torch.zeros(dim_head - 2 * len(frequencies), dtype=torch.float64)
        turns = torch.cat([frequencies, frequencies, still]) / (2 * torch.pi)
        self.register_buffer("turns_per_s", turns.repeat(2))
        self.register_buffer(
            "shift", torch.tensor([0.0, -0.25]).double().repeat_interleave(dim_head)
        )

    def forward(self, seconds: Tensor) -> Tensor:
        """Cosine, then sine (a cosine shifted by a quarter turn): (n, 2, 1, dim_head) float32."""
        turns = seconds[:, None] * self.turns_per_s + self.shift
        angles = ((turns - turns.floor()) * (2 * torch.pi)).float()  # whole turns cost precision
        phases: Tensor = angles.cos().unflatten(-1, (2, 1, -1))
        return phases


def swapped(x: Tensor, n_rotary: int, dim: int) -> Tensor:
    """Swap heads `[real | imaginary | unrotated]` to `[-imaginary | real | 0]` along an axis."""
    real, imag, rest = x.split([n_rotary, n_rotary, x.shape[dim] - 2 * n_rotary], dim)
    return torch.cat([-imag, real, torch.zeros_like(rest)], dim)


def with_swapped(tokens: Tensor) -> Tensor:
    """Stack token rows (n_units, 2 * cross_heads, dim_head) and their swap: (n_units, 2, …)."""
    return torch.stack([tokens, swapped(tokens, tokens.shape[-1] // 4, -1)], dim=1)


def device_tables(tables: AttentionTables) -> dict[str, Float32s]:
    """The inputs of the graph that stay the same until a calibration."""
    tokens: Float32s = with_swapped(torch.from_numpy(tables.tokens)).numpy()
    return {"tokens": tokens, **{name: getattr(tables, name) for name in TABLES[1:]}}


class UnrotatedProjection(nn.Module):
    """The output projection of attention with rotated values: rotates back, then projects."""

    weight: Tensor
    turns: Tensor

    def __init__(self, projection: nn.Linear, config: ModelConfig, turns: Tensor) -> None:
        super().__init__()
        weight = split_rows(projection.weight.T, config).unflatten(0, (-1, config.dim_head))
        # The swap is transposed and the angle negated: two changes of sign that cancel.
        sines = swapped(weight, config.n_rotary, 1)
        self.register_buffer("weight", torch.stack([weight, sines]).flatten(0, 2))
        self.register_buffer("turns", turns)
        self.bias = projection.bias

    def forward(self, heads: Tensor) -> Tensor:
        """Project heads (n_latents, n_heads, dim_head) to (n_latents, dim)."""
        return torch.addmm(self.bias, (heads[:, None] * self.turns).flatten(1), self.weight)


class DeviceGather(nn.Module):
    """Attention over slots of spikes: (n_latents, cross_heads, dim_head)."""

    queries: Tensor

    def __init__(self, streaming: StreamingPOYO | StreamingPossm, turns: Rotations) -> None:
        super().__init__()
        self.cross_heads = streaming.gather.cross_heads
        self.turns = turns
        self.register_buffer("queries", streaming.gather.queries)

    def forward(
        self, spikes: Tensor, tokens: Tensor, boundary_lse: Tensor, boundary_value: Tensor
    ) -> Tensor:
        """Attend to spikes and boundary tokens.

        spikes: (n_slots, 2) float64, unit (negative: empty slot) and seconds since the start.
        tokens: see `with_swapped`.
        boundary_lse, boundary_value: see `decoder.bundles.families.AttentionTables`.
        """
        unit, since = spikes.unbind(1)
        known = torch.index_select(tokens, 0, unit.clamp(min=0).long())
        rows = (known * self.turns(since)).sum(1)
        keys, values = rows.permute(1, 0, 2).split(self.cross_heads)
        masked = unit.clamp(max=0).float() * -MASKED
        scores = torch.matmul(self.queries, keys.transpose(1, 2)) + masked
        weights = torch.softmax(torch.cat([boundary_lse[..., None], scores], dim=-1), dim=-1)
        gathered = torch.matmul(weights[..., 1:], values) + weights[..., :1] * boundary_value
        return gathered.transpose(0, 1)


class Layer(nn.Module):
    """A self-attention layer over latents (n_latents, dim), with few kernels."""

    weight: Tensor
    turns: Tensor

    def __init__(
        self, attention: Any, feed_forward: Any, config: ModelConfig, turns: Tensor
    ) -> None:
        super().__init__()
        self.heads, self.norm, self.feed_forward = config.self_heads, attention.norm, feed_forward
        query, key, value = attention.to_qkv.weight.chunk(3)
        parts = [query * config.dim_head**-0.5, key, value]
        rows = torch.cat([split_rows(part, config) for part in parts])
        rows = rows.unflatten(0, (-1, config.dim_head))
        both = torch.stack([rows, swapped(rows, config.n_rotary, 1)])
        self.register_buffer("weight", both.flatten(0, 2).T.contiguous())
        self.register_buffer("turns", turns)
        self.out = UnrotatedProjection(attention.to_out, config, turns)

    def forward(self, latents: Tensor) -> Tensor:
        """The latents (n_latents, dim) after the layer."""
        both = torch.matmul(self.norm(latents), self.weight)
        both = both.unflatten(-1, (2, -1, self.turns.shape[-1])) * self.turns
        query, key, value = both.sum(1).permute(1, 0, 2).split(self.heads)
        weights = torch.softmax(torch.matmul(query, key.transpose(1, 2)), dim=-1)
        latents = latents + self.out(torch.matmul(weights, value).transpose(0, 1))
        after: Tensor = latents + self.feed_forward(latents)
        return after


class DevicePOYO(nn.Module):
    """POYO at the end of one window, from slots of spikes."""

    latents: Tensor

    def __init__(self, streaming: StreamingPOYO) -> None:
        super().__init__()
        self.streaming = streaming
        model, config = streaming.model, streaming.config
        turns = Rotations(omega(model, config), config.dim_head)
        n_steps = round(config.sequence_length / config.latent_step)
        grid = (torch.arange(n_steps).double() + 0.5) * config.latent_step
        latents_at = turns(grid.repeat_interleave(config.num_latents_per_step))
        self.gather = DeviceGather(streaming, turns)
        self.merge = UnrotatedProjection(model.enc_atn.to_out, config, latents_at)
        self.register_buffer("latents", model.latent_emb.weight.repeat(n_steps, 1))
        self.layers = nn.ModuleList(
            Layer(attention, feed_forward, config, latents_at)
            for attention, feed_forward in model.proc_layers
        )

    def forward(
        self,
        spikes: Tensor,
        tokens: Tensor,
        boundary_lse: Tensor,
        boundary_value: Tensor,
        session: Tensor,
    ) -> Tensor:
        """Outputs (dim_out,), as of `StreamingPOYO`."""
        part = self.streaming
        latents = self.latents + self.merge(
            self.gather(spikes, tokens, boundary_lse, boundary_value)
        )
        latents = latents + part.model.enc_ffn(latents)
        for layer in self.layers:
            latents = layer(latents)
        output = read_out(
            part.model, part.config, latents[None], session[None],
            latents_at=Phases(cos=part.latent_cos, sin=part.latent_sin),
            outputs_at=Phases(cos=part.output_cos, sin=part.output_sin),
        )  # fmt: skip
        return output[0, 0]


class DevicePossm(nn.Module):
    """One step of a streaming model, from slots of spikes in the open chunk."""

    def __init__(self, streaming: StreamingPossm) -> None:
        super().__init__()
        self.streaming = streaming
        encoder = streaming.config.encoder
        turns = Rotations(omega(streaming.model, encoder), encoder.dim_head)
        self.gather = DeviceGather(streaming, turns)

    def forward(
        self,
        spikes: Tensor,
        tokens: Tensor,
        boundary_lse: Tensor,
        boundary_value: Tensor,
        session: Tensor,
        state: Tensor,
        share: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Outputs (dim_out,) and the next state (hidden,), as of `StreamingPossm`."""
        part = self.streaming
        gathered = self.gather(spikes, tokens, boundary_lse, boundary_value)
        gathered = gathered.transpose(0, 1)
        inputs = possm.chunk_input(part.model, part.config, gathered, share)
        state = possm.step(part.model, inputs, state)
        return possm.read_state(part.model, state, session), state


def export_device_graph(model: Model, config: Config, path: Path) -> None:
    """Write a model's graph that embeds spikes itself, as ONNX."""
    streaming = streaming_module(model, config)
    encoder = config.encoder if isinstance(config, PossmConfig) else config
    heads, width = encoder.cross_heads, encoder.dim_head
    n_latents = streaming.gather.queries.shape[1]
    example: tuple[Tensor, ...] = (
        torch.zeros(EXAMPLE_SLOTS, 2, dtype=torch.float64),
        with_swapped(torch.zeros(EXAMPLE_UNITS, 2 * heads, width)),
        torch.zeros(heads, n_latents),
        torch.zeros(heads, n_latents, width),
        torch.zeros(encoder.dim),
    )
    names = ["spikes", *TABLES]
    if isinstance(streaming, StreamingPossm):
        module: nn.Module = DevicePossm(streaming)
        example = (*example, torch.zeros(streaming.config.hidden), torch.ones(()))
        names += ["state", "share"]
    else:
        module = DevicePOYO(streaming)
    slots, units = torch.export.Dim(SLOTS, min=2), torch.export.Dim("n_units", min=1)
    shapes = ({0: slots}, {0: units}, *[None] * (len(example) - 2))
    with quiet_export(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(), example, dynamo=True, opset_version=OPSET, input_names=names,
            output_names=["output", "next_state"][: 1 + isinstance(module, DevicePossm)],
            dynamic_shapes=shapes, verbose=False,
        )  # fmt: skip
    assert program is not None
    onnx.save(without_traces(program.model_proto), str(path))
