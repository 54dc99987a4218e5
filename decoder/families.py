"""The families of decoders: the sizes a runtime needs of each, and the tables of its units.

    poyo    a window of spikes is read again at every decode
    possm   a short chunk at a time, with a recurrent state
    ridge   a weight for each unit and lag (`training.baselines`)
    kalman  a gain for each unit, and a state that is the velocity (`training.kalman`)

Every family's tables have `tokens`, a row a unit. This module knows shapes; what the tables mean
to a graph stands in the runtimes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Array = NDArray[np.float32]
Shapes = dict[str, tuple[int, ...]]
FLOAT64 = ("omega",)  # all other tables are float32


class Strict(BaseModel):
    """A part of the manifest; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Sizes(Strict):
    """Sizes of a POYO that the runtime needs; names as in torch_brain."""

    sequence_length: float = Field(gt=0, description="seconds of spikes that a decode reads")
    latent_step: float = Field(gt=0)
    num_latents_per_step: int = Field(gt=0)
    dim: int = Field(gt=0)
    depth: int = Field(ge=0)
    dim_head: int = Field(gt=0)
    cross_heads: int = Field(gt=0)
    self_heads: int = Field(gt=0)
    t_min: float = Field(gt=0)
    t_max: float = Field(gt=0)
    dim_out: int = Field(gt=0)

    @property
    def window_s(self) -> float:
        """Seconds of unbroken spikes before a decode is trusted: all that it reads."""
        return self.sequence_length

    @property
    def reads(self) -> str:
        """What a decode reads, for people."""
        return f"window of {self.window_s:g} s, {self.n_latents} latents"

    @property
    def n_latents(self) -> int:
        return round(self.sequence_length / self.latent_step) * self.num_latents_per_step

    @property
    def n_rotary(self) -> int:
        return self.dim_head // 4

    def table_shapes(self, n_units: int) -> Shapes:
        """See `UnitTables`."""
        return _attention_shapes(self, n_units)


class PossmSizes(Strict):
    """Sizes of a streaming model that the runtime needs; meanings in `training.possm`."""

    chunk_s: float = Field(gt=0, description="seconds of spikes that one step of the state reads")
    warm_up_s: float = Field(gt=0, description="seconds after a reset until the state is trusted")
    num_latents: int = Field(gt=0)
    dim: int = Field(gt=0)
    dim_head: int = Field(gt=0)
    cross_heads: int = Field(gt=0)
    hidden: int = Field(gt=0)
    t_min: float = Field(gt=0)
    t_max: float = Field(gt=0)
    dim_out: int = Field(gt=0)

    @property
    def window_s(self) -> float:
        """Seconds of unbroken spikes before a decode is trusted."""
        return self.warm_up_s

    @property
    def reads(self) -> str:
        """What a decode reads, for people."""
        return (
            f"chunks of {self.chunk_s:g} s and a state, trusted after {self.warm_up_s:g} s, "
            f"{self.n_latents} latents"
        )

    @property
    def n_latents(self) -> int:
        return self.num_latents

    @property
    def n_rotary(self) -> int:
        return self.dim_head // 4

    def table_shapes(self, n_units: int) -> Shapes:
        """See `UnitTables`."""
        return _attention_shapes(self, n_units)


class RidgeSizes(Strict):
    """Sizes of a ridge regression on the counts of the last bins."""

    bin_s: float = Field(gt=0)
    n_lags: int = Field(gt=0, description="bins that end at the decoded instant")
    dim_out: int = Field(gt=0)

    @property
    def window_s(self) -> float:
        """Seconds of unbroken spikes before a decode is trusted: all that it reads."""
        return self.n_lags * self.bin_s

    @property
    def reads(self) -> str:
        """What a decode reads, for people."""
        return f"counts of the last {self.n_lags} bins of {self.bin_s:g} s"

    def table_shapes(self, n_units: int) -> Shapes:
        """See `RidgeTables`."""
        return {"tokens": (n_units, self.n_lags, self.dim_out)}


