"""torch_brain's POYO, and a forward pass of the same weights that does less work.

`POYO` of torch_brain (Azabou et al., NeurIPS 2023) is the reference and owns the weights. The
functions here compute its outputs from those weights, equal to float32 rounding, with three
exact rewrites:

- Key and value of a spike depend on its unit and token type alone, so LayerNorm and projection
  run once a unit (`unit_tables`) and spikes only look them up.
- Latent queries of the encoder are the same in every window: one matrix for a whole batch.
- Rotary pairs are stored apart, `[real | imaginary | unrotated]` in each head, by permuting
  the projections' rows, so that a rotation touches the rotated half only and copies nothing.

It does not know where windows come from (`training.data.windows`) or how a model is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_brain.models.poyo import POYO

from decoder.arrays import Floats
from training.models.attention import attend

if TYPE_CHECKING:
    from training.models.possm import Possm

N_TOKEN_TYPES = 3  # spike, start of sequence, end of sequence
SPIKE, START, END = range(N_TOKEN_TYPES)
N_QUERIES = 16  # of a training window


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of a POYO; names and meanings as in `torch_brain.models.POYO`."""

    sequence_length: float = 1.0
    latent_step: float = 0.125
    num_latents_per_step: int = 16
    dim: int = 64
    depth: int = 6
    dim_head: int = 64
    cross_heads: int = 2
    self_heads: int = 8
    ffn_dropout: float = 0.2
    lin_dropout: float = 0.4
    atn_dropout: float = 0.2
    t_min: float = 1e-4
    t_max: float = 2.0627
    dim_out: int = 2

    @property
    def n_rotary(self) -> int:
        """Rotary frequencies per head: half of the head is rotated, in pairs."""
        return self.dim_head // 4

    @property
    def window_s(self) -> float:
        """Seconds of a window, in training and live."""
        return self.sequence_length

    @property
    def n_together(self) -> int:
        """A window knows nothing of others."""
        return 1

    def training_queries(self, rng: np.random.Generator) -> Floats:
        """Times in a training window that are asked for: denser towards its end, one there."""
        ages = rng.uniform(size=N_QUERIES - 1) ** 2
        return np.append(self.sequence_length * (1.0 - ages), self.sequence_length)

    def walking(self, intervals: Floats) -> ModelConfig:
        """With windows for walking these intervals (n, 2): the same."""
        return self

    def walked_queries(self, step_s: float) -> Floats:
        """Times that one window answers for when a recording is walked: its end."""
        return np.array([self.sequence_length])


def split_index(config: ModelConfig, device: torch.device) -> Tensor:
    """Positions in a torch_brain head, in the order `[real | imag | rest]`: (dim_head,)."""
    n_rot = 2 * config.n_rotary
    index = [*range(0, n_rot, 2), *range(1, n_rot, 2), *range(n_rot, config.dim_head)]
    return torch.tensor(index, device=device)


def from_pairs(heads: Tensor, config: ModelConfig) -> Tensor:
    """Heads (..., dim_head) in torch_brain's layout, rotary pairs side by side, as split ones."""
    return heads[..., split_index(config, heads.device)]


def to_pairs(heads: Tensor, config: ModelConfig) -> Tensor:
    """Split heads (..., dim_head) in torch_brain's layout, where a rotation is complex."""
    return heads[..., torch.argsort(split_index(config, heads.device))]


def split_rows(weight: Tensor, config: ModelConfig) -> Tensor:
    """Permute rows (..., n_heads * dim_head, dim) so that each head is `[real | imag | rest]`."""
    heads: Tensor = weight.unflatten(0, (-1, config.dim_head))
    return heads[:, split_index(config, weight.device)].flatten(0, 1)


def omega(model: POYO | Possm, config: ModelConfig) -> Tensor:
    """Rotary frequencies (n_rotary,) float64, rad/s: torch_brain's float32 values, widened."""
    frequencies: Tensor = model.rotary_emb.omega
    return frequencies[: config.n_rotary].double()


