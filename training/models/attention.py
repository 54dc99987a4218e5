"""The encoder's attention in training: latents attend to the spikes of each window.

The tokens of a batch are packed, one window after another, without padding. On a CPU, windows are
processed one at a time: a window fits the cache and needs no mask. On CUDA, windows are padded on
the device and go through fused attention together. Both give the same result in float32 without
dropout. Short chunks (`attend_chunks`) are padded in blocks on either device.

This module does not depend on a model. It takes queries, a table of keys and values, and rotations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNKS_AT_ONCE = {"cpu": 32}  # these fit the cache
CHUNKS_AT_ONCE_ELSEWHERE = 4096


def attend(
    queries: Tensor,
    table: Tensor,
    *,
    token: Tensor,
    rotation: Tensor,
    lengths: Tensor,
    dropout: float,
) -> Tensor:
    """Attend from the latents to the tokens of each window: (B, n_heads, n_latents, dim_head).

    queries: (n_heads, n_latents, dim_head), the same for every window.
    table: (n_rows, 2, n_heads, dim_head), the key and value of each row, rotary pairs interleaved.
    token: (n_tokens,) int64, rows of the table.
    rotation: (n_tokens, n_rotary) complex64, applied to the key and value of each token.
    lengths: (B,) int64, tokens per window.
    dropout: probability of dropping an attention weight.
    """
    if token.device.type != "cpu":
        return _attend_padded(queries, table, token, rotation, lengths, dropout)
    with torch.autocast("cpu", enabled=False):  # float32 even in mixed precision
        out: Tensor = _AttendPacked.apply(  # type: ignore[no-untyped-call]
            queries.float(), table.float(), token, rotation, lengths.tolist(), dropout
        )
    return out.to(queries.dtype)


class _AttendPacked(torch.autograd.Function):
    """Attention over one window at a time.

    The backward pass recomputes the rotated rows, which is cheaper than keeping them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        table: Tensor,
        token: Tensor,
        rotation: Tensor,
        lengths: list[int],
        dropout: float,
    ) -> Tensor:
        queries = queries / math.sqrt(queries.shape[-1])
        out = queries.new_empty(len(lengths), *queries.shape)
        weights, drops = [], []
        for row, (tokens, rotations) in enumerate(_windows(token, rotation, lengths)):
            keys, values = _look_up(table, tokens, rotations).unbind(1)
            weight = torch.bmm(queries, keys.permute(1, 2, 0))
            torch.softmax(weight, -1, out=weight)
            weights.append(weight)
            if dropout:
                drops.append(torch.empty_like(weight).bernoulli_(1.0 - dropout).div_(1.0 - dropout))
                weight = weight * drops[-1]
            torch.bmm(weight, values.transpose(0, 1), out=out[row])
        ctx.save_for_backward(queries, table, token, rotation, out, *weights, *drops)
        ctx.lengths = lengths
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        queries, table, token, rotation, out, *saved = ctx.saved_tensors
        weights, drops = saved[: len(out)], saved[len(out) :]
        grad_out = grads[0].contiguous()
        along = (grad_out * out).sum(-1, keepdim=True)
        grad_queries, grad_table = torch.zeros_like(queries), torch.zeros_like(table)
        for row, (tokens, rotations) in enumerate(_windows(token, rotation, ctx.lengths)):
            rows = _look_up(table, tokens, rotations)
            grad_rows = torch.empty_like(rows)
            for head, query in enumerate(queries):
                weight, grad = weights[row][head], grad_out[row, head]
                grad_weight = torch.mm(grad, rows[:, 1, head].T)
                dropped = weight
                if drops:
                    grad_weight *= drops[row][head]
                    dropped = weight * drops[row][head]
                torch.mm(dropped.T, grad, out=grad_rows[:, 1, head])
                grad_logit = grad_weight.sub_(along[row, head]).mul_(weight)
                torch.mm(grad_logit.T, query, out=grad_rows[:, 0, head])
                if ctx.needs_input_grad[0]:
                    grad_queries[head].addmm_(grad_logit, rows[:, 0, head])
            _pairs(grad_rows, rotations.shape[-1]).mul_(rotations.conj_physical()[:, None, None])
            grad_table.flatten(1).index_add_(0, tokens, grad_rows.flatten(1))
        return grad_queries / math.sqrt(queries.shape[-1]), grad_table, None, None, None, None


