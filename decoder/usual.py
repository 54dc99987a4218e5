"""How far the states of a streaming decoder are from those of the days that it knows.

When neurons change overnight, the decoder's states are distributed differently, which shows before
any label does. The distance is the Kullback-Leibler divergence of today's distribution from that
of the nearest known day, both taken as normal, in the first principal axes of all known states. It
follows the loss of accuracy (MINDFUL: Pun et al., Communications Biology 2024; measured in
docs/RECALIBRATION.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from decoder.arrays import Float32s, Floats

N_AXES = 10
REMEMBERED_S = 120.0  # a state this old weighs 1/e of a new one
KNOWN_AFTER_S = 60.0  # of states, before there is a distance
RIDGE = 1e-4  # variances; added to a covariance so that it can be inverted


@dataclass(frozen=True, kw_only=True)
class Usual:
    """The distributions of a decoder's states on the days that it knows.

    mean: (hidden,) float32, of all states.
    axes: (n_axes, hidden) float32, principal axes over standard deviations: along them, the states
        have unit variance.
    day_means, day_covariances: (n_days, n_axes) and (n_days, n_axes, n_axes) float32, along the
        axes.
    limit: () float32, nats; beyond it, the population counts as changed.
    """

    mean: Float32s
    axes: Float32s
    day_means: Float32s
    day_covariances: Float32s
    limit: Float32s


class Drift:
    """The distance of the last minutes' states from the usual ones.

    Costs about ten microseconds a state. every_s: time between two states.
    """

    def __init__(self, usual: Usual, *, every_s: float) -> None:
        self.limit = float(usual.limit)
        self._usual, self._every_s = usual, every_s
        n_axes = len(usual.axes)
        self._ridge = RIDGE * np.eye(n_axes)
        days = usual.day_covariances.astype(np.float64) + self._ridge
        self._precisions, self._log_dets = np.linalg.inv(days), np.linalg.slogdet(days)[1]
        self.forget()

    def forget(self) -> None:
        """Forget every state, as after the loss of a stream."""
        n_axes = len(self._usual.axes)
        self._n, self._mean, self._square = 0, np.zeros(n_axes), np.zeros((n_axes, n_axes))

    def see(self, state: Float32s) -> None:
        """Add the next state (hidden,)."""
        self._n += 1
        share = max(1.0 / self._n, self._every_s / REMEMBERED_S)
        along = self._usual.axes @ (state - self._usual.mean)
        self._mean += share * (along - self._mean)
        self._square += share * (np.outer(along, along) - self._square)

    @property
    def distance(self) -> float | None:
        """Distance in nats; None before `KNOWN_AFTER_S` of states."""
        return None if self._n * self._every_s < KNOWN_AFTER_S else self.of_few

    @property
    def of_few(self) -> float | None:
        """Distance in nats of however few states; the fewer they are, the more is chance."""
        return None if self._n == 0 else float(self._from_days().min())

    def _from_days(self) -> Floats:
        """Distances (n_days,) from each known day."""
        covariance = self._square - np.outer(self._mean, self._mean) + self._ridge
        apart = self._usual.day_means - self._mean
        spread = np.einsum("dij,ji->d", self._precisions, covariance)
        shift = np.einsum("di,dij,dj->d", apart, self._precisions, apart)
        log_det = np.linalg.slogdet(covariance)[1]
        return np.asarray(0.5 * (spread + shift - len(covariance) + self._log_dets - log_det))
