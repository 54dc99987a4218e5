"""A small recurrent network on binned counts: the strongest baseline.

A GRU with 100 hidden units reads 12 bins of 50 ms and predicts the velocity at their end. Its
training windows end anywhere in the training domain. Dropout and the number of epochs are chosen on
the validation domain. Counts are normalised by mean and standard deviation of the training domain.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from decoder.arrays import Floats
from streaming.sessions.session import Session
from training.baselines.ridge import (
    BIN_S,
    LONGEST_S,
    counts_before,
    enough_times,
    evaluation_times,
    r2,
)

N_BINS = 12
N_HIDDEN = 100
DROPOUTS = (0.3, 0.5)
N_EPOCHS = 12
BATCH_SIZE = 128
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-4
STEP_S = 0.01  # between the ends of training windows
SPAN_S = N_BINS * BIN_S
assert SPAN_S <= LONGEST_S + 1e-9


class _Network(nn.Module):
    def __init__(self, n_units: int, dropout: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.gru = nn.GRU(n_units, N_HIDDEN, batch_first=True)
        self.head = nn.Linear(N_HIDDEN, 2)

    def forward(self, counts: Tensor) -> Tensor:
        """counts: (B, N_BINS, n_units) -> (B, 2)."""
        states, _ = self.gru(self.drop(counts))
        output: Tensor = self.head(self.drop(states[:, -1]))
        return output


class Gru:
    """Fitted on the training domain. Raises TrainingError if a domain has no whole window."""

    name = f"GRU of {N_HIDDEN}, {N_BINS} bins of 50 ms"

    def __init__(self, session: Session, *, seed: int = 0) -> None:
        self._session = session
        times = evaluation_times(session, "train", step_s=STEP_S, margin_s=SPAN_S)
        enough_times(session, "train", times)
        valid = evaluation_times(session, "valid", margin_s=SPAN_S)
        enough_times(session, "valid", valid)
        counts = _counts(session, times)
        self._center = counts.mean(dim=(0, 1))
        self._spread = counts.std(dim=(0, 1)) + 1e-3
        self._spread[counts.amax(dim=(0, 1)) == 0] = torch.inf  # silent in training: ignored
        velocity = session.velocity_at(times)
        self._mean, self._std = velocity.mean(axis=0), velocity.std(axis=0)
        inputs = (counts - self._center) / self._spread
        target = torch.from_numpy((velocity - self._mean) / self._std).float()
        best = -np.inf
        for dropout in DROPOUTS:
            torch.manual_seed(seed)
            network = _Network(session.n_units, dropout)
            for epoch, score in self._train(network, inputs, target, valid):
                if score > best:
                    best, self._network = score, copy.deepcopy(network)
                    self.chosen = f"dropout {dropout:g}, {epoch + 1} epochs"

    def decode(self, times: Floats) -> Floats:
        """Velocity (n, 2) m/s at arbitrary `times`."""
        return self._decode(self._network, times)

    def _train(
        self, network: _Network, inputs: Tensor, target: Tensor, valid: Floats
    ) -> Iterator[tuple[int, float]]:
        """Train; yields number and validation R² of each epoch."""
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )
        n_steps = N_EPOCHS * (len(inputs) // BATCH_SIZE + 1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
        true = self._session.velocity_at(valid)
        for epoch in range(N_EPOCHS):
            network.train()
            for rows in torch.randperm(len(inputs)).split(BATCH_SIZE):
                loss = nn.functional.mse_loss(network(inputs[rows]), target[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                schedule.step()
            yield epoch, r2(true, self._decode(network, valid)).r2_mean

    @torch.no_grad()
    def _decode(self, network: _Network, times: Floats) -> Floats:
        network.eval()
        inputs = (_counts(self._session, times) - self._center) / self._spread
        output = network(inputs).double().numpy()
        return np.asarray(output * self._std + self._mean)


def _counts(session: Session, times: Floats) -> Tensor:
    """(n, N_BINS, n_units) float32."""
    counts = counts_before(session, times, N_BINS)
    return torch.from_numpy(counts.astype(np.float32)).transpose(1, 2)
