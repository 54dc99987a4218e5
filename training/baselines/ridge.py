"""Baseline decoders, fitted on the same training domain as the model they are compared with.

All are causal (an estimate at time t uses only spikes before t) and choose their hyper-parameters
on the validation domain. In a session of several blocks, `Ridge` and `Kalman` count each block by
its weight.

- `Ridge` here: ridge regression on counts of 10 lags of 50 ms (the Wiener filter).
- `training.baselines.kalman`: velocity Kalman filter.
- `training.baselines.gru`: a small recurrent network, the only one that needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from decoder.arrays import Floats
from decoder.errors import TrainingError
from streaming.sessions.intervals import within
from streaming.sessions.session import Session, Split, weighted_std

BIN_S = 0.05
N_LAGS = 10
LONGEST_S = 0.6  # the longest history that a baseline uses
ALPHAS = (1e0, 1e1, 1e2, 1e3, 1e4, 1e5)


@dataclass(frozen=True, kw_only=True)
class Score:
    """Coefficient of determination and correlation of decoded velocity, per axis."""

    r2_x: float
    r2_y: float
    correlation_x: float
    correlation_y: float

    @property
    def r2_mean(self) -> float:
        return (self.r2_x + self.r2_y) / 2

    @property
    def correlation_mean(self) -> float:
        return (self.correlation_x + self.correlation_y) / 2


def r2(true: Floats, decoded: Floats) -> Score:
    """Score of (n, 2) velocities; R² = 1 - residual sum of squares / total, as in scikit-learn."""
    residual = ((true - decoded) ** 2).sum(axis=0)
    total = ((true - true.mean(axis=0)) ** 2).sum(axis=0)
    x, y = 1.0 - residual / np.maximum(total, 1e-12)
    return Score(
        r2_x=float(x),
        r2_y=float(y),
        correlation_x=_correlation(true[:, 0], decoded[:, 0]),
        correlation_y=_correlation(true[:, 1], decoded[:, 1]),
    )


def _correlation(a: Floats, b: Floats) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b) / max(float(np.sqrt((a @ a) * (b @ b))), 1e-12)


def counts_before(session: Session, times: Floats, n_lags: int) -> Floats:
    """Counts (n, n_units, n_lags) in the `n_lags` bins of `BIN_S` before each of `times`.

    The oldest bin comes first.
    """
    edges = np.arange(n_lags, -1, -1) * BIN_S
    features = np.empty((len(times), session.n_units, n_lags))
    for unit in range(session.n_units):
        spikes = session.spike_times[session.spike_units == unit]
        before = np.searchsorted(spikes, times[:, None] - edges[None, :])
        features[:, unit] = np.diff(before, axis=1)
    return features


def evaluation_times(
    session: Session, split: Split, step_s: float = BIN_S, margin_s: float = BIN_S * N_LAGS
) -> Floats:
    """Times every `step_s` in a split with at least `margin_s` of it before them."""
    intervals = session.intervals(split)
    grids = [np.arange(start, end, step_s) for start, end in intervals]
    times = np.concatenate(grids) if grids else np.empty(0)
    return np.asarray(times[within(times, intervals, margin_s=margin_s)])


def enough_times(session: Session, split: Split, times: Floats) -> Floats:
    """Return `times`. Raises TrainingError if there are too few to fit or score a decoder."""
    if len(times) < 2:
        raise TrainingError(
            f"{session.session_id}: {len(times)} windows of {BIN_S * N_LAGS:g} s in the {split} "
            "domain; expected at least 2"
        )
    return times


class Ridge:
    """Ridge regression from lagged counts to velocity.

    fit_seconds: fit only on the first seconds of the training domain.
    Raises TrainingError if a domain contains no complete window.
    """

    name = "ridge, 10 lags of 50 ms"

    def __init__(self, session: Session, *, fit_seconds: float | None = None) -> None:
        self._session = session
        fit_times = enough_times(session, "train", evaluation_times(session, "train"))
        if fit_seconds is not None:
            fit_times = fit_times[fit_times < fit_times[0] + fit_seconds]
        valid_times = enough_times(session, "valid", evaluation_times(session, "valid"))
        weight, target = session.weight_at(fit_times), session.velocity_at(fit_times)
        self._bias = np.average(target, axis=0, weights=weight)
        fit = self._standardized(counts_before(session, fit_times, N_LAGS), fit_times)
        weighted = fit.T * weight
        gram, moment = weighted @ fit, weighted @ (target - self._bias)
        fits = {a: np.linalg.solve(gram + a * np.eye(len(gram)), moment) for a in ALPHAS}
        valid, true = self._normalized(valid_times), session.velocity_at(valid_times)
        scores = {a: r2(true, valid @ w + self._bias).r2_mean for a, w in fits.items()}
        self.alpha = max(scores, key=scores.__getitem__)
        self.valid_r2, self._weights = scores[self.alpha], fits[self.alpha]
        self.chosen = f"penalty {self.alpha:g}"

    def decode(self, times: Floats) -> Floats:
        """Velocity (n, 2) m/s at arbitrary `times`."""
        return np.asarray(self._normalized(times) @ self._weights + self._bias)

    @property
    def weights(self) -> Floats:
        """Velocity (n_units, n_lags, 2) in m/s that one spike adds, oldest lag first."""
        scaled = self._weights / self._spread[:, None]
        return np.asarray(scaled.reshape(self._session.n_units, N_LAGS, 2))

    @property
    def offset(self) -> Floats:
        """Velocity (2,) in m/s without any spikes."""
        return np.asarray(self._bias - (self._center / self._spread) @ self._weights)

    def _standardized(self, counts: Floats, times: Floats) -> Floats:
        """The counts (n, n_units, n_lags) of the fit as regressors (n, n_units * n_lags).

        Sets their centre and spread. Counts of units that a block did not have become 0, the mean.
        """
        center, spread = np.zeros(counts.shape[1:]), np.ones(counts.shape[1:])
        for units, share in self._session.weighed(times):
            seen, of_units = share > 0, counts[:, units]
            if seen.any():
                center[units] = np.average(of_units, axis=0, weights=share)
                spread[units] = weighted_std(of_units, share) + 1e-6
            counts[:, units] = np.where(seen[:, None, None], of_units, center[units])
        self._center, self._spread = center.ravel(), spread.ravel()
        return np.asarray((counts.reshape(len(times), -1) - self._center) / self._spread)

    def _normalized(self, times: Floats) -> Floats:
        counts = counts_before(self._session, times, N_LAGS).reshape(len(times), -1)
        return np.asarray((counts - self._center) / self._spread)


def ridge_score(
    session: Session,
    *,
    fit_seconds: float | None = None,
    score_between: tuple[float, float] | None = None,
) -> Score:
    """R² of ridge regression on the test domain, or on the given part of the test domain."""
    times = evaluation_times(session, "test")
    if score_between is not None:
        times = times[(times >= score_between[0]) & (times < score_between[1])]
    enough_times(session, "test", times)
    ridge = Ridge(session, fit_seconds=fit_seconds)
    return r2(session.velocity_at(times), ridge.decode(times))
