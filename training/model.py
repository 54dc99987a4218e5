"""torch_brain's POYO, and a forward pass of the same weights that does less work.

`POYO` of torch_brain (Azabou et al., NeurIPS 2023) is the reference and owns the weights. The
functions here compute its outputs from those weights, equal to float32 rounding, with three
exact rewrites:

- Key and value of a spike depend on its unit and token type alone, so LayerNorm and projection
  run once per unit (`unit_tables`) and spikes only look them up.
- Latent queries of the encoder are the same in every window: one matrix for a whole batch.
- Rotary pairs are stored apart, `[real | imaginary | unrotated]` in each head, by permuting
  the projections' rows, so that a rotation touches the rotated half only and copies nothing.

It does not know where windows come from (`training.windows`) or how a model is trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_brain.models.poyo import POYO

from decoder.errors import TrainingError

N_TOKEN_TYPES = 3  # spike, start of sequence, end of sequence
SPIKE, START, END = range(N_TOKEN_TYPES)


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


PRESETS: dict[str, ModelConfig] = {
    # Made for a CPU rig: 64 latents, three thin layers, 0.38M parameters besides embeddings.
    # Faster rotary periods than 10 ms carry no more about reaching and cost capacity.
    "rt": ModelConfig(
        num_latents_per_step=8,
        depth=3,
        dim_head=32,
        self_heads=4,
        ffn_dropout=0.1,
        lin_dropout=0.1,
        atn_dropout=0.0,
        t_min=1e-2,
        t_max=4.0,
    ),
    # torch_brain's published sizes (examples/poyo/configs/model).
    "poyo-1.3m": ModelConfig(),
    "poyo-11.8m": ModelConfig(dim=128, depth=24, num_latents_per_step=32),
}


def preset(name: str) -> ModelConfig:
    """Look a preset up; TrainingError lists the names there are."""
    if name not in PRESETS:
        raise TrainingError(f"unknown preset {name!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def build(config: ModelConfig, unit_words: Iterable[str], session_words: Iterable[str]) -> POYO:
    """A freshly initialised POYO with these vocabularies (units as `session/unit`)."""
    model = POYO(**asdict(config))
    model.unit_emb.initialize_vocab(list(unit_words))
    model.session_emb.initialize_vocab(list(session_words))
    return model


def n_parameters(model: nn.Module) -> int:
    """Parameters besides unit and session embeddings."""
    skip = ("unit_emb", "session_emb")
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith(skip))


def split_rows(weight: Tensor, config: ModelConfig) -> Tensor:
    """Permute rows (..., n_heads * dim_head, dim) so that each head is `[real | imag | rest]`."""
    n_rot = 2 * config.n_rotary
    index = [*range(0, n_rot, 2), *range(1, n_rot, 2), *range(n_rot, config.dim_head)]
    heads = weight.unflatten(0, (-1, config.dim_head))
    return heads[:, torch.tensor(index, device=weight.device)].flatten(0, 1)


def omega(model: POYO, config: ModelConfig) -> Tensor:
    """Rotary frequencies (n_rotary,) float64, rad/s; torch_brain's float32 values, unrounded further."""
    frequencies: Tensor = model.rotary_emb.omega
    return frequencies[: config.n_rotary].double()


