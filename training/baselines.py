"""Classical decoders to compare with: ridge on lagged counts (the Wiener filter), and R².

All are causal: an estimate at time t uses spikes before t only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from decoder.errors import TrainingError
from streaming.sessions import Session, Split, within

Floats = NDArray[np.float64]

BIN_S = 0.05
N_LAGS = 10
ALPHAS = (1e0, 1e1, 1e2, 1e3, 1e4, 1e5)


@dataclass(frozen=True, kw_only=True)
class Score:
    """Coefficient of determination of decoded velocity, per axis and their mean."""

    r2_x: float
    r2_y: float

    @property
    def r2_mean(self) -> float:
        return (self.r2_x + self.r2_y) / 2


def r2(true: Floats, decoded: Floats) -> Score:
    """R² per axis of (n, 2) velocities; 1 - residual sum of squares over total, as scikit-learn."""
    residual = ((true - decoded) ** 2).sum(axis=0)
    total = ((true - true.mean(axis=0)) ** 2).sum(axis=0)
    x, y = 1.0 - residual / np.maximum(total, 1e-12)
    return Score(r2_x=float(x), r2_y=float(y))


def lagged_counts(session: Session, times: Floats) -> Floats:
    """Counts (n, n_units * N_LAGS) in the `N_LAGS` bins of `BIN_S` before each of `times`."""
    edges = np.arange(N_LAGS, -1, -1) * BIN_S
    features = np.empty((len(times), session.n_units, N_LAGS))
    for unit in range(session.n_units):
        spikes = session.spike_times[session.spike_units == unit]
        before = np.searchsorted(spikes, times[:, None] - edges[None, :])
        features[:, unit] = np.diff(before, axis=1)
    return features.reshape(len(times), -1)


def evaluation_times(session: Session, split: Split, step_s: float = BIN_S) -> Floats:
    """Times every `step_s` in a split whose whole lag window lies inside it."""
    intervals = session.intervals(split)
    grids = [np.arange(start, end, step_s) for start, end in intervals]
    times = np.concatenate(grids) if grids else np.empty(0)
    return np.asarray(times[within(times, intervals, margin_s=BIN_S * N_LAGS)])


def ridge_score(
    session: Session,
    *,
    fit_seconds: float | None = None,
    score_between: tuple[float, float] | None = None,
) -> Score:
    """R² on the test domain of ridge regression fitted on the training domain.

    The penalty is the one of `ALPHAS` that does best on the validation domain.
    `fit_seconds` keeps only the first seconds of training; `score_between` only part of the test.
    Raises TrainingError where a domain holds too few whole windows.
    """
    fit_times = evaluation_times(session, "train")
    if fit_seconds is not None and len(fit_times):
        fit_times = fit_times[fit_times < fit_times[0] + fit_seconds]
    test_times = evaluation_times(session, "test")
    if score_between is not None:
        test_times = test_times[(test_times >= score_between[0]) & (test_times < score_between[1])]
    valid_times = evaluation_times(session, "valid")
    for name, times in (("train", fit_times), ("valid", valid_times), ("test", test_times)):
        if len(times) < 2:
            raise TrainingError(
                f"{session.session_id}: the {name} domain has {len(times)} windows of "
                f"{BIN_S * N_LAGS:g} s for ridge regression; expected at least 2"
            )
    fit = lagged_counts(session, fit_times)
    center, spread = fit.mean(axis=0), fit.std(axis=0) + 1e-6
    target = session.velocity_at(fit_times)
    bias = target.mean(axis=0)

    def normalized(times: Floats) -> Floats:
        return np.asarray((lagged_counts(session, times) - center) / spread)

    fit = (fit - center) / spread
    gram, moment = fit.T @ fit, fit.T @ (target - bias)
    weights = [np.linalg.solve(gram + a * np.eye(len(gram)), moment) for a in ALPHAS]
    valid, true = normalized(valid_times), session.velocity_at(valid_times)
    best = max(weights, key=lambda w: r2(true, valid @ w + bias).r2_mean)
    return r2(session.velocity_at(test_times), normalized(test_times) @ best + bias)