def _windows(token: Tensor, rotation: Tensor, lengths: list[int]) -> zip[tuple[Tensor, Tensor]]:
    return zip(token.split(lengths), rotation.split(lengths), strict=True)


def _look_up(table: Tensor, token: Tensor, rotation: Tensor) -> Tensor:
    """Rotated rows (n_tokens, 2, n_heads, dim_head)."""
    rows = F.embedding(token, table.flatten(1)).unflatten(-1, table.shape[1:])
    _pairs(rows, rotation.shape[-1]).mul_(rotation[..., None, None, :])
    return rows  # type: ignore[no-any-return]


def _pairs(rows: Tensor, n_rotary: int) -> Tensor:
    """A complex view (..., n_rotary) of the rotated part of heads (..., dim_head)."""
    return torch.view_as_complex(rows[..., : 2 * n_rotary].unflatten(-1, (n_rotary, 2)))


def _attend_padded(
    queries: Tensor, table: Tensor, token: Tensor, rotation: Tensor, lengths: Tensor, dropout: float
) -> Tensor:
    """Attention over all windows together, padded to the longest."""
    shown, (tokens, rotations) = padded(lengths, token, rotation)
    rows = _RotatedPairs.apply(  # type: ignore[no-untyped-call]
        F.embedding(tokens, table.flatten(1)).unflatten(2, table.shape[1:]),
        rotations[:, :, None, None],
    )
    keys, values = rows.permute(2, 0, 3, 1, 4)
    hidden = torch.zeros(shown.shape, device=shown.device, dtype=keys.dtype)
    hidden.masked_fill_(~shown, -math.inf)
    return F.scaled_dot_product_attention(
        queries.expand(len(shown), -1, -1, -1),
        keys,
        values,
        attn_mask=hidden[:, None, None, :].expand(-1, 1, queries.shape[1], -1),
        dropout_p=dropout,
    )


class _RotatedPairs(torch.autograd.Function):
    """Rows (..., dim_head) rotated by complex numbers (..., n_rotary), in float32."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, rotation: Tensor) -> Tensor:
        ctx.save_for_backward(rotation)
        rotated = rows.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        _pairs(rotated, rotation.shape[-1]).mul_(rotation)
        return rotated.to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (rotation,) = ctx.saved_tensors
        rotated = grads[0].to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        _pairs(rotated, rotation.shape[-1]).mul_(rotation.conj_physical())
        return rotated.to(grads[0].dtype), None


def padded(lengths: Tensor, *packed: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Pad packed tokens (n_tokens, ...) with zeros to (B, longest, ...).

    Returns the mask of real tokens (B, longest) and the padded tensors.
    """
    shown = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
    rows = []
    for values in packed:
        row = values.new_zeros(*shown.shape, *values.shape[1:])
        row[shown] = values
        rows.append(row)
    return shown, rows


def attend_chunks(
    queries: Tensor,
    table: Tensor,
    *,
    silence_lse: Tensor,
    silence_value: Tensor,
    token: Tensor,
    rotation: Tensor,
    lengths: Tensor,
) -> Tensor:
    """Attend from the latents to many short chunks: (n_chunks, n_heads, n_latents, dim_head).

    queries, table, token, rotation: as for `attend`.
    silence_lse, silence_value: (n_chunks, n_heads, n_latents[, dim_head]), log-sum-exp and
        attended value of the silence tokens, which each latent attends to in addition to spikes.
    lengths: (n_chunks,) int64, tokens per chunk.
    """
    if len(token) == 0:
        return silence_value
    with torch.autocast(token.device.type, enabled=False):  # float32 even in mixed precision
        out: Tensor = _AttendChunks.apply(  # type: ignore[no-untyped-call]
            queries.float(), table.float(), silence_lse.float(), silence_value.float(),
            token, rotation, lengths,
        )  # fmt: skip
    return out.to(queries.dtype)


