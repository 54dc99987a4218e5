"""The tuning of units: how the rate of each unit follows the movement.

Features are the coefficients of a regression and the unit's rate. The regression predicts spike
counts in bins of 50 ms, in units of their Poisson standard deviation, from velocity, speed,
position and acceleration 100 ms later. In a session of several blocks a bin counts by its block's
weight, and only for units that the block had.

The embedding of a new unit starts as the mean of the pretrained units with the nearest tuning
(`nearest_mean`), so a few seconds of data go a long way. Needs numpy only, and no model.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from decoder.arrays import Floats
from streaming.sessions.intervals import within
from streaming.sessions.session import Session, weighted_std

BIN_S = 0.05
LEAD_S = 0.1  # spikes lead the movement by this much
PENALTY = 30.0  # ridge penalty, in bins; strong, for fits on a few seconds
MIN_RATE_HZ = 0.05
COEFFICIENT_SCALE, LOG_RATE_SCALE = 5.0, 0.7  # make distances comparable across features
N_NEAREST = 8
NEARNESS = 0.25  # squared distance at which a neighbour's weight falls to 1/e
N_FEATURES, N_ACTIVITY = 8, 2
FANO_FLOOR = 0.01  # spikes per bin; keeps the ratio of silent units near 1
MAX_DISTANCES = 2**22  # held at a time: 32 MB, and about as much again to find the nearest


def tuning(
    session: Session, domain: Floats | None = None, *, count: Floats | None = None
) -> Floats:
    """Tuning features (n_units, N_FEATURES) of all units, from a domain.

    domain: intervals (n, 2), s; default: the training domain.
    count: `binned_counts` of the domain, if they are known.
    """
    domain = session.train_domain if domain is None else domain
    features = np.zeros((session.n_units, N_FEATURES))
    count = binned_counts(session, domain) if count is None else count
    at, movement = list(_grids(domain)), []
    if not at:
        return features
    for times in at:
        ahead, behind = session.velocity_at(times + BIN_S), session.velocity_at(times - BIN_S)
        position = [np.interp(times, session.cursor_times, xy) for xy in session.cursor_pos.T]
        movement.append(np.column_stack([session.velocity_at(times), *position, ahead - behind]))
    moved = np.concatenate(movement)
    sampled = within(session.cursor_times, domain)
    samples = session.weighed(session.cursor_times[sampled])
    for (units, weight), (_, share) in zip(
        session.weighed(np.concatenate(at)), samples, strict=True
    ):
        if weight.any():
            deviation = np.maximum(weighted_std(session.cursor_vel[sampled], share), 1e-12)
            features[units] = _coefficients(count[:, units], _regressors(moved, deviation), weight)
    return features


def _regressors(moved: Floats, deviation: Floats) -> Floats:
    """Velocity in standard deviations (2,), speed, position and acceleration (n_bins, 7) of
    velocities, positions and accelerations (n_bins, 6)."""
    velocity = moved[:, :2] / deviation
    return np.column_stack([velocity, np.linalg.norm(velocity, axis=1), moved[:, 2:]])


def _coefficients(count: Floats, regressors: Floats, weight: Floats) -> Floats:
    """Tuning features (n_units, N_FEATURES) from counts (n_bins, n_units), regressors (n_bins, 7)
    and how much each bin counts (n_bins,)."""
    deviation = np.maximum(weighted_std(regressors, weight), 1e-12)
    regressors = (regressors - np.average(regressors, axis=0, weights=weight)) / deviation
    mean_count = np.average(count, axis=0, weights=weight)
    mean = np.maximum(mean_count, MIN_RATE_HZ * BIN_S)
    response = (count - mean_count) / np.sqrt(mean)
    weighted = regressors.T * weight
    gram = weighted @ regressors + PENALTY * np.eye(regressors.shape[1])
    coefficients = np.linalg.solve(gram, weighted @ response).T
    log_rate = np.log(mean / BIN_S)[:, None]
    return np.hstack([COEFFICIENT_SCALE * coefficients, LOG_RATE_SCALE * log_rate])


def activity(session: Session, domain: Floats, count: Floats) -> Floats:
    """Features (n_units, N_ACTIVITY) of the spikes alone: rate, and variance of counts over mean.

    count: `binned_counts` of the domain. The rate is the same feature as in `tuning`.
    """
    features = np.zeros((session.n_units, N_ACTIVITY))
    grids = list(_grids(domain))
    if not grids:
        return features
    for units, weight in session.weighed(np.concatenate(grids)):
        if weight.any():
            of_units = count[:, units]
            mean = np.average(of_units, axis=0, weights=weight)
            mean, variance = (
                np.maximum(mean, MIN_RATE_HZ * BIN_S),
                weighted_std(of_units, weight) ** 2,
            )
            ratio = np.log((variance + FANO_FLOOR) / (mean + FANO_FLOOR))
            features[units] = np.column_stack([LOG_RATE_SCALE * np.log(mean / BIN_S), ratio])
    return features


def binned_counts(session: Session, domain: Floats) -> Floats:
    """Spike counts (n_bins, n_units) in the bins of a domain, intervals (n, 2) in s."""
    counts = [_counts(session, times - LEAD_S) for times in _grids(domain)]
    return np.concatenate(counts) if counts else np.empty((0, session.n_units))


def _grids(domain: Floats) -> Iterator[Floats]:
    """The centres of movement bins of each interval that holds two or more."""
    for start_s, end_s in domain:
        times = np.arange(start_s + LEAD_S, end_s - BIN_S, BIN_S)
        if len(times) >= 2:
            yield times


def _counts(session: Session, centres: Floats) -> Floats:
    """Spike counts (n_bins, n_units) in bins around `centres`, which are `BIN_S` apart."""
    first = centres[0] - BIN_S / 2
    inside = session.spikes_between(first, first + len(centres) * BIN_S)
    bins = ((session.spike_times[inside] - first) / BIN_S).astype(np.int64)
    cell = bins.clip(0, len(centres) - 1) * session.n_units + session.spike_units[inside]
    counts = np.bincount(cell, minlength=len(centres) * session.n_units)
    return counts.reshape(len(centres), session.n_units).astype(np.float64)


def nearest_mean(features: Floats, known: Floats, values: Floats) -> Floats:
    """Weighted mean of the `values` (m, dim) of the nearest `known` (m, F), per row of `features`.

    Nearer units weigh more. Distances are computed for a part of `features` (n, F) at a time.
    """
    n_parts = max(1, -(-len(features) * len(known) // MAX_DISTANCES))
    parts = [_nearest_mean(part, known, values) for part in np.array_split(features, n_parts)]
    return np.concatenate(parts)


def _nearest_mean(features: Floats, known: Floats, values: Floats) -> Floats:
    squared = (features**2).sum(axis=1)[:, None] + (known**2).sum(axis=1) - 2.0 * features @ known.T
    n_nearest = min(N_NEAREST, len(known))
    nearest = np.argpartition(squared, n_nearest - 1, axis=1)[:, :n_nearest]
    distance = np.take_along_axis(squared, nearest, axis=1)
    weight = np.exp((distance.min(axis=1, keepdims=True) - distance) / NEARNESS)
    weight /= weight.sum(axis=1, keepdims=True)
    return np.asarray((values[nearest] * weight[..., None]).sum(axis=1))
