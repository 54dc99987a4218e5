"""Sizes of the two model families, and the query times of their windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from decoder.arrays import Floats
from decoder.memory.chunks import EDGE_S

N_QUERIES = 16  # per training window of POYO
N_OPEN = 8  # queries inside chunks, per training window of a streaming model
MAX_WALK_S = 30.0  # longest window for walking a recording with a streaming model
GRID_CHUNKS = 5  # 0.2 s: a multiple of the chunk and of the steps between scored times
CARRIED_S = 4.0  # that a state has passed through before a training window, or more
SHORTER_S = (4.0, 2.0, 1.0)  # training windows of a streaming model on sessions of short intervals
USUAL_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of a POYO, by the names of `torch_brain.models.POYO`."""

    sequence_length: float = 1.0
    latent_step: float = 0.125
    num_latents_per_step: int = 16
    dim: int = 64
    depth: int = 6
    dim_head: int = 64
    cross_heads: int = 2
    self_heads: int = 8
    ffn_dropout: float = 0.2
    lin_dropout: float = 0.4
    atn_dropout: float = 0.2
    t_min: float = 1e-4
    t_max: float = 2.0627
    dim_out: int = 2

    @property
    def n_rotary(self) -> int:
        """Rotary frequencies per head. Half of each head is rotated, in pairs."""
        return self.dim_head // 4

    @property
    def window_s(self) -> float:
        """Length of a window in seconds, in training and live."""
        return self.sequence_length

    @property
    def n_together(self) -> int:
        """Windows of one session per group in a batch; POYO's windows are independent."""
        return 1

    @property
    def usual_batch(self) -> int:
        """Windows in a training batch."""
        return USUAL_BATCH

    def training_queries(self, rng: np.random.Generator) -> Floats:
        """Draw the query times of a training window: denser towards its end, one at the end."""
        ages = rng.uniform(size=N_QUERIES - 1) ** 2
        return np.append(self.sequence_length * (1.0 - ages), self.sequence_length)

    def training_on(self, domains: Sequence[Floats]) -> ModelConfig:
        """The configuration for training on domains, intervals (n, 2) each: this one."""
        return self

    def walking(self, intervals: Floats) -> ModelConfig:
        """The configuration for walking intervals (n, 2) of a recording: this one."""
        return self

    def walked_queries(self, step_s: float) -> Floats:
        """Query times of one window when a recording is walked: the window's end."""
        return np.array([self.sequence_length])


@dataclass(frozen=True, kw_only=True)
class PossmConfig:
    """Sizes of a streaming model.

    chunk_s: length of a chunk in seconds.
    warm_up_s: seconds after a reset until the state can be trusted.
    train_s: length of a training window in seconds, at most. Long windows decode other days better
        than short ones (docs/ACCURACY.md).
    n_carried: how many other windows a state passes through before its own.
    state_dropout: share of the state that the readout does without, in training.
    """

    chunk_s: float = 0.04
    warm_up_s: float = 0.4
    train_s: float = 8.0
    n_carried: int = 1
    num_latents: int = 8
    dim: int = 64
    dim_head: int = 16
    cross_heads: int = 2
    hidden: int = 128
    dropout: float = 0.0
    state_dropout: float = 0.2
    t_min: float = 1e-2
    t_max: float = 4.0
    dim_out: int = 2

    @property
    def encoder(self) -> ModelConfig:
        """The encoder's sizes: those of a POYO whose window is one chunk."""
        return ModelConfig(
            sequence_length=self.chunk_s,
            latent_step=self.chunk_s,
            num_latents_per_step=self.num_latents,
            dim=self.dim,
            depth=0,
            dim_head=self.dim_head,
            cross_heads=self.cross_heads,
            ffn_dropout=self.dropout,
            lin_dropout=self.dropout,
            atn_dropout=0.0,
            t_min=self.t_min,
            t_max=self.t_max,
            dim_out=self.dim_out,
        )

    @property
    def n_chunks(self) -> int:
        """Chunks per training window."""
        return round(self.train_s / self.chunk_s)

    @property
    def window_s(self) -> float:
        """Length of a training window in seconds."""
        return self.train_s

    @property
    def n_together(self) -> int:
        """Windows of one session per group in a batch, so that states can be carried over."""
        return max(2, self.n_carried)

    @property
    def usual_batch(self) -> int:
        """Windows in a training batch: `USUAL_BATCH` seconds of them."""
        return max(self.n_together, round(USUAL_BATCH / self.train_s))

    def training_queries(self, rng: np.random.Generator) -> Floats:
        """Draw the query times of a training window: the end of each chunk, and some inside."""
        first = math.ceil(self.warm_up_s / self.chunk_s)
        ends = self.chunk_s * np.arange(first, self.n_chunks + 1)
        return np.append(rng.uniform(self.warm_up_s, self.train_s, N_OPEN), ends)

    def training_on(self, domains: Sequence[Floats]) -> PossmConfig:
        """The configuration for training on domains, intervals (n, 2) each.

        Its windows are shorter if fewer than 75 % of the intervals, or none of a domain, hold one.
        """
        in_each = (float((edges[:, 1] - edges[:, 0]).max()) for edges in domains if len(edges))
        longest = min(_fitting(np.concatenate(domains)), *in_each) - self.chunk_s
        fitting = (s for s in (self.train_s, *SHORTER_S) if s <= min(longest, self.train_s))
        train_s = next(fitting, min(self.train_s, SHORTER_S[-1]))
        return replace(self, train_s=train_s, n_carried=max(1, round(CARRIED_S / train_s)))

    def walking(self, intervals: Floats) -> PossmConfig:
        """The configuration for walking intervals (n, 2), in long windows: live states are old.

        75 % of the intervals are at least one window long. All queries are on one grid from the
        interval's start, as those of the baselines: between samples of the kinematics, R² differs.
        """
        most = max(_fitting(intervals) - self.chunk_s, min(self.train_s, SHORTER_S[-1]))
        longest = most / math.ceil(most / MAX_WALK_S)  # windows of equal length, up to the end
        grid_s = GRID_CHUNKS * self.chunk_s
        n_steps = max(1, int(longest / grid_s + EDGE_S))
        return replace(self, train_s=min(grid_s * n_steps, most))

    def walked_queries(self, step_s: float) -> Floats:
        """Query times of one window when a recording is walked, every `step_s` to its end."""
        n_steps = max(1, int((self.train_s - self.warm_up_s) / step_s + EDGE_S))
        return np.asarray(self.train_s - step_s * np.arange(n_steps, dtype=np.float64)[::-1])


def _fitting(intervals: Floats) -> float:
    """The length that at least 75 % of the intervals (n, 2) have, s."""
    return float(np.percentile(intervals[:, 1] - intervals[:, 0], 25))
