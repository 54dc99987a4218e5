"""Baseline decoders are causal, and as accurate as expected."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import r2_score

from decoder.errors import TrainingError
from decoder.score import pooled_r2
from streaming.sessions.session import Session
from training.baselines import gru
from training.baselines.kalman import Kalman
from training.baselines.ridge import (
    BIN_S,
    Ridge,
    counts_before,
    evaluation_times,
    r2,
)
from training.data.simulate import simulate


@pytest.fixture(scope="module")
def session() -> Session:
    return simulate(n_units=60, minutes=4.0, subject=2, seed=11)


def times_of(session: Session) -> np.ndarray:
    return evaluation_times(session, "test", margin_s=1.0)


def test_r2_equals_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(100, 2))
    decoded = true + 0.5 * rng.normal(size=(100, 2))
    score = r2(true, decoded)
    np.testing.assert_allclose(
        (score.r2_x, score.r2_y), r2_score(true, decoded, multioutput="raw_values")
    )
    assert score.correlation_x == pytest.approx(np.corrcoef(true[:, 0], decoded[:, 0])[0, 1])


def test_an_axis_without_movement_does_not_spoil_the_score() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(1000, 2)) * (1.0, 0.05)
    decoded = true + 0.2 * rng.normal(size=(1000, 2))
    assert r2(true, decoded).r2_mean < 0
    assert pooled_r2(true, decoded) > 0.9
    both = rng.normal(size=(1000, 2))
    decoded = both + 0.5 * rng.normal(size=(1000, 2))
    assert pooled_r2(both, decoded) == pytest.approx(r2(both, decoded).r2_mean, abs=0.01)


def test_counts_include_only_spikes_before_each_time(session: Session) -> None:
    times = times_of(session)[:5]
    counts = counts_before(session, times, 3)
    for row, time in enumerate(times):
        for lag in range(3):
            start = time - (3 - lag) * BIN_S
            inside = (session.spike_times >= start) & (session.spike_times < start + BIN_S)
            expected = np.bincount(session.spike_units[inside], minlength=session.n_units)
            np.testing.assert_array_equal(counts[row, :, lag], expected)


def without_spikes_after(session: Session, time_s: float) -> Session:
    kept = session.spike_times < time_s
    return replace(
        session, spike_times=session.spike_times[kept], spike_units=session.spike_units[kept]
    )


@pytest.mark.parametrize("kind", [Ridge, Kalman])
def test_an_estimate_does_not_depend_on_later_spikes(session: Session, kind: type) -> None:
    times = times_of(session)
    middle = len(times) // 2
    blind = without_spikes_after(session, float(times[middle]))
    whole, half = kind(session).decode(times), kind(blind).decode(times)
    np.testing.assert_allclose(whole[: middle + 1], half[: middle + 1], atol=1e-9)
    assert not np.allclose(whole[middle + 20 :], half[middle + 20 :])


def test_baselines_decode_a_simulated_session(session: Session) -> None:
    times = times_of(session)
    true = session.velocity_at(times)
    ridge = r2(true, Ridge(session).decode(times)).r2_mean
    kalman = r2(true, Kalman(session).decode(times)).r2_mean
    assert 0.5 < ridge < 0.9
    assert 0.35 < kalman < 0.9


def test_the_network_learns_and_is_causal(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gru, "N_EPOCHS", 2)
    monkeypatch.setattr(gru, "DROPOUTS", (0.3,))
    times = times_of(session)
    network = gru.Gru(session)
    decoded = network.decode(times)
    assert r2(session.velocity_at(times), decoded).r2_mean > 0.4
    middle = len(times) // 2
    network._session = without_spikes_after(session, float(times[middle]))
    np.testing.assert_allclose(
        network.decode(times)[: middle + 1], decoded[: middle + 1], atol=1e-5
    )


@pytest.mark.parametrize("kind", [Ridge, Kalman, gru.Gru])
def test_a_domain_without_a_window_is_refused(session: Session, kind: type) -> None:
    start = session.valid_domain[0, 0]
    short = replace(session, valid_domain=np.array([[start, start + 0.3]]))
    with pytest.raises(TrainingError, match="expected at least 2"):
        kind(short)


def test_silent_units_and_short_intervals_are_handled(session: Session) -> None:
    """A unit is silent in training, and gaps cut training into intervals of two or more bins."""
    start, end = session.train_domain[0]
    silent = (session.spike_units == 3) & (session.spike_times < session.test_domain[0, 0])
    odd = replace(
        session,
        spike_times=session.spike_times[~silent],
        spike_units=session.spike_units[~silent],
        train_domain=np.array([[start, start + 0.12], [start + 1.0, end]]),
    )
    times = times_of(odd)
    true = odd.velocity_at(times)
    assert r2(true, Kalman(odd).decode(times)).r2_mean > 0.3
    assert r2(true, Ridge(odd).decode(times)).r2_mean > 0.5
    last = session.test_domain[-1, 1]
    assert np.isfinite(Kalman(odd).decode(np.array([last]))).all()
