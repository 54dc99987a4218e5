"""The encoder's attention in training: latents over the spikes of each window, of any number.

Tokens of a batch lie one window after the other, without padding. On a CPU every window is
looked up, rotated and attended to on its own: it fits the cache, and nothing is masked. On CUDA
windows are padded on the device and go through fused attention at once. Both give the same in
float32, without dropout. Short chunks (`attend_chunks`) are padded in blocks on either.

It does not know the model: it takes queries, a table of keys and values, and rotations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNKS_AT_ONCE = {"cpu": 32}  # what fits the cache
CHUNKS_AT_ONCE_ELSEWHERE = 4096


def attend(
    queries: Tensor, table: Tensor, *, token: Tensor, turn: Tensor, lengths: Tensor, dropout: float
) -> Tensor:
    """What latents gather from their window: (B, n_heads, n_latents, dim_head).

    queries: (n_heads, n_latents, dim_head), the same for every window.
    table: (n_rows, 2, n_heads, dim_head), key and value of every row, rotary pairs side by side.
    token: (n_tokens,) int64, rows of the table. turn: (n_tokens, n_rotary) complex64, each
        token's rotation, applied to keys and values. lengths: (B,) int64, tokens a window.
    dropout: probability of dropping an attention weight.
    """
    if token.device.type != "cpu":
        return _attend_padded(queries, table, token, turn, lengths, dropout)
    with torch.autocast("cpu", enabled=False):  # float32 whatever the rest computes in
        out: Tensor = _AttendPacked.apply(  # type: ignore[no-untyped-call]
            queries.float(), table.float(), token, turn, lengths.tolist(), dropout
        )
    return out.to(queries.dtype)


class _AttendPacked(torch.autograd.Function):
    """One window after the other. Rotated rows are made again for the gradient: cheaper than
    keeping them."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        table: Tensor,
        token: Tensor,
        turn: Tensor,
        lengths: list[int],
        dropout: float,
    ) -> Tensor:
        queries = queries / math.sqrt(queries.shape[-1])
        out = queries.new_empty(len(lengths), *queries.shape)
        weights, drops = [], []
        for row, (tokens, turns) in enumerate(_windows(token, turn, lengths)):
            keys, values = _look_up(table, tokens, turns).unbind(1)
            weight = torch.bmm(queries, keys.permute(1, 2, 0))
            torch.softmax(weight, -1, out=weight)
            weights.append(weight)
            if dropout:
                drops.append(torch.empty_like(weight).bernoulli_(1.0 - dropout).div_(1.0 - dropout))
                weight = weight * drops[-1]
            torch.bmm(weight, values.transpose(0, 1), out=out[row])
        ctx.save_for_backward(queries, table, token, turn, out, *weights, *drops)
        ctx.lengths = lengths
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        queries, table, token, turn, out, *saved = ctx.saved_tensors
        weights, drops = saved[: len(out)], saved[len(out) :]
        grad_out = grads[0].contiguous()
        along = (grad_out * out).sum(-1, keepdim=True)
        grad_queries, grad_table = torch.zeros_like(queries), torch.zeros_like(table)
        for row, (tokens, turns) in enumerate(_windows(token, turn, ctx.lengths)):
            rows = _look_up(table, tokens, turns)
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
            _pairs(grad_rows, turns.shape[-1]).mul_(turns.conj_physical()[:, None, None])
            grad_table.flatten(1).index_add_(0, tokens, grad_rows.flatten(1))
        return grad_queries / math.sqrt(queries.shape[-1]), grad_table, None, None, None, None


def _windows(token: Tensor, turn: Tensor, lengths: list[int]) -> zip[tuple[Tensor, Tensor]]:
    return zip(token.split(lengths), turn.split(lengths), strict=True)


def _look_up(table: Tensor, token: Tensor, turn: Tensor) -> Tensor:
    """Rotated rows (n_tokens, 2, n_heads, dim_head)."""
    rows = F.embedding(token, table.flatten(1)).unflatten(-1, table.shape[1:])
    _pairs(rows, turn.shape[-1]).mul_(turn[..., None, None, :])
    return rows  # type: ignore[no-any-return]


def _pairs(rows: Tensor, n_rotary: int) -> Tensor:
    """The rotated part of heads (..., dim_head) as complex numbers (..., n_rotary); a view."""
    return torch.view_as_complex(rows[..., : 2 * n_rotary].unflatten(-1, (n_rotary, 2)))


