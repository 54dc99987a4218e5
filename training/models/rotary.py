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
    """Positions (dim_head,) in a torch_brain head, in the order `[real | imag | rest]`."""
    n_rot = 2 * config.n_rotary
    index = [*range(0, n_rot, 2), *range(1, n_rot, 2), *range(n_rot, config.dim_head)]
    return torch.tensor(index, device=device)


def from_pairs(heads: Tensor, config: ModelConfig) -> Tensor:
    """Convert heads (..., dim_head) from torch_brain's interleaved pairs to the split layout."""
    return heads[..., split_index(config, heads.device)]


def to_pairs(heads: Tensor, config: ModelConfig) -> Tensor:
    """Convert split heads (..., dim_head) to torch_brain's interleaved pairs.

    There a rotation is a product of complex numbers.
    """
    return heads[..., torch.argsort(split_index(config, heads.device))]


def split_rows(weight: Tensor, config: ModelConfig) -> Tensor:
    """Permute rows (n_heads * dim_head, dim) so that each head is `[real | imag | rest]`."""
    heads: Tensor = weight.unflatten(0, (-1, config.dim_head))
    return heads[:, split_index(config, weight.device)].flatten(0, 1)


class _Rotated(torch.autograd.Function):
    """`rotate` with the opposite rotation as gradient, not a sum of zero-padded slices."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        rotated = x.clone(memory_format=torch.contiguous_format)
        _rotate_(rotated, cos, sin)
        return rotated

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        rotated = grads[0].clone(memory_format=torch.contiguous_format)
        _rotate_(rotated, cos, -sin)
        return rotated, None, None


def _rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    n = cos.shape[-1]
    real, imag = x[..., :n], x[..., n : 2 * n]
    rotated = real * sin
    real.mul_(cos).addcmul_(imag, sin, value=-1.0)
    imag.mul_(cos).add_(rotated)


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
        """Add an axis for heads before the last one: (..., 1, n_rotary)."""
        return Phases(cos=self.cos.unsqueeze(-2), sin=self.sin.unsqueeze(-2))

    def back(self) -> Phases:
        """The opposite rotation."""
        return Phases(cos=self.cos, sin=-self.sin)


def rotate(x: Tensor, by: Phases) -> Tensor:
    """Rotate `[real | imag | rest]` heads (..., dim_head) by phases (..., n_rotary)."""
    if torch.is_grad_enabled() and x.requires_grad:
        rotated: Tensor = _Rotated.apply(x, by.cos, by.sin)  # type: ignore[no-untyped-call]
        return rotated
    n = by.cos.shape[-1]
    real, imag, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
    return torch.cat([real * by.cos - imag * by.sin, real * by.sin + imag * by.cos, rest], dim=-1)
