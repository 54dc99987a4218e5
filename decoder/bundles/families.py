"""The families of decoders: the sizes a runtime needs of each, and the tables of its units.

    poyo    a window of spikes is read again at every decode
    possm   a short chunk at a time, with a recurrent state
    ridge   a weight for each unit and lag (`training.baselines.ridge`)
    kalman  a gain for each unit, and a state that is the velocity (`training.baselines.kalman`)

Every family's tables have `tokens`, a row a unit. This module knows shapes; what the tables mean
to a graph stands in the runtimes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import Annotated, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Array = NDArray[np.float32]

# Ranges that any decoder for a rig is in; what is outside is damage, or would take all memory.
Seconds = Annotated[float, Field(ge=1e-3, le=10.0)]
RotaryPeriod = Annotated[float, Field(ge=1e-6, le=1e3)]
Width = Annotated[int, Field(ge=1, le=8192)]
Heads = Annotated[int, Field(ge=1, le=256)]
Count = Annotated[int, Field(ge=1, le=4096)]
Velocity = Annotated[int, Field(ge=2, le=2, description="x and y, all that a cursor frame has")]
Shapes = dict[str, tuple[int, ...]]
FLOAT64 = ("omega",)  # all other tables are float32


class Strict(BaseModel):
    """A part of the manifest; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Shaped(Strict):
    """Sizes of any family: how much one decode reads, and how much that takes."""

    dim_out: Velocity

    @property
    def n_steps(self) -> int:
        """Steps of the graph that the first decode may take, to catch up with a window."""
        return 1

    @property
    def n_latents(self) -> int:
        """Queries that gather spikes; a linear decoder has one sum."""
        return 1

    @property
    def row_size(self) -> int:
        """Numbers that a spike is to the graph."""
        return prod(self.table_shapes(1)["tokens"])

    def table_shapes(self, n_units: int) -> Shapes:
        """Shapes of the tables for so many units."""
        raise NotImplementedError


class PoyoSizes(Shaped):
    """Sizes of a POYO that the runtime needs; names as in torch_brain."""

    sequence_length: Seconds = Field(description="of spikes that a decode reads")
    latent_step: Seconds
    num_latents_per_step: Count
    dim: Width
    depth: int = Field(ge=0, le=1000)
    dim_head: Width
    cross_heads: Heads
    self_heads: Heads
    t_min: RotaryPeriod
    t_max: RotaryPeriod

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
        """See `AttentionTables`."""
        return _attention_shapes(self, n_units)


class PossmSizes(Shaped):
    """Sizes of a streaming model that the runtime needs; meanings in `training.models.possm`."""

    chunk_s: Seconds = Field(description="of spikes that one step of the state reads")
    warm_up_s: Seconds = Field(description="after a reset until the state is trusted")
    num_latents: Count
    dim: Width
    dim_head: Width
    cross_heads: Heads
    hidden: Width
    t_min: RotaryPeriod
    t_max: RotaryPeriod

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
    def n_steps(self) -> int:
        return ceil(self.warm_up_s / self.chunk_s)

    @property
    def n_latents(self) -> int:
        return self.num_latents

    @property
    def n_rotary(self) -> int:
        return self.dim_head // 4

    def table_shapes(self, n_units: int) -> Shapes:
        """See `AttentionTables`."""
        return _attention_shapes(self, n_units)


class RidgeSizes(Shaped):
    """Sizes of a ridge regression on the counts of the last bins."""

    bin_s: Seconds
    n_lags: Count = Field(description="bins that end at the decoded instant")

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


class KalmanSizes(Shaped):
    """Sizes of a steady-state Kalman filter whose state is what it decodes."""

    bin_s: Seconds
    lead_bins: int = Field(ge=0, le=1000, description="bins that activity leads the movement by")
    warm_up_s: Seconds = Field(description="after a reset until the state is trusted")

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

    @property
    def n_steps(self) -> int:
        return ceil(self.warm_up_s / self.bin_s) + self.lead_bins

    def table_shapes(self, n_units: int) -> Shapes:
        """See `KalmanTables`."""
        n = self.dim_out
        return {"tokens": (n_units, n), "transition": (n, n), "drift": (n,)}


AnySizes: TypeAlias = PoyoSizes | PossmSizes | RidgeSizes | KalmanSizes


def _attention_shapes(sizes: PoyoSizes | PossmSizes, n_units: int) -> Shapes:
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
class AttentionTables(Tables):
    """Of a model of attention.

    Heads are laid out `[real | imaginary | unrotated]` (see `decoder.memory.tokens`).
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
    "poyo": Family(PoyoSizes, AttentionTables),
    "possm": Family(PossmSizes, AttentionTables),
    "ridge": Family(RidgeSizes, RidgeTables),
    "kalman": Family(KalmanSizes, KalmanTables),
}
