"""torch_brain's POYO, with a faster forward pass over the same weights.

`POYO` of torch_brain (Azabou et al., NeurIPS 2023) is the reference and owns the weights. `forward`
computes the same outputs, to float32 rounding, with three exact rewrites:

- The key and value of a spike depend only on its unit and token type. LayerNorm and projection
  therefore run once per unit (`training.models.encoder.unit_tables`), and spikes look them up.
- The encoder's latent queries are the same in every window: one matrix serves the whole batch.
- Rotary pairs are stored apart (`training.models.rotary`), so a rotation copies nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_brain.models.poyo import POYO

from training.models.attention import attend
from training.models.config import ModelConfig
from training.models.encoder import (
    compact,
    latent_phases,
    latent_queries,
    merge_spikes,
    omega,
    output_layer,
)
from training.models.rotary import Phases, from_pairs, rotate, split_rows, to_pairs


def process(model: POYO, config: ModelConfig, latents: Tensor, latents_at: Phases) -> Tensor:
    """Run the self-attention layers over latents (..., n_latents, dim)."""
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
    readout: Tensor | None = None,
) -> Tensor:
    """Decode outputs (B, n_outputs, dim_out) from the latents.

    latents: (B, n_latents, dim).
    session: (B, dim), session embeddings.
    outputs_at: phases (B, n_outputs, n_rotary) of the queries.
    readout: as for `training.models.encoder.output_layer`.
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
    return output_layer(model.readout, queries + model.dec_ffn(queries), readout)


def forward(
    model: POYO,
    config: ModelConfig,
    *,
    token: Tensor,
    times: Tensor,
    lengths: Tensor,
    session_index: Tensor,
    output_times: Tensor,
    parts: Tensor | None = None,
    profile: Tensor | None = None,
) -> Tensor:
    """POYO's outputs (B, n_outputs, dim_out), equal to `POYO.forward` to float32 rounding.

    token: (n_tokens,) int64, `token_type * vocabulary_size + unit`, one window after another.
    times: (n_tokens,) float64, seconds since the window's start.
    lengths: (B,) int64, tokens per window.
    output_times: (B, n_outputs) float64, seconds since the window's start.
    parts, profile: see `training.data.windows.Batch`.
    """
    frequencies = omega(model, config)
    latents_at = latent_phases(model, config)
    row, _, tables = compact(model, config, token, parts, profile)
    at = Phases.of(times, frequencies)
    attended = attend(
        to_pairs(latent_queries(model, config, latents_at), config),
        tables,
        token=row,
        rotation=torch.complex(at.cos, at.sin),
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