class _AttendChunks(torch.autograd.Function):
    """Attention over one block of chunks at a time; the backward pass recomputes rotated rows."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        table: Tensor,
        silence_lse: Tensor,
        silence_value: Tensor,
        token: Tensor,
        rotation: Tensor,
        lengths: Tensor,
    ) -> Tensor:
        queries = queries / math.sqrt(queries.shape[-1])
        out = torch.empty_like(silence_value)
        weights = []
        longest = _longest(lengths)
        for chunks, place, shown in _blocks(lengths, longest, len(token)):
            keys, values = _look_up(table, token[place], rotation[place]).unbind(-3)
            logit = torch.einsum("hmd,clhd->chml", queries, keys)
            logit.masked_fill_(~shown[:, None, None], -math.inf)
            weight = torch.cat([silence_lse[chunks][..., None], logit], dim=-1).softmax(-1)
            weights.append(weight)
            out[chunks] = torch.einsum("chml,clhd->chmd", weight[..., 1:], values)
            out[chunks] += weight[..., :1] * silence_value[chunks]
        ctx.save_for_backward(
            queries, table, silence_value, token, rotation, lengths, out, *weights
        )
        ctx.longest = longest
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        queries, table, silence_value, token, rotation, lengths, out, *weights = ctx.saved_tensors
        grad_out = grads[0].contiguous()
        along = (grad_out * out).sum(-1, keepdim=True)
        grad_queries, grad_table = torch.zeros_like(queries), torch.zeros_like(table)
        grad_lse, grad_value = torch.empty_like(along[..., 0]), torch.empty_like(grad_out)
        blocks = _blocks(lengths, ctx.longest, len(token))
        for (chunks, place, _), weight in zip(blocks, weights, strict=True):
            tokens, rotations = token[place], rotation[place]
            rows = _look_up(table, tokens, rotations)
            grad_rows = torch.empty_like(rows)
            grad = grad_out[chunks]
            silence, spikes = weight[..., :1], weight[..., 1:]
            grad_value[chunks] = silence * grad
            along_silence = (grad * silence_value[chunks]).sum(-1, keepdim=True)
            grad_lse[chunks] = (silence * (along_silence - along[chunks]))[..., 0]
            grad_logit = torch.einsum("chmd,clhd->chml", grad, rows[:, :, 1])
            grad_logit.sub_(along[chunks]).mul_(spikes)
            grad_rows[:, :, 1] = torch.einsum("chml,chmd->clhd", spikes, grad)
            grad_rows[:, :, 0] = torch.einsum("chml,hmd->clhd", grad_logit, queries)
            if ctx.needs_input_grad[0]:
                grad_queries += torch.einsum("chml,clhd->hmd", grad_logit, rows[:, :, 0])
            _pairs(grad_rows, rotations.shape[-1]).mul_(
                rotations.conj_physical()[..., None, None, :]
            )
            grad_table.flatten(1).index_add_(
                0, tokens.flatten(), grad_rows.flatten(0, 1).flatten(1)
            )
        grad_queries /= math.sqrt(queries.shape[-1])
        return grad_queries, grad_table, grad_lse, grad_value, None, None, None


def _at_once(device: torch.device) -> int:
    return CHUNKS_AT_ONCE.get(device.type, CHUNKS_AT_ONCE_ELSEWHERE)


def _longest(lengths: Tensor) -> list[int]:
    """Tokens in the longest chunk of each block, at least 1, with one transfer from the device."""
    blocks = lengths.split(_at_once(lengths.device))
    return [max(1, n) for n in torch.stack([block.max() for block in blocks]).tolist()]


def _blocks(
    lengths: Tensor, longest: list[int], n_tokens: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """For each block: its chunks, the positions of their tokens (n_chunks, longest), the mask."""
    starts = lengths.cumsum(0) - lengths
    at_once = _at_once(lengths.device)
    for number, n_steps in enumerate(longest):
        chunks = slice(number * at_once, (number + 1) * at_once)
        steps = torch.arange(n_steps, device=lengths.device)
        place = (starts[chunks, None] + steps).clamp_(max=n_tokens - 1)
        yield chunks, place, steps < lengths[chunks, None]
