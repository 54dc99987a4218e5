"""A recurrent network trained on many days as if they were one: the baseline between days.

A GRU reads the same channels on every day in bins of 50 ms and predicts the velocity at the end of
each bin. Whole channels are dropped at random, so it learns to do without those that change. Such a
network kept a person's cursor in use for three months without recalibration (a fixed LSTM: Hosman
et al. 2023). It can be fine-tuned to a few seconds of a new day.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from decoder.arrays import Floats, Ints
from decoder.errors import TrainingError
from streaming.sessions.session import Session
from training.baselines.ridge import BIN_S

N_BINS = 40  # of a window
N_FIRST = 8  # bins at its start that are not scored
N_HIDDEN = 128
GRID_S = 0.01  # between the times at which windows may end
BIN_STEPS = round(BIN_S / GRID_S)
SPAN_STEPS = N_BINS * BIN_STEPS
DROPPED = 0.5  # greatest share of the channels dropped in a batch
DROPOUT = 0.3  # of the state that is read out
BATCH_SIZE = 32
N_STEPS, LEARNING_RATE = 20_000, 2e-3  # 8,000 steps were 0.01 worse on days without labels
TUNE_STEPS, TUNE_RATE = 200, 5e-4


class _Network(nn.Module):
    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.gru = nn.GRU(n_channels, N_HIDDEN, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(N_HIDDEN, 2))

    def forward(self, counts: Tensor) -> Tensor:
        """counts: (B, N_BINS, n_channels) -> (B, N_BINS, 2), at the end of each bin."""
        states, _ = self.gru(counts)
        output: Tensor = self.head(states)
        return output


class MultiDayGru:
    """Fitted on the training domains of several days, which must have the same units.

    Raises TrainingError if units differ, or a training domain has no whole window.
    """

    name = f"multi-day GRU of {N_HIDDEN}"

    def __init__(self, days: Sequence[Session], *, steps: int = N_STEPS, seed: int = 0) -> None:
        self.unit_ids = days[0].unit_ids
        for day in days:
            if day.unit_ids != self.unit_ids:
                raise TrainingError(
                    f"{day.session_id} has other units than {days[0].session_id}; a GRU of "
                    "several days needs the same ones on each"
                )
        grids = [_Grid(day) for day in days]
        counts = np.concatenate([grid.windows(grid.train_ends[::50]) for grid in grids])
        self._center = counts.mean(axis=(0, 1))
        self._spread = counts.std(axis=(0, 1)) + 1e-3
        velocity = np.concatenate([grid.velocity[grid.train_ends] for grid in grids])
        self._mean, self._std = velocity.mean(axis=0), velocity.std(axis=0)
        torch.manual_seed(seed)
        self._network = _Network(len(self.unit_ids))
        self._train(grids, steps, LEARNING_RATE, seed)

    def fine_tuned(self, day: Session, *, steps: int = TUNE_STEPS, seed: int = 0) -> MultiDayGru:
        """A copy, trained further on the training domain of one day."""
        tuned = copy.deepcopy(self)
        tuned._train([_Grid(day)], steps, TUNE_RATE, seed)
        return tuned

    @torch.no_grad()
    def decode(self, session: Session, times: Floats) -> Floats:
        """Velocity (n, 2) m/s of a day with the same units, to the nearest 10 ms before `times`."""
        grid = _Grid(session)
        self._network.eval()
        inputs = self._inputs(grid.windows(grid.steps_at(times)))
        output = self._network(inputs)[:, -1].double().numpy()
        return np.asarray(output * self._std + self._mean)

    def _inputs(self, counts: Floats) -> Tensor:
        return torch.from_numpy((counts - self._center) / self._spread).float()

    def _train(self, grids: Sequence[_Grid], steps: int, rate: float, seed: int) -> None:
        rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        optimizer = torch.optim.AdamW(self._network.parameters(), lr=rate, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        self._network.train()
        for _ in range(steps):
            grid = grids[int(rng.integers(len(grids)))]
            ends = rng.choice(grid.train_ends, BATCH_SIZE)
            kept = rng.random((BATCH_SIZE, 1, len(self.unit_ids))) >= rng.uniform(0.0, DROPPED)
            inputs = self._inputs(grid.windows(ends)) * torch.from_numpy(kept)
            velocity = (grid.velocity[bin_ends(ends)] - self._mean) / self._std
            target = torch.from_numpy(velocity[:, N_FIRST:]).float()
            loss = nn.functional.mse_loss(self._network(inputs)[:, N_FIRST:], target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
            optimizer.step()
            schedule.step()


def bin_ends(ends: Ints) -> Ints:
    """Steps (n, N_BINS) at the ends of the bins of windows that end at `ends` (n,)."""
    return ends[:, None] - BIN_STEPS * np.arange(N_BINS - 1, -1, -1)


class _Grid:
    """A day on a grid of `GRID_S`: spikes so far and velocity (n, 2) m/s at each step.

    train_ends: steps at which a window inside the training domain ends.
    """

    def __init__(self, day: Session) -> None:
        self._start = float(day.domain[0, 0])
        times = np.arange(self._start, float(day.domain[-1, 1]), GRID_S)
        step = np.searchsorted(times, day.spike_times, side="left")
        inside = step < len(times)
        cells = step[inside] * day.n_units + day.spike_units[inside]
        counts = np.bincount(cells, minlength=len(times) * day.n_units)
        self._so_far = counts.reshape(len(times), day.n_units).cumsum(axis=0, dtype=np.int32)
        self.velocity = day.velocity_at(times)
        ends = [
            np.flatnonzero((times >= start + N_BINS * BIN_S) & (times < end))
            for start, end in day.train_domain
        ]
        self.train_ends = np.concatenate(ends)
        if len(self.train_ends) == 0:
            raise TrainingError(
                f"{day.session_id}: no window of {N_BINS * BIN_S:g} s fits the training domain"
            )

    def steps_at(self, times: Floats) -> Ints:
        """The last step before each of `times`."""
        steps = np.floor((times - self._start) / GRID_S + 1e-6).astype(np.int64)
        return np.clip(steps, SPAN_STEPS, len(self._so_far) - 1)

    def windows(self, ends: Ints) -> Floats:
        """Counts (n, N_BINS, n_units) before steps `ends` (n,)."""
        edges = ends[:, None] - BIN_STEPS * np.arange(N_BINS, -1, -1)
        counts: Floats = np.diff(self._so_far[edges], axis=1).astype(np.float64)
        return counts