class KalmanSizes(Strict):
    """Sizes of a steady-state Kalman filter whose state is what it decodes."""

    bin_s: float = Field(gt=0)
    lead_bins: int = Field(ge=0, description="bins that activity leads the movement by")
    warm_up_s: float = Field(gt=0, description="seconds after a reset until the state is trusted")
    dim_out: int = Field(gt=0)

    @property
    def window_s(self) -> float:
        """Seconds of unbroken spikes before a decode is trusted."""
        return self.warm_up_s

    @property
    def reads(self) -> str:
        """What a decode reads, for people."""
        return (
            f"counts of bins of {self.bin_s:g} s, which lead by {self.lead_bins * self.bin_s:g} s, "
            f"and a state, trusted after {self.warm_up_s:g} s"
        )

    def table_shapes(self, n_units: int) -> Shapes:
        """See `KalmanTables`."""
        n = self.dim_out
        return {"tokens": (n_units, n), "transition": (n, n), "drift": (n,)}


AnySizes: TypeAlias = Sizes | PossmSizes | RidgeSizes | KalmanSizes


def _attention_shapes(sizes: Sizes | PossmSizes, n_units: int) -> Shapes:
    heads, latents, width = sizes.cross_heads, sizes.n_latents, sizes.dim_head
    return {
        "tokens": (n_units, 2 * heads, width),
        "boundary_lse": (heads, latents),
        "boundary_value": (heads, latents, width),
        "session": (sizes.dim,),
        "omega": (sizes.n_rotary,),
    }


@dataclass(frozen=True, kw_only=True)
class Tables:
    """What depends on today's units, fixed once a calibration; inputs of the graph or the ring.

    tokens: (n_units, …) float32, what a spike of each unit is to the graph.
    """

    tokens: Array

    def as_dict(self) -> dict[str, NDArray[np.generic]]:
        return {name: np.ascontiguousarray(value) for name, value in vars(self).items()}


@dataclass(frozen=True, kw_only=True)
class UnitTables(Tables):
    """Of a model of attention.

    Heads are laid out `[real | imaginary | unrotated]` (see `decoder.tokens`).
    tokens: (n_units, 2 * cross_heads, dim_head) float32, keys of all heads, then values.
    boundary_lse: (cross_heads, n_latents) float32, log-sum-exp of each latent's scores over all
        start and end tokens (of a streaming model: start tokens, at every chunk's start).
    boundary_value: (cross_heads, n_latents, dim_head) float32, their attended value in the
        window's (the chunk's) frame.
    session: (dim,) float32, the session embedding.
    omega: (n_rotary,) float64, rotary frequencies in rad/s.
    """

    boundary_lse: Array
    boundary_value: Array
    session: Array
    omega: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class RidgeTables(Tables):
    """Of a ridge regression.

    tokens: (n_units, n_lags, dim_out) float32, what a spike adds to the output, the oldest lag
        first.
    """


@dataclass(frozen=True, kw_only=True)
class KalmanTables(Tables):
    """Of a Kalman filter: `state' = transition @ state + drift + sum of the bin's tokens`.

    tokens: (n_units, dim_out) float32, the gain: what a spike adds to the state.
    transition: (dim_out, dim_out) float32, of the state over a bin, less what was expected of it.
    drift: (dim_out,) float32, what a bin without a spike adds.
    """

    transition: Array
    drift: Array


class Family(NamedTuple):
    """What a family's manifests and tables hold."""

    sizes: type[AnySizes]
    tables: type[Tables]


FAMILIES = {
    "poyo": Family(Sizes, UnitTables),
    "possm": Family(PossmSizes, UnitTables),
    "ridge": Family(RidgeSizes, RidgeTables),
    "kalman": Family(KalmanSizes, KalmanTables),
}