class _Rotated(torch.autograd.Function):
    """`rotate` whose gradient is one rotation back, not a sum of zero-padded slices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        turned = x.clone(memory_format=torch.contiguous_format)
        _rotate_(turned, cos, sin)
        return turned

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        turned = grads[0].clone(memory_format=torch.contiguous_format)
        _rotate_(turned, cos, -sin)
        return turned, None, None


def _rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    n = cos.shape[-1]
    real, imag = x[..., :n], x[..., n : 2 * n]
    turned = real * sin
    real.mul_(cos).addcmul_(imag, sin, value=-1.0)
    imag.mul_(cos).add_(turned)


def unit_tables(model: POYO | Possm, config: ModelConfig, units: Tensor | None = None) -> Tensor:
    """Keys and values of every token: (n_token_types, n_units, 2, cross_heads, dim_head), in
    torch_brain's layout.

    A token is the sum of its type and its unit, both projected by themselves: LayerNorm of a sum
    is a sum of what it centres, over a deviation that follows from their dot products.

    units: (n_units,) rows of the unit embedding; all of them where left out.
    """
    attention = model.enc_atn
    norm, project = attention.norm_context, attention.to_kv
    unit = model.unit_emb.weight if units is None else F.embedding(units, model.unit_emb.weight)
    kind = model.token_type_emb.weight[:N_TOKEN_TYPES]
    unit, kind = (x - x.mean(dim=-1, keepdim=True) for x in (unit, kind))
    weight = project.weight * norm.weight
    variance = (
        kind.square().mean(dim=-1)[:, None]
        + unit.square().mean(dim=-1)
        + F.linear(kind, unit) * (2.0 / config.dim)
    )
    rows = F.linear(kind, weight)[:, None] + F.linear(unit, weight)
    rows = rows * (variance + norm.eps).rsqrt()[..., None] + F.linear(norm.bias, project.weight)
    tables: Tensor = rows.unflatten(-1, (2, config.cross_heads, config.dim_head))
    return tables


@dataclass(frozen=True, kw_only=True)
class Phases:
    """Cosine and sine of rotations, each (..., n_rotary) float32."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, times: Tensor, frequencies: Tensor) -> Phases:
        """Phases of `times` (...) float64 seconds at `frequencies` (n_rotary,) float64 rad/s."""
        angles = times.double()[..., None] * frequencies
        return cls(cos=angles.cos().float(), sin=angles.sin().float())

    def per_head(self) -> Phases:
        """With an axis for heads before the last: (..., 1, n_rotary)."""
        return Phases(cos=self.cos.unsqueeze(-2), sin=self.sin.unsqueeze(-2))

    def back(self) -> Phases:
        """The opposite rotation."""
        return Phases(cos=self.cos, sin=-self.sin)


def rotate(x: Tensor, by: Phases) -> Tensor:
    """Rotate `[real | imag | rest]` heads (..., dim_head) by phases (..., n_rotary)."""
    if torch.is_grad_enabled() and x.requires_grad:
        turned: Tensor = _Rotated.apply(x, by.cos, by.sin)  # type: ignore[no-untyped-call]
        return turned
    n = by.cos.shape[-1]
    real, imag, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
    return torch.cat([real * by.cos - imag * by.sin, real * by.sin + imag * by.cos, rest], dim=-1)


def latent_phases(model: POYO | Possm, config: ModelConfig) -> Phases:
    """Phases (n_latents, n_rotary) of all latents, from the window's start."""
    n_steps = round(config.sequence_length / config.latent_step)
    frequencies = omega(model, config)
    steps = torch.arange(n_steps, dtype=torch.float64, device=frequencies.device)
    grid = (steps + 0.5) * config.latent_step
    return Phases.of(grid.repeat_interleave(config.num_latents_per_step), frequencies)


def latent_queries(model: POYO | Possm, config: ModelConfig, latents_at: Phases) -> Tensor:
    """Encoder queries (cross_heads, n_latents, dim_head), rotated to their time in the window."""
    attention = model.enc_atn
    weight = split_rows(attention.to_q.weight, config)
    per_step = F.linear(attention.norm(model.latent_emb.weight), weight)
    n_steps = round(config.sequence_length / config.latent_step)
    queries = per_step.repeat(n_steps, 1).unflatten(-1, (config.cross_heads, config.dim_head))
    return rotate(queries, latents_at.per_head()).transpose(0, 1)


def merge_spikes(
    model: POYO | Possm, config: ModelConfig, attended: Tensor, latents_at: Phases
) -> Tensor:
    """Latents (..., n_latents, dim) after the encoder.

    attended: (..., cross_heads, n_latents, dim_head), what latents gathered from spikes, in
        the window's frame (values rotated by their time since the window's start).
    """
    attention = model.enc_atn
    gathered = rotate(attended, latents_at.back()).transpose(-2, -3).flatten(-2)
    out_weight = split_rows(attention.to_out.weight.T, config).T
    n_steps = round(config.sequence_length / config.latent_step)
    latents = model.latent_emb.weight.repeat(n_steps, 1)
    latents = latents + F.linear(gathered, out_weight, attention.to_out.bias)
    merged: Tensor = latents + model.enc_ffn(latents)
    return merged