def _attend_padded(
    queries: Tensor, table: Tensor, token: Tensor, turn: Tensor, lengths: Tensor, dropout: float
) -> Tensor:
    """All windows at once, padded to the longest."""
    shown, (tokens, turns) = padded(lengths, token, turn)
    rows = _RotatedPairs.apply(  # type: ignore[no-untyped-call]
        F.embedding(tokens, table.flatten(1)).unflatten(2, table.shape[1:]), turns[:, :, None, None]
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
    def forward(ctx: Any, rows: Tensor, turn: Tensor) -> Tensor:
        ctx.save_for_backward(turn)
        turned = rows.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        _pairs(turned, turn.shape[-1]).mul_(turn)
        return turned.to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (turn,) = ctx.saved_tensors
        turned = grads[0].to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        _pairs(turned, turn.shape[-1]).mul_(turn.conj_physical())
        return turned.to(grads[0].dtype), None


def padded(lengths: Tensor, *packed: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Packed tokens (n_tokens, ...) as (B, longest, ...) with zeros behind, and where they are."""
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
    turn: Tensor,
    lengths: Tensor,
) -> Tensor:
    """What latents gather from many short chunks: (n_chunks, n_heads, n_latents, dim_head).

    queries, table, token, turn: as for `attend`. lengths: (n_chunks,) int64, tokens a chunk.
    silence_lse, silence_value: (n_chunks, n_heads, n_latents[, dim_head]), log-sum-exp and
        attended value of what every latent attends to besides spikes.
    """
    if len(token) == 0:
        return silence_value
    with torch.autocast(token.device.type, enabled=False):  # float32 whatever the rest computes in
        out: Tensor = _AttendChunks.apply(  # type: ignore[no-untyped-call]
            queries.float(), table.float(), silence_lse.float(), silence_value.float(),
            token, turn, lengths,
        )  # fmt: skip
    return out.to(queries.dtype)


class _AttendChunks(torch.autograd.Function):
    """A block of chunks after the other; rotated rows are made again for the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        table: Tensor,
        silence_lse: Tensor,
        silence_value: Tensor,
        token: Tensor,
        turn: Tensor,
        lengths: Tensor,
    ) -> Tensor:
        queries = queries / math.sqrt(queries.shape[-1])
        out = torch.empty_like(silence_value)
        weights = []
        longest = _longest(lengths)
        for chunks, place, shown in _blocks(lengths, longest, len(token)):
            keys, values = _look_up(table, token[place], turn[place]).unbind(-3)
            logit = torch.einsum("hmd,clhd->chml", queries, keys)
            logit.masked_fill_(~shown[:, None, None], -math.inf)
            weight = torch.cat([silence_lse[chunks][..., None], logit], dim=-1).softmax(-1)
            weights.append(weight)
            out[chunks] = torch.einsum("chml,clhd->chmd", weight[..., 1:], values)
            out[chunks] += weight[..., :1] * silence_value[chunks]
        ctx.save_for_backward(queries, table, silence_value, token, turn, lengths, out, *weights)
        ctx.longest = longest
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        queries, table, silence_value, token, turn, lengths, out, *weights = ctx.saved_tensors
        grad_out = grads[0].contiguous()
        along = (grad_out * out).sum(-1, keepdim=True)
        grad_queries, grad_table = torch.zeros_like(queries), torch.zeros_like(table)
        grad_lse, grad_value = torch.empty_like(along[..., 0]), torch.empty_like(grad_out)
        blocks = _blocks(lengths, ctx.longest, len(token))
        for (chunks, place, _), weight in zip(blocks, weights, strict=True):
            tokens, turns = token[place], turn[place]
            rows = _look_up(table, tokens, turns)
            grad_rows = torch.empty_like(rows)
            grad = grad_out[chunks]
            silence, spikes = weight[..., :1], weight[..., 1:]
            grad_value[chunks] = silence * grad
            told = (grad * silence_value[chunks]).sum(-1, keepdim=True)
            grad_lse[chunks] = (silence * (told - along[chunks]))[..., 0]
            grad_logit = torch.einsum("chmd,clhd->chml", grad, rows[:, :, 1])
            grad_logit.sub_(along[chunks]).mul_(spikes)
            grad_rows[:, :, 1] = torch.einsum("chml,chmd->clhd", spikes, grad)
            grad_rows[:, :, 0] = torch.einsum("chml,hmd->clhd", grad_logit, queries)
            if ctx.needs_input_grad[0]:
                grad_queries += torch.einsum("chml,clhd->hmd", grad_logit, rows[:, :, 0])
            _pairs(grad_rows, turns.shape[-1]).mul_(turns.conj_physical()[..., None, None, :])
            grad_table.flatten(1).index_add_(
                0, tokens.flatten(), grad_rows.flatten(0, 1).flatten(1)
            )
        grad_queries /= math.sqrt(queries.shape[-1])
        return grad_queries, grad_table, grad_lse, grad_value, None, None, None


def _at_once(device: torch.device) -> int:
    return CHUNKS_AT_ONCE.get(device.type, CHUNKS_AT_ONCE_ELSEWHERE)


def _longest(lengths: Tensor) -> list[int]:
    """Tokens of the longest chunk of each block, at least one; asked of the device at once."""
    blocks = lengths.split(_at_once(lengths.device))
    return [max(1, n) for n in torch.stack([block.max() for block in blocks]).tolist()]


def _blocks(
    lengths: Tensor, longest: list[int], n_tokens: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Chunks of each block, where their tokens stand (n_chunks, longest), and which are theirs."""
    starts = lengths.cumsum(0) - lengths
    at_once = _at_once(lengths.device)
    for number, n_steps in enumerate(longest):
        chunks = slice(number * at_once, (number + 1) * at_once)
        steps = torch.arange(n_steps, device=lengths.device)
        place = (starts[chunks, None] + steps).clamp_(max=n_tokens - 1)
        yield chunks, place, steps < lengths[chunks, None]
