"""The velocity Kalman filter, a common baseline in the lab.

State `x = [v_x, v_y]`, observation `y` = mean-subtracted counts in 50 ms bins:

    x_k = A x_{k-1} + w,  w ~ N(0, W)
    y_k = C x_{k+lag} + q,  q ~ N(0, Q)

A, C, W and Q are least-squares estimates (Wu, Gao, Bienenstock, Donoghue and Black, Neural
Computation 2006). The lag between activity and movement, and the noise added to Q's diagonal, are
chosen on the validation domain. The filter uses its steady-state gain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from decoder.arrays import Floats
from streaming.sessions.session import Session, Split
from training.baselines.ridge import BIN_S, counts_before, enough_times, evaluation_times, r2

LAGS = (0, 1, 2, 3)  # bins
NOISES = (0.0, 1e-2, 1e-1)  # added to each unit's count variance, as a share of the mean variance
RICCATI_STEPS = 200


@dataclass(frozen=True, kw_only=True)
class Filter:
    """The fitted filter: `x' = A x + gain (y - C A x)`, y are the counts `lag` bins ago."""

    lag: int
    transition: Floats  # A (2, 2)
    observation: Floats  # C (n_units, 2)
    gain: Floats  # (2, n_units)


class Kalman:
    """Fitted on the training domain. Raises TrainingError if a domain has no whole window."""

    name = "velocity Kalman filter, 50 ms"

    def __init__(self, session: Session) -> None:
        self._session = session
        enough_times(session, "train", evaluation_times(session, "train"))
        times = enough_times(session, "valid", evaluation_times(session, "valid"))
        true = session.velocity_at(times)
        self._bins: dict[Split, list[tuple[Floats, Floats]]] = {}
        train = self._counts("train")
        self.mean_count = self._mean_count(train)
        self.valid_r2 = -np.inf
        for lag in LAGS:
            for noise in NOISES:
                fitted = self._fit(train, lag, noise)
                score = r2(true, self._run(fitted, "valid", times)).r2_mean
                if score > self.valid_r2:
                    self.valid_r2, self.filter = score, fitted
                    self.chosen = f"lag {1e3 * lag * BIN_S:.0f} ms, noise {noise:g}"

    def decode(self, times: Floats, split: Split = "test") -> Floats:
        """Velocity (n, 2) m/s at `times` of a split, each from the last complete bin before it."""
        return self._run(self.filter, split, times)

    def _counts(self, split: Split) -> list[tuple[Floats, Floats]]:
        """Bin ends (n,) and counts (n, n_units) of every interval of a split."""
        if split not in self._bins:
            grids = [np.arange(a + BIN_S, b, BIN_S) for a, b in self._session.intervals(split)]
            counts = counts_before(self._session, np.concatenate([*grids, np.empty(0)]), 1)[:, :, 0]
            parts = np.split(counts, np.cumsum([len(ends) for ends in grids])[:-1])
            # Without intervals, `parts` still has one empty entry.
            self._bins[split] = list(zip(grids, parts, strict=False))
        return self._bins[split]

    def _mean_count(self, train: list[tuple[Floats, Floats]]) -> Floats:
        """The mean count (n_units,) of each unit in the blocks that had it."""
        ends, counts = (np.concatenate(column) for column in zip(*train, strict=True))
        mean = np.zeros(counts.shape[1])
        for units, weight in self._session.weighed(ends):
            if weight.any():
                mean[units] = np.average(counts[:, units], axis=0, weights=weight)
        return mean

    def _fit(self, train: list[tuple[Floats, Floats]], lag: int, noise: float) -> Filter:
        session = self._session
        moves = [session.velocity_at(ends) for ends, _ in train]
        before = np.concatenate([v[:-1] for v in moves])
        after = np.concatenate([v[1:] for v in moves])
        weight = session.weight_at(np.concatenate([ends[1:] for ends, _ in train]))
        transition = _least_squares(before, after, weight)
        process: Floats = np.cov((after - before @ transition.T).T, aweights=weight)
        state = np.concatenate([v[lag:] for v in moves])
        counts = np.concatenate([c[: max(0, len(c) - lag)] for _, c in train]) - self.mean_count
        ends = np.concatenate([ends[lag:] for ends, _ in train])
        observation, residual = self._observed(state, counts, ends)
        least = max(noise, 1e-6)  # a unit without spikes has no variance
        residual += least * np.diag(residual).mean() * np.eye(len(residual))
        weighted = np.linalg.solve(residual, observation).T  # C' Q^-1
        information = weighted @ observation
        covariance = process
        for _ in range(RICCATI_STEPS):
            predicted = transition @ covariance @ transition.T + process
            covariance = np.asarray(np.linalg.inv(np.linalg.inv(predicted) + information))
        return Filter(
            lag=lag, transition=transition, observation=observation, gain=covariance @ weighted
        )

    def _observed(self, state: Floats, counts: Floats, ends: Floats) -> tuple[Floats, Floats]:
        """C (n_units, 2) and Q (n_units, n_units), from the blocks that had each unit.

        state (n, 2), counts (n, n_units), ends (n,): of each bin.
        """
        weight = self._session.weight_at(ends)
        observation, errors = np.zeros((counts.shape[1], 2)), np.zeros_like(counts)
        for units, share in self._session.weighed(ends):
            if share.any():
                observation[units] = _least_squares(state, counts[:, units], share)
                seen = share.sum() / weight.sum()  # else a unit of few blocks would look reliable
                error = counts[:, units] - state @ observation[units].T
                errors[:, units] = np.where(share[:, None] > 0, error, 0.0) / np.sqrt(seen)
        return observation, np.cov(errors.T, aweights=weight)

    def _run(self, fitted: Filter, split: Split, times: Floats) -> Floats:
        estimate = np.zeros((len(times), 2))
        for (start, end), (ends, counts) in zip(
            self._session.intervals(split), self._counts(split), strict=True
        ):
            inside = (times >= start) & (times <= end)
            if not len(ends) or not inside.any():
                continue
            state, decoded = np.zeros(2), np.zeros((len(ends), 2))
            for k in range(fitted.lag, len(ends)):
                state = fitted.transition @ state
                seen = counts[k - fitted.lag] - self.mean_count
                state = state + fitted.gain @ (seen - fitted.observation @ state)
                decoded[k] = state
            last = np.searchsorted(ends, times[inside] + 1e-9, side="right") - 1
            estimate[inside] = decoded[np.maximum(last, 0)]
        return estimate


def _least_squares(known: Floats, wanted: Floats, weight: Floats) -> Floats:
    """The matrix (n_wanted, n_known) that predicts `wanted` (n, …) from `known` (n, …) best."""
    root = np.sqrt(weight)[:, None]
    return np.asarray(np.linalg.lstsq(root * known, root * wanted, rcond=None)[0].T)
