"""The decoder families: the sizes that a runtime needs, and the tables of the units.

    poyo    reads a whole window of spikes at every decode
    possm   reads one short chunk at a time, with a recurrent state
    ridge   a weight for each unit and lag (`training.baselines.ridge`)
    kalman  a gain for each unit, and the velocity as its state (`training.baselines.kalman`)

The tables of every family include `tokens`, with one row per unit. This module defines shapes; how
a graph uses the tables is in the runtimes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import Annotated, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from decoder.arrays import Float32s, Floats

# Ranges of any decoder for a rig. Values outside mean damage, or would take all memory.
Seconds = Annotated[float, Field(ge=1e-3, le=10.0)]
RotaryPeriod = Annotated[float, Field(ge=1e-6, le=1e3)]
Width = Annotated[int, Field(ge=1, le=8192)]
Heads = Annotated[int, Field(ge=1, le=256)]
Count = Annotated[int, Field(ge=1, le=4096)]
Velocity = Annotated[int, Field(ge=2, le=2, description="x and y, the axes of a cursor frame")]
Shapes = dict[str, tuple[int, ...]]
FLOAT64 = ("omega",)  # all other tables are float32


class Strict(BaseModel):
    """A part of the manifest, without unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Shaped(Strict):
    """The sizes of any family: how much a decode reads, and how much computation it takes."""

    dim_out: Velocity

    @property
    def n_steps(self) -> int:
        """Maximum number of graph steps of the first decode, which reads a whole window."""
        return 1

    @property
    def n_latents(self) -> int:
        """Number of queries that attend to spikes; 1 for a linear decoder, which has one sum."""
        return 1

    @property
    def row_size(self) -> int:
        """Number of values in a spike's token row."""
        return prod(self.table_shapes(1)["tokens"])

    def table_shapes(self, n_units: int) -> Shapes:
        """The shapes of the tables for `n_units` units."""
        raise NotImplementedError


class PoyoSizes(Shaped):
    """The sizes of a POYO model; names as in torch_brain."""

    sequence_length: Seconds = Field(description="length of the window that a decode reads, s")
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
        """Seconds of uninterrupted spikes before a decode is trusted: everything that it reads."""
        return self.sequence_length

    @property
    def reads(self) -> str:
        """What a decode reads, as text."""
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
    """The sizes of a streaming model; meanings in `training.models.possm`."""

    chunk_s: Seconds = Field(description="length of the chunk that one step of the state reads, s")
    warm_up_s: Seconds = Field(description="time after a reset until the state is trusted, s")
    num_latents: Count
    dim: Width
    dim_head: Width
    cross_heads: Heads
    hidden: Width
    t_min: RotaryPeriod
    t_max: RotaryPeriod

    @property
    def window_s(self) -> float:
        """Seconds of uninterrupted spikes before a decode is trusted."""
        return self.warm_up_s

    @property
    def reads(self) -> str:
        """What a decode reads, as text."""
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
    """The sizes of a ridge regression on spike counts in the last bins."""

    bin_s: Seconds
    n_lags: Count = Field(description="number of bins, up to the decoded instant")

    @property
    def window_s(self) -> float:
        """Seconds of uninterrupted spikes before a decode is trusted: everything that it reads."""
        return self.n_lags * self.bin_s

    @property
    def reads(self) -> str:
        """What a decode reads, as text."""
        return f"counts of the last {self.n_lags} bins of {self.bin_s:g} s"

    def table_shapes(self, n_units: int) -> Shapes:
        """See `RidgeTables`."""
        return {"tokens": (n_units, self.n_lags, self.dim_out)}


class KalmanSizes(Shaped):
    """The sizes of a steady-state Kalman filter whose state is the decoded velocity."""

    bin_s: Seconds
    lead_bins: int = Field(
        ge=0, le=1000, description="number of bins by which activity leads movement"
    )
    warm_up_s: Seconds = Field(description="time after a reset until the state is trusted, s")

    @property
    def window_s(self) -> float:
        """Seconds of uninterrupted spikes before a decode is trusted."""
        return self.warm_up_s

    @property
    def reads(self) -> str:
        """What a decode reads, as text."""
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
        "readout": (sizes.dim_out, sizes.dim + 1),
        "omega": (sizes.n_rotary,),
    }


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The arrays that depend on today's units, fixed per calibration; inputs of graph or ring.

    tokens: (n_units, …) float32, the token row of each unit.
    """

    tokens: Float32s

    def as_dict(self) -> dict[str, NDArray[np.generic]]:
        return {
            name: np.ascontiguousarray(value)
            for name, value in vars(self).items()
            if value is not None
        }


@dataclass(frozen=True, kw_only=True)
class AttentionTables(Tables):
    """The tables of a model whose latents attend to spikes.

    Heads are laid out `[real | imaginary | unrotated]` (see `decoder.memory.tokens`).
    tokens: (n_units, 2 * cross_heads, dim_head) float32, keys of all heads, then values.
    boundary_lse: (cross_heads, n_latents) float32, log-sum-exp of each latent's scores over all
        start and end tokens (in a streaming model: the start tokens at every chunk's start).
    boundary_value: (cross_heads, n_latents, dim_head) float32, the value attended from them, in
        the frame of the window (or chunk).
    session: (dim,) float32, the session embedding.
    omega: (n_rotary,) float64, rotary frequencies in rad/s.
    readout: (dim_out, dim + 1) float32, weights and offset of the output layer; None in a bundle of
        version 1, whose graph has them.
    """

    boundary_lse: Float32s
    boundary_value: Float32s
    session: Float32s
    omega: Floats
    readout: Float32s | None = None


@dataclass(frozen=True, kw_only=True)
class RidgeTables(Tables):
    """The tables of a ridge regression.

    tokens: (n_units, n_lags, dim_out) float32, what a spike adds to the output, oldest lag
        first.
    """


@dataclass(frozen=True, kw_only=True)
class KalmanTables(Tables):
    """The tables of a Kalman filter: `state' = transition @ state + drift + sum of bin's tokens`.

    tokens: (n_units, dim_out) float32, the gain: what a spike adds to the state.
    transition: (dim_out, dim_out) float32, `A - gain @ C @ A` (`training.baselines.kalman`).
    drift: (dim_out,) float32, what a bin without spikes adds.
    """

    transition: Float32s
    drift: Float32s


class Family(NamedTuple):
    """The classes of a family's sizes and tables."""

    sizes: type[AnySizes]
    tables: type[Tables]


FAMILIES = {
    "poyo": Family(PoyoSizes, AttentionTables),
    "possm": Family(PossmSizes, AttentionTables),
    "ridge": Family(RidgeSizes, RidgeTables),
    "kalman": Family(KalmanSizes, KalmanTables),
}
