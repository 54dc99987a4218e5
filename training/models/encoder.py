"""The ends that both model families share: the spike encoder and the output layer.

In the encoder, a few latents attend to the spikes of a window. Its functions compute torch_brain's
encoder from its weights, equal to float32 rounding, but with less work (`training.models.poyo`).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.config import ModelConfig
from training.models.rotary import Phases, rotate, split_rows

N_TOKEN_TYPES = 3  # spike, start of sequence, end of sequence
SPIKE, START, END = range(N_TOKEN_TYPES)


class SpikeEncoder(Protocol):
    """The encoder's weights, by the names that `POYO` and `Possm` share."""

    unit_emb: Any  # torch_brain's classes have no types
    identifier: Any
    token_type_emb: nn.Embedding
    latent_emb: nn.Embedding
    rotary_emb: Any
    enc_atn: Any
    enc_ffn: nn.Sequential


def output_layer(layer: nn.Linear, features: Tensor, readout: Tensor | None) -> Tensor:
    """Outputs (..., dim_out) of features (..., dim).

    readout: (dim_out, dim + 1), weights and offset to use in place of the layer's own; a streaming
        graph gets them as an input (`decoder.bundles.families.AttentionTables`).
    """
    if readout is not None:
        return F.linear(features, readout[:, :-1], readout[:, -1])
    outputs: Tensor = layer(features)
    return outputs


def omega(model: SpikeEncoder, config: ModelConfig) -> Tensor:
    """Rotary frequencies (n_rotary,) in rad/s: torch_brain's float32 values as float64."""
    frequencies: Tensor = model.rotary_emb.omega
    return frequencies[: config.n_rotary].double()


def unit_tables(model: SpikeEncoder, config: ModelConfig, unit: Tensor) -> Tensor:
    """Keys and values of all tokens: (n_token_types, n_units, 2, cross_heads, dim_head).

    Heads are in torch_brain's layout. A token is the sum of a type embedding and a unit embedding.
    Both are centred and projected separately; their dot products give the deviation that LayerNorm
    divides the sum by.

    unit: (n_units, dim), embeddings of the units.
    """
    attention = model.enc_atn
    norm, project = attention.norm_context, attention.to_kv
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


def latent_phases(model: SpikeEncoder, config: ModelConfig) -> Phases:
    """Phases (n_latents, n_rotary) of all latents, relative to the window's start."""
    n_steps = round(config.sequence_length / config.latent_step)
    frequencies = omega(model, config)
    steps = torch.arange(n_steps, dtype=torch.float64, device=frequencies.device)
    grid = (steps + 0.5) * config.latent_step
    return Phases.of(grid.repeat_interleave(config.num_latents_per_step), frequencies)


def latent_queries(model: SpikeEncoder, config: ModelConfig, latents_at: Phases) -> Tensor:
    """Encoder queries (cross_heads, n_latents, dim_head), rotated to their times in the window."""
    attention = model.enc_atn
    weight = split_rows(attention.to_q.weight, config)
    per_step = F.linear(attention.norm(model.latent_emb.weight), weight)
    n_steps = round(config.sequence_length / config.latent_step)
    queries = per_step.repeat(n_steps, 1).unflatten(-1, (config.cross_heads, config.dim_head))
    return rotate(queries, latents_at.per_head()).transpose(0, 1)


def merge_spikes(
    model: SpikeEncoder, config: ModelConfig, attended: Tensor, latents_at: Phases
) -> Tensor:
    """Latents (..., n_latents, dim) after the encoder.

    attended: (..., cross_heads, n_latents, dim_head), the attention output over spikes, in the
        window's frame (values rotated by their time since the window's start).
    """
    attention = model.enc_atn
    gathered = rotate(attended, latents_at.back()).transpose(-2, -3).flatten(-2)
    out_weight = split_rows(attention.to_out.weight.T, config).T
    n_steps = round(config.sequence_length / config.latent_step)
    latents = model.latent_emb.weight.repeat(n_steps, 1)
    latents = latents + F.linear(gathered, out_weight, attention.to_out.bias)
    merged: Tensor = latents + model.enc_ffn(latents)
    return merged


def compact(
    model: SpikeEncoder,
    config: ModelConfig,
    token: Tensor,
    parts: Tensor | None,
    profile: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Build a token table of this batch's units only, and renumber the tokens to its rows.

    The cost of a step then depends on the units in its batch, not on the size of the vocabulary.
    parts, profile: see `training.data.windows.Batch`.
    Returns the row of each token (n_tokens,), its kind (n_tokens,), and the table
    (n_rows, 2, cross_heads, dim_head).
    """
    n_words = len(model.unit_emb.weight)
    n_units = n_words + (0 if parts is None else len(parts))
    unit, kind = token % n_units, token // n_units
    position = torch.zeros(n_units, dtype=torch.int64, device=token.device)
    position[unit] = 1
    units = position.nonzero()[:, 0]
    position[units] = torch.arange(len(units), device=units.device)
    embedded = F.embedding(units[units < n_words], model.unit_emb.weight)
    if n_units > n_words:
        assert parts is not None
        assert profile is not None
        composed = units[units >= n_words] - n_words
        rows = parts[composed]  # row 0 is padding, which has values
        known = (F.embedding(rows, model.unit_emb.weight) * (rows > 0)[..., None]).sum(dim=1)
        first = len(parts) - len(profile)  # of those with profiles, which come last
        plain, profiled = known[composed < first], known[composed >= first]
        embedded = torch.cat([embedded, plain])
        if len(profiled):
            of_unit = profile[composed[composed >= first] - first]
            embedded = torch.cat([embedded, model.identifier(profiled, of_unit)])
    tables = unit_tables(model, config, embedded).flatten(0, 1)
    return kind * len(units) + position[unit], kind, tables