def process(model: POYO, config: ModelConfig, latents: Tensor, latents_at: Phases) -> Tensor:
    """The self-attention layers over latents (..., n_latents, dim)."""
    per_part = latents_at.per_head().per_head()
    dropout = config.atn_dropout if model.training else 0.0
    for attention, feed_forward in model.proc_layers:
        parts = attention.to_qkv.weight.chunk(3)
        weight = torch.cat([split_rows(part, config) for part in parts])
        x = F.linear(attention.norm(latents), weight)
        x = rotate(x.unflatten(-1, (3, config.self_heads, config.dim_head)), per_part)
        query, key, value = (part.transpose(-2, -3) for part in x.unbind(-3))
        out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        out = rotate(out, latents_at.back()).transpose(-2, -3).flatten(-2)
        out_weight = split_rows(attention.to_out.weight.T, config).T
        latents = latents + model.dropout(F.linear(out, out_weight, attention.to_out.bias))
        latents = latents + model.dropout(feed_forward(latents))
    return latents


def read_out(
    model: POYO,
    config: ModelConfig,
    latents: Tensor,
    session: Tensor,
    *,
    latents_at: Phases,
    outputs_at: Phases,
) -> Tensor:
    """Outputs (B, n_outputs, dim_out).

    latents: (B, n_latents, dim). session: (B, dim), session embeddings.
    outputs_at: phases (B, n_outputs, n_rotary) of the queries.
    """
    attention = model.dec_atn
    heads = (config.cross_heads, config.dim_head)
    n_outputs = outputs_at.cos.shape[1]
    query = F.linear(attention.norm(session), split_rows(attention.to_q.weight, config))
    query = query.unflatten(-1, heads)[:, None].expand(-1, n_outputs, -1, -1)
    query = rotate(query, outputs_at.per_head())
    key_weight, value_weight = attention.to_kv.weight.chunk(2)
    context = attention.norm_context(latents)
    key = F.linear(context, split_rows(key_weight, config)).unflatten(-1, heads)
    key = rotate(key, latents_at.per_head())
    value = F.linear(context, value_weight).unflatten(-1, heads)
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        dropout_p=config.atn_dropout if model.training else 0.0,
    )
    queries = session[:, None] + attention.to_out(out.transpose(1, 2).flatten(-2))
    outputs: Tensor = model.readout(queries + model.dec_ffn(queries))
    return outputs


def compact(model: POYO | Possm, config: ModelConfig, token: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (n_tokens,) of a table (n_rows, 2, cross_heads, dim_head) of this batch's units, as
    `unit_tables` makes it.

    So that a step costs what its units cost, however many units the vocabulary has.
    """
    n_words = len(model.unit_emb.weight)
    unit, kind = token % n_words, token // n_words
    position = torch.zeros(n_words, dtype=torch.int64, device=token.device)
    position[unit] = 1
    units = position.nonzero()[:, 0]
    position[units] = torch.arange(len(units), device=units.device)
    tables = unit_tables(model, config, units).flatten(0, 1)
    return kind * len(units) + position[unit], tables


def forward(
    model: POYO,
    config: ModelConfig,
    *,
    token: Tensor,
    times: Tensor,
    lengths: Tensor,
    session_index: Tensor,
    output_times: Tensor,
) -> Tensor:
    """POYO's outputs (B, n_outputs, dim_out), equal to `POYO.forward` to float32 rounding.

    token: (n_tokens,) int64, `token_type * vocabulary + unit`, one window after the other.
    times: (n_tokens,) float64, seconds from the window's start.
    lengths: (B,) int64, tokens of each window.
    output_times: (B, n_outputs) float64, seconds from the window's start.
    """
    frequencies = omega(model, config)
    latents_at = latent_phases(model, config)
    row, tables = compact(model, config, token)
    at = Phases.of(times, frequencies)
    attended = attend(
        to_pairs(latent_queries(model, config, latents_at), config),
        tables,
        token=row,
        turn=torch.complex(at.cos, at.sin),
        lengths=lengths,
        dropout=config.atn_dropout if model.training else 0.0,
    )
    latents = merge_spikes(model, config, from_pairs(attended, config), latents_at)
    return read_out(
        model,
        config,
        process(model, config, latents, latents_at),
        model.session_emb(session_index),
        latents_at=latents_at,
        outputs_at=Phases.of(output_times, frequencies),
    )
