"""Simulated sessions: reproducible, with the stated rates, as hard to decode as a recording."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from streaming.sessions.checks import check
from streaming.sessions.session import Session
from training.baselines.ridge import ridge_score
from training.data.simulate import (
    REFRACTORY_S,
    STEERED_GAIN,
    STEERED_WITHIN_M,
    TASKS,
    WORKSPACE_M,
    simulate,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def session() -> Session:
    return simulate(n_units=96, minutes=2.0, subject=3, seed=7)


def rates_hz(session: Session) -> np.ndarray:
    counts = np.bincount(session.spike_units, minlength=session.n_units)
    return counts / (session.domain[0, 1] - session.domain[0, 0])


def test_the_same_seed_gives_the_same_session_to_the_last_spike(session: Session) -> None:
    again = simulate(n_units=96, minutes=2.0, subject=3, seed=7)
    np.testing.assert_array_equal(again.spike_times, session.spike_times)
    np.testing.assert_array_equal(again.spike_units, session.spike_units)
    np.testing.assert_array_equal(again.cursor_vel, session.cursor_vel)
    assert again.session_id == session.session_id


@pytest.mark.parametrize("other", [{"subject": 3, "seed": 8}, {"subject": 4, "seed": 7}])
def test_another_seed_or_subject_gives_another_session(
    session: Session, other: dict[str, int]
) -> None:
    different = simulate(n_units=96, minutes=2.0, **other)
    assert different.session_id != session.session_id
    assert not np.array_equal(different.spike_times, session.spike_times)
    assert not np.array_equal(different.cursor_pos, session.cursor_pos)


def test_a_simulated_session_is_valid(session: Session) -> None:
    assert check(session) is session
    assert session.spike_times[0] >= 0.0
    assert session.spike_times[-1] <= session.domain[-1, 1]


@pytest.mark.parametrize(("subject", "seed"), [(0, 0), (3, 7), (2, 2)])
def test_the_median_rate_is_about_8_hz(subject: int, seed: int) -> None:
    rates = rates_hz(simulate(n_units=96, minutes=2.0, subject=subject, seed=seed))
    assert 5.0 < np.median(rates) < 12.0
    assert rates.max() > 3 * np.median(rates)  # log-normal: a few units fire much more


def test_no_unit_fires_within_its_refractory_period(session: Session) -> None:
    for unit in range(session.n_units):
        intervals = np.diff(session.spike_times[session.spike_units == unit])
        assert intervals.min() > REFRACTORY_S


@pytest.mark.parametrize("task", TASKS)
def test_the_cursor_reaches_each_target_by_the_end_of_its_trial(task: str) -> None:
    moved = simulate(n_units=2, minutes=1.0, subject=1, seed=5, task=task)
    last = np.searchsorted(moved.cursor_times, moved.trials.intervals[:, 1] - 1e-9) - 1
    np.testing.assert_allclose(moved.cursor_pos[last], moved.trials.target_pos, atol=2e-3)
    assert np.abs(moved.trials.target_pos).max() <= max(WORKSPACE_M, 0.08)


def test_steering_has_more_slow_movement_than_reaching() -> None:
    """Corrections are slower than the middle of a reach."""
    slow_share = {}
    for task in ("center_out", "steering"):
        moved = simulate(n_units=2, minutes=4.0, subject=1, seed=5, task=task)
        speed = np.linalg.norm(moved.cursor_vel, axis=1)
        slow_share[task] = ((speed > 0.02) & (speed < 0.08)).mean()
    assert slow_share["steering"] > 2 * slow_share["center_out"]


@pytest.mark.parametrize("seed", [5, 6, 7])
def test_a_steered_cursor_does_not_jump_and_stays_in_bounds(seed: int) -> None:
    moved = simulate(n_units=2, minutes=4.0, subject=1, seed=seed, task="steering")
    assert np.abs(moved.cursor_pos).max() < STEERED_WITHIN_M
    assert np.abs(np.diff(moved.cursor_vel, axis=0)).max() < 0.1


def test_the_intended_velocity_exceeds_that_of_a_steered_cursor() -> None:
    """A steered cursor's gain is below 1; in a reach, both velocities are equal."""
    moved = simulate(n_units=2, minutes=4.0, subject=1, seed=5, task="steering")
    step_s = np.diff(moved.cursor_times).mean()
    own = np.linalg.norm(np.gradient(moved.cursor_pos, step_s, axis=0), axis=1)
    intended = np.linalg.norm(moved.cursor_vel, axis=1)
    moving = own > 0.05
    ratio = intended[moving] / own[moving]
    assert 0.9 < np.quantile(ratio, 0.02) < 1.1
    assert 1.5 < np.quantile(ratio, 0.98) < 1.1 / STEERED_GAIN[0]


def test_activity_leads_movement(session: Session) -> None:
    speed = np.linalg.norm(session.cursor_vel, axis=1)
    edges = np.append(session.cursor_times, session.domain[-1, 1])
    counts = np.histogram(session.spike_times, edges)[0]
    lags = np.arange(-30, 31)  # samples of 10 ms; positive: spikes first
    together = [np.corrcoef(np.roll(counts, lag), speed)[0, 1] for lag in lags]
    assert 0.04 <= 0.01 * lags[np.argmax(together)] <= 0.16


@pytest.mark.parametrize(
    ("subject", "seed"),
    [
        (0, 0),
        pytest.param(3, 7, marks=pytest.mark.slow),
        pytest.param(2, 2, marks=pytest.mark.slow),
    ],
)
def test_ridge_scores_as_on_a_real_recording(subject: int, seed: int) -> None:
    recorded = simulate(n_units=96, minutes=11.5, subject=subject, seed=seed)
    assert 0.65 < ridge_score(recorded, fit_seconds=480).r2_mean < 0.80


def test_simulation_needs_no_torch() -> None:
    code = (
        "import sys, training.data.simulate; assert 'torch' not in sys.modules, 'torch was loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
