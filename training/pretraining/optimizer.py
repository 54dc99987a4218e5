"""The optimizers: Muon for the matrices inside the model, Adam for everything else.

Muon (Jordan et al. 2024) orthogonalises the momentum of a weight matrix. On minutes of data it
gains more than anything else that was tried (docs/ACCURACY.md). As Muon's authors advise, Adam
trains the embeddings, biases, norms and readout. There may be tens of thousands of unit embeddings,
and a step updates only those in its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from decoder.errors import TrainingError

Optimizers = Sequence[torch.optim.Optimizer]
BETAS = (0.9, 0.98)
MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of Jordan et al. 2024
N_GATES = 3  # of a GRU, stacked in its weights
FIELDS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay.

    Like `torch.optim.Muon` with `match_rms_adamw` (one learning rate for Muon and Adam), but three
    times as fast on a CPU: it computes in float32, and orthogonalises the gates of a GRU apart.

    turns: Newton-Schulz iterations; they are most of the cost of a step.
    """

    def __init__(
        self, params: Sequence[nn.Parameter], *, lr: float, weight_decay: float, turns: int,
        gates: Sequence[nn.Parameter] = (),
    ) -> None:  # fmt: skip
        defaults = {"lr": lr, "weight_decay": weight_decay, "turns": turns, "n_parts": 1}
        groups: list[dict[str, Any]] = [{"params": list(params)}]
        if gates:
            groups.append({"params": list(gates), "n_parts": N_GATES})
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step; matrices without a gradient stay unchanged."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                momentum = state["momentum_buffer"].lerp_(parameter.grad, 1.0 - MOMENTUM)
                ahead = parameter.grad.lerp(momentum, MOMENTUM)
                parts = ahead.unflatten(0, (group["n_parts"], -1))
                update = _orthogonal(parts, group["turns"]).flatten(0, 1)
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                like_adam = 0.2 * math.sqrt(max(parts.shape[1:]))
                parameter.add_(update, alpha=-group["lr"] * like_adam)
        return None


def _orthogonal(matrices: Tensor, turns: int) -> Tensor:
    """The nearly orthogonal matrices (n, rows, columns) with the same singular vectors."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(turns):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class RowAdam(torch.optim.SparseAdam):
    """Adam on the rows of a matrix that have a gradient; all other rows stay unchanged."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not parameter.grad.is_sparse:
                    parameter.grad = _nonzero_rows(parameter.grad)
        loss: float | None = super().step(closure)  # type: ignore[no-untyped-call]
        return loss


def _nonzero_rows(grad: Tensor) -> Tensor:
    """The nonzero rows of `grad` as a sparse tensor."""
    rows = grad.any(dim=1).nonzero()[:, 0]
    return torch.sparse_coo_tensor(
        rows[None], grad[rows], grad.shape, is_coalesced=True, check_invariants=False
    )


def build_optimizers(
    model: nn.Module, *, learning_rate: float, weight_decay: float, muon_turns: int = 5
) -> tuple[torch.optim.Optimizer, ...]:
    """Optimizers of the hidden matrices, of the unit embeddings and of all other parameters.

    Frozen parameters are left out.
    muon_turns: iterations that orthogonalise a step of Muon; they are most of its cost.
    """
    matrices: list[nn.Parameter] = []
    gates: list[nn.Parameter] = []
    units: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            hidden = parameter.ndim == 2 and "_emb" not in name and "readout" not in name
            of_units = name == "unit_emb.weight"
            if name.startswith("gru.weight"):
                gates.append(parameter)
            else:
                (matrices if hidden else units if of_units else rest).append(parameter)
    return (
        Muon(matrices, gates=gates, lr=learning_rate, weight_decay=weight_decay, turns=muon_turns),
        RowAdam(units, lr=learning_rate, betas=BETAS),
        torch.optim.Adam(rest, lr=learning_rate, betas=BETAS),
    )


def set_learning_rate(
    optimizers: Optimizers, peak: float, share: float, warmup_share: float
) -> None:
    """Set the learning rate at `share` (0 to 1) of the run: linear warm-up, cosine to zero."""
    warm = min(1.0, (share + 1e-3) / warmup_share)
    rate = peak * warm * 0.5 * (1 + math.cos(math.pi * share))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def state_tensors(optimizers: Optimizers, model: nn.Module) -> dict[str, Tensor]:
    """The state of the optimizers, by `optimizer.<field>.<parameter>`."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        f"optimizer.{field}.{names[parameter]}": torch.as_tensor(value)
        for optimizer in optimizers
        for parameter, remembered in optimizer.state.items()
        for field, value in remembered.items()
    }


def restore_state(optimizers: Optimizers, model: nn.Module, state: dict[str, Tensor]) -> None:
    """Restore the optimizers from the tensors of `state_tensors`."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                keys = {field: f"optimizer.{field}.{names[parameter]}" for field in FIELDS}
                found = {field: state[key] for field, key in keys.items() if key in state}
                if not found:
                    raise TrainingError(
                        f"the checkpoint has no optimizer state for {names[parameter]}: another "
                        "version wrote it; start the run again"
                    )
                remembered: dict[str, Any] = {
                    field: value if field == "step" else value.to(parameter.device)
                    for field, value in found.items()
                }
                if isinstance(optimizer, RowAdam):
                    remembered["step"] = int(remembered["step"])
                optimizer.state[parameter] = remembered