def phases(times: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine (..., n_rotary) float32 of `times` (...) float64 seconds."""
    angles = times.double()[..., None] * frequencies
    return angles.cos().float(), angles.sin().float()


class _RotateInPlace(torch.autograd.Function):
    """Rotate pairs of a freshly gathered tensor without keeping a copy for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.mark_dirty(x)
        _rotate_(x, cos, sin)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        grad = grads[0].clone()
        _rotate_(grad, cos, -sin)
        return grad, None, None


def _rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    n = cos.shape[-1]
    real, imag = x[..., :n], x[..., n : 2 * n]
    turned = real * sin
    real.mul_(cos).addcmul_(imag, sin, value=-1.0)
    imag.mul_(cos).add_(turned)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `[real | imag | rest]` heads (..., dim_head) by phases (..., n_rotary)."""
    n = cos.shape[-1]
    real, imag, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
    return torch.cat([real * cos - imag * sin, real * sin + imag * cos, rest], dim=-1)


def unit_tables(model: POYO, config: ModelConfig) -> Tensor:
    """Keys and values of every token: (n_token_types, vocabulary, 2, cross_heads, dim_head)."""
    attention = model.enc_atn
    tokens = model.token_type_emb.weight[:N_TOKEN_TYPES, None] + model.unit_emb.weight[None]
    weight = split_rows(attention.to_kv.weight, config)
    rows = F.linear(attention.norm_context(tokens), weight)
    return rows.unflatten(-1, (2, config.cross_heads, config.dim_head))


def latent_times(config: ModelConfig) -> Tensor:
    """Times (n_latents,) float64 of all latents, seconds from the window's start."""
    n_steps = round(config.sequence_length / config.latent_step)
    grid = (torch.arange(n_steps, dtype=torch.float64) + 0.5) * config.latent_step
    return grid.repeat_interleave(config.num_latents_per_step)


def latent_queries(model: POYO, config: ModelConfig) -> Tensor:
    """Encoder queries (cross_heads, n_latents, dim_head), rotated to their time in the window."""
    attention = model.enc_atn
    weight = split_rows(attention.to_q.weight, config)
    per_step = F.linear(attention.norm(model.latent_emb.weight), weight)
    n_steps = round(config.sequence_length / config.latent_step)
    queries = per_step.repeat(n_steps, 1).unflatten(-1, (config.cross_heads, config.dim_head))
    cos, sin = phases(latent_times(config), omega(model, config))
    return rotate(queries, cos[:, None], sin[:, None]).transpose(0, 1)


def merge_spikes(model: POYO, config: ModelConfig, attended: Tensor) -> Tensor:
    """Add what latents gathered (..., cross_heads, n_latents, dim_head), in the window's frame,
    to the latent embeddings: (..., n_latents, dim)."""
    cos, sin = phases(latent_times(config), omega(model, config))
    gathered = rotate(attended, cos, -sin).transpose(-2, -3).flatten(-2)
    attention = model.enc_atn
    out_weight = split_rows(attention.to_out.weight.T, config).T
    n_steps = round(config.sequence_length / config.latent_step)
    latents = model.latent_emb.weight.repeat(n_steps, 1)
    latents = latents + F.linear(gathered, out_weight, attention.to_out.bias)
    return latents + model.enc_ffn(latents)


def process(model: POYO, config: ModelConfig, latents: Tensor) -> Tensor:
    """The self-attention layers over latents (..., n_latents, dim)."""
    cos, sin = phases(latent_times(config), omega(model, config))
    cos, sin = cos[:, None, None], sin[:, None, None]
    for attention, feed_forward in model.proc_layers:
        weight = attention.to_qkv.weight.unflatten(0, (3, -1))
        weight = torch.cat([split_rows(part, config) for part in weight])
        x = F.linear(attention.norm(latents), weight)
        x = x.unflatten(-1, (3, config.self_heads, config.dim_head))
        query, key, value = (part.transpose(-2, -3) for part in rotate(x, cos, sin).unbind(-3))
        dropout = config.atn_dropout if model.training else 0.0
        out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        out = rotate(out, cos[:, 0, 0], -sin[:, 0, 0]).transpose(-2, -3).flatten(-2)
        out = F.linear(
            out, split_rows(attention.to_out.weight.T, config).T, attention.to_out.bias
        )
        latents = latents + model.dropout(out)
        latents = latents + model.dropout(feed_forward(latents))
    return latents


def read_out(
    model: POYO, config: ModelConfig, latents: Tensor, session: Tensor, output_times: Tensor
) -> Tensor:
    """Outputs (B, n_outputs, dim_out) of session embeddings (B, dim) at times (B, n_outputs) in the window."""
    attention = model.dec_atn
    frequencies = omega(model, config)
    q = F.linear(attention.norm(session), split_rows(attention.to_q.weight, config))
    q = q.unflatten(-1, (config.cross_heads, config.dim_head))[:, None]
    cos, sin = phases(output_times, frequencies)
    q = rotate(q.expand(-1, output_times.shape[1], -1, -1), cos[:, :, None], sin[:, :, None])

    key_weight, value_weight = attention.to_kv.weight.chunk(2)
    context = attention.norm_context(latents)
    k = F.linear(context, split_rows(key_weight, config))
    k = k.unflatten(-1, (config.cross_heads, config.dim_head))
    cos, sin = phases(latent_times(config), frequencies)
    k = rotate(k, cos[:, None], sin[:, None])
    v = F.linear(context, value_weight).unflatten(-1, (config.cross_heads, config.dim_head))
    dropout = config.atn_dropout if model.training else 0.0
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), dropout_p=dropout
    )
    queries = session[:, None] + attention.to_out(out.transpose(1, 2).flatten(-2))
    return model.readout(queries + model.dec_ffn(queries))  # type: ignore[no-any-return]


def forward(
    model: POYO,
    config: ModelConfig,
    *,
    input_token: Tensor,
    input_times: Tensor,
    input_mask: Tensor,
    session_index: Tensor,
    output_times: Tensor,
) -> Tensor:
    """POYO's outputs (B, n_outputs, dim_out), equal to `POYO.forward` to float32 rounding.

    input_token: (B, n_tokens) int64, `token_type * vocabulary + unit`.
    input_times: (B, n_tokens) float64, seconds from the window's start.
    input_mask: (B, n_tokens) bool, False where a row is padded.
    output_times: (B, n_outputs) float64, seconds from the window's start.
    """
    batch = input_token.shape[0]
    rows = F.embedding(input_token, unit_tables(model, config).flatten(0, 1).flatten(1))
    rows = rows.unflatten(-1, (2 * config.cross_heads, config.dim_head))
    cos, sin = phases(input_times, omega(model, config))
    rows = _RotateInPlace.apply(rows, cos[:, :, None], sin[:, :, None])
    keys, values = rows.transpose(1, 2).chunk(2, dim=1)
    queries = latent_queries(model, config).expand(batch, -1, -1, -1)
    attended = F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=input_mask[:, None, None, :].expand(-1, 1, queries.shape[2], -1),
        dropout_p=config.atn_dropout if model.training else 0.0,
    )
    latents = process(model, config, merge_spikes(model, config, attended))
    return read_out(model, config, latents, model.session_emb(session_index), output_times)
