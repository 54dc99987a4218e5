"""Attention over packed windows: the same outputs and gradients with and without padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.models.attention import _attend_padded, attend, padded

HEADS, LATENTS, DIM, ROWS, ROTARY = 2, 5, 8, 11, 2


def inputs(lengths: list[int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    n_tokens = sum(lengths)
    angle = 6.28 * torch.rand(n_tokens, ROTARY, generator=generator)
    return {
        "queries": torch.randn(HEADS, LATENTS, DIM, generator=generator).requires_grad_(),
        "table": torch.randn(ROWS, 2, HEADS, DIM, generator=generator).requires_grad_(),
        "token": torch.randint(0, ROWS, (n_tokens,), generator=generator),
        "rotation": torch.polar(torch.ones_like(angle), angle),
        "lengths": torch.tensor(lengths),
    }


@pytest.mark.parametrize("lengths", [[1], [3, 40, 1], [200, 17]])
def test_packed_and_padded_windows_agree(lengths: list[int]) -> None:
    ours, other = inputs(lengths), inputs(lengths)
    packed = attend(**ours, dropout=0.0)
    in_padding = _attend_padded(*other.values(), 0.0)
    assert packed.shape == (len(lengths), HEADS, LATENTS, DIM)
    torch.testing.assert_close(packed, in_padding, rtol=1e-5, atol=1e-5)
    weight = torch.randn(packed.shape, generator=torch.Generator().manual_seed(1))
    (packed * weight).sum().backward()
    (in_padding * weight).sum().backward()
    for name in ("queries", "table"):
        torch.testing.assert_close(ours[name].grad, other[name].grad, rtol=1e-5, atol=1e-5)


def test_the_gradient_with_dropout_matches_finite_differences() -> None:
    """Differences per element are too inaccurate in float32; along one direction they aren't."""
    given = inputs([12, 30])
    weight = torch.randn(2, HEADS, LATENTS, DIM, generator=torch.Generator().manual_seed(1))

    def value(table: Tensor) -> Tensor:
        torch.manual_seed(3)  # drops the same weights every time
        return (attend(**(given | {"table": table}), dropout=0.3) * weight).double().sum()

    value(given["table"]).backward()
    step = torch.randn(given["table"].shape, generator=torch.Generator().manual_seed(2))
    h = 1e-2
    slope = (value(given["table"] + h * step) - value(given["table"] - h * step)) / (2 * h)
    assert given["table"].grad is not None
    expected = (given["table"].grad * step).sum()
    torch.testing.assert_close(slope.detach().float(), expected, rtol=1e-2, atol=1e-2)
    assert not torch.equal(value(given["table"]), (attend(**given, dropout=0.0) * weight).sum())


def test_padding_is_at_the_end() -> None:
    shown, (rows,) = padded(torch.tensor([2, 3]), torch.tensor([1, 2, 3, 4, 5]))
    assert rows.tolist() == [[1, 2, 0], [3, 4, 5]]
    assert shown.tolist() == [[True, True, False], [True, True, True]]
