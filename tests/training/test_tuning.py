"""Tuning features tell units apart and find similar ones."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np

from streaming.sessions.intervals import intersect, time_after
from streaming.sessions.session import Session
from training.data.simulate import simulate
from training.data.tuning import N_FEATURES, nearest_mean, tuning


def half(session: Session, first: bool) -> Session:
    domain = session.train_domain
    cut = time_after(domain, (domain[:, 1] - domain[:, 0]).sum() / 2)
    edges = (domain[0, 0], cut) if first else (cut, domain[-1, 1])
    return replace(session, train_domain=intersect(domain, *edges))


def test_tuning_from_one_half_identifies_units_in_the_other() -> None:
    session = simulate(n_units=40, minutes=6.0, subject=2, seed=3)
    first, second = tuning(half(session, True)), tuning(half(session, False))
    assert first.shape == (40, N_FEATURES)
    distance = ((first[:, None] - second[None]) ** 2).sum(axis=-1)
    same = distance.argmin(axis=1) == np.arange(40)
    assert same.mean() > 0.5, "chance is 1 in 40"


def test_silent_units_and_short_domains_have_finite_tuning() -> None:
    session = simulate(n_units=6, minutes=1.0, subject=2, seed=3)
    keep = session.spike_units != 2
    silent = replace(
        session, spike_times=session.spike_times[keep], spike_units=session.spike_units[keep]
    )
    assert np.isfinite(tuning(silent)).all()
    assert (tuning(silent)[2, :-1] == 0).all()
    start = session.train_domain[0, 0]
    short = replace(session, train_domain=np.array([[start, start + 0.1]]))
    assert (tuning(short) == 0).all()


def test_nearer_units_weigh_more() -> None:
    known = np.array([[0.0, 0.0], [1.0, 0.0], [10.0, 0.0]])
    values = np.eye(3)
    (mean,) = nearest_mean(np.array([[0.0, 0.0]]), known, values)
    assert mean.sum() == 1.0
    assert mean[0] > 0.95
    assert mean[1] > mean[2]
    (far,) = nearest_mean(np.array([[1e3, 0.0]]), known, values)
    assert far[2] > 0.99, "a unit far from all others takes the nearest, with finite weights"


def test_many_units_are_compared_without_holding_all_distances() -> None:
    """All distances of 30,000 to 3,000 units take 0.7 GB; of 30,000 to 30,000 units, 7 GB."""
    rng = np.random.default_rng(0)
    features, known = rng.normal(size=(30_000, N_FEATURES)), rng.normal(size=(3_000, N_FEATURES))
    values = rng.normal(size=(3_000, 4))
    tracemalloc.start()
    try:
        means = nearest_mean(features, known, values)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 250e6
    some = [0, 1, 14_999, 29_999]
    np.testing.assert_allclose(means[some], nearest_mean(features[some], known, values))
