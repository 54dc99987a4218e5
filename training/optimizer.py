"""What takes a training step: Muon for the matrices inside the model, AdamW for everything else.

Muon (Jordan et al. 2024, as in `torch.optim`) orthogonalises the momentum of a weight matrix.
On minutes of data it is worth more than anything else that was tried: see docs/ACCURACY.md.
Embeddings, biases, norms and the readout are AdamW's, as Muon's authors advise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from decoder.errors import TrainingError

Optimizers = Sequence[torch.optim.Optimizer]
BETAS = (0.9, 0.98)
FIELDS = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer")


def build_optimizers(
    model: nn.Module, *, learning_rate: float, weight_decay: float
) -> tuple[torch.optim.Optimizer, ...]:
    """One optimizer for hidden matrices, one for the rest; only parameters that learn."""
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            hidden = parameter.ndim == 2 and "_emb" not in name and "readout" not in name
            (matrices if hidden else rest).append(parameter)
    return (
        torch.optim.Muon(
            matrices,
            lr=learning_rate,
            weight_decay=weight_decay,
            adjust_lr_fn="match_rms_adamw",  # so that one learning rate serves both
        ),
        torch.optim.AdamW(rest, lr=learning_rate, betas=BETAS, weight_decay=0.0),
    )


def set_learning_rate(
    optimizers: Optimizers, peak: float, share: float, warmup_share: float
) -> None:
    """Linear warm-up, then a cosine to nothing, at `share` (0 to 1) of the run."""
    warm = min(1.0, (share + 1e-3) / warmup_share)
    rate = peak * warm * 0.5 * (1 + math.cos(math.pi * share))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def state_tensors(optimizers: Optimizers, model: nn.Module) -> dict[str, Tensor]:
    """All that the optimizers remember, by `optimizer.<field>.<parameter>`."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        f"optimizer.{field}.{names[parameter]}": value
        for optimizer in optimizers
        for parameter, remembered in optimizer.state.items()
        for field, value in remembered.items()
    }


def restore_state(optimizers: Optimizers, model: nn.Module, state: dict[str, Tensor]) -> None:
    """Set the optimizers back to what `state_tensors` gave."""
    names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                keys = {field: f"optimizer.{field}.{names[parameter]}" for field in FIELDS}
                found = {field: state[key] for field, key in keys.items() if key in state}
                if not found:
                    raise TrainingError(
                        f"the checkpoint has no optimizer state for {names[parameter]}; it is of "
                        "another version, start the run again"
                    )
                optimizer.state[parameter] = {
                    field: value if field == "step" else value.to(parameter.device)
                    for field, value in found.items()
                }
