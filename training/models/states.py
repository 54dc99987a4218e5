"""The distribution of a streaming model's states, for which no labels are needed.

`decoder.usual` explains the distance. Here it is measured over windows, and has a gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from decoder.usual import N_AXES, RIDGE, Usual
from training.models.config import PossmConfig
from training.models.possm import Possm, closed_states

WINDOW_S = 4.0  # at most
SETTLING_SHARE = 0.25  # of a window; its first states remember that it began from nothing
LEAST_VARIANCE = 1e-12
MAX_DAYS = 32  # that are known one by one: the last
BEYOND = 3.0  # times the distance of an average stretch from its own day is a changed population


class States(BaseModel):
    """`decoder.usual.Usual` in the record of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: list[float]
    axes: list[list[float]]
    day_means: list[list[float]]
    day_covariances: list[list[list[float]]]
    limit: float

    @classmethod
    def of(cls, days: Sequence[Sequence[Tensor]]) -> States:
        """From the states of known days: of each, stretches (n, hidden) of a minute or more."""
        every = torch.cat([stretch for day in days for stretch in day]).double()
        mean = every.mean(dim=0)
        variance, axes = torch.linalg.eigh(torch.cov(every.T))
        largest = torch.arange(len(mean) - 1, len(mean) - 1 - min(N_AXES, len(mean)), -1)
        scaled = (axes[:, largest] / variance[largest].clamp_min(LEAST_VARIANCE).sqrt()).T
        along = [(torch.cat(list(day)).double() - mean) @ scaled.T for day in days[-MAX_DAYS:]]
        found = cls(
            mean=_rounded(mean),
            axes=_rounded(scaled),
            day_means=_rounded(torch.stack([day.mean(dim=0) for day in along])),
            day_covariances=_rounded(torch.stack([torch.cov(day.T) for day in along])),
            limit=0.0,
        )
        apart = [float(found.distances(one).min()) for day in days[-MAX_DAYS:] for one in day]
        return found.model_copy(update={"limit": round(BEYOND * float(np.mean(apart)), 3)})

    def usual(self) -> Usual:
        """The same for a bundle."""
        return Usual(**{name: np.array(value, np.float32) for name, value in self})

    def distances(self, states: Tensor) -> Tensor:
        """Distances (n_days,) in nats of states (n, hidden) from those of each known day."""
        along = (states - states.new_tensor(self.mean)) @ states.new_tensor(self.axes).T
        mean, n_axes = along.mean(dim=0), along.shape[1]
        centred, ridge = along - mean, RIDGE * torch.eye(n_axes, dtype=along.dtype)
        covariance = centred.T @ centred / len(along) + ridge
        days = states.new_tensor(self.day_covariances) + ridge
        precisions, apart = torch.linalg.inv(days), states.new_tensor(self.day_means) - mean
        spread = torch.einsum("dij,ji->d", precisions, covariance)
        shift = torch.einsum("di,dij,dj->d", apart, precisions, apart)
        return 0.5 * (spread + shift - n_axes + days.logdet() - covariance.logdet())


def short(config: PossmConfig) -> PossmConfig:
    """The configuration of the windows that states are collected from."""
    return replace(config, train_s=min(config.train_s, WINDOW_S))


def settled_states(model: Possm, config: PossmConfig, inputs: Mapping[str, Tensor]) -> Tensor:
    """The states (B, n_chunks, hidden) of windows, without each window's first ones.

    inputs: of a batch, as for `training.models.possm.forward`.
    """
    used = {name: inputs[name] for name in ("token", "times", "lengths")}
    states = closed_states(model, config, **used)
    return states[:, round(SETTLING_SHARE * config.n_chunks) :]


def _rounded(values: Tensor) -> Any:
    digits = [float(f"{value:.6g}") for value in values.flatten().tolist()]
    return np.reshape(digits, values.shape).tolist()
