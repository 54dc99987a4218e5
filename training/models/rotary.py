"""Rotary time embedding of attention heads.

torch_brain interleaves the real and imaginary parts of rotary pairs in each head. Here a head is
`[real | imaginary | unrotated]`, by a permutation of the projections' rows, so that a rotation
touches only the rotated half and copies nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.models.config import ModelConfig


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
