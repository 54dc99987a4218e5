"""Intention labels: toward the target, zero while holding, and only in trials with a target."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from decoder.errors import TrainingError
from streaming.sessions.checks import check
from streaming.sessions.intervals import duration_s, within
from streaming.sessions.session import Session, Trials
from training.calibration.labels import HOLD_RADIUS_M, REACTION_S, relabelled
from training.data.simulate import simulate


@pytest.fixture(scope="module")
def session() -> Session:
    return simulate(n_units=8, minutes=2.0, subject=1, seed=5)


def toward_of(session: Session, times: np.ndarray) -> np.ndarray:
    """Unit vectors from the cursor to the target of the trial at each time."""
    index = np.searchsorted(session.trials.intervals[:, 0], times, side="right") - 1
    pos = [np.interp(times, session.cursor_times, xy) for xy in session.cursor_pos.T]
    away = session.trials.target_pos[index] - np.stack(pos, axis=1)
    return away / np.linalg.norm(away, axis=1, keepdims=True)


@pytest.mark.parametrize("labels", ["intention", "retrospective"])
def test_velocity_points_at_the_target_and_is_zero_inside_it(session: Session, labels: str) -> None:
    meant = check(relabelled(session, labels))
    kept = within(session.cursor_times, meant.domain)
    times, velocity = session.cursor_times[kept], meant.cursor_vel[kept]
    speed = np.linalg.norm(velocity, axis=1)
    moving = speed > 1e-6
    cosine = (velocity[moving] * toward_of(session, times[moving])).sum(axis=1) / speed[moving]
    assert cosine.min() > 0.999
    assert 0.1 < moving.mean() < 1.0
    index = np.searchsorted(session.trials.intervals[:, 0], times, side="right") - 1
    distance = np.linalg.norm(session.trials.target_pos[index] - session.cursor_pos[kept], axis=1)
    assert (speed[distance < HOLD_RADIUS_M] == 0).all()
    assert (times - session.trials.intervals[index, 0] >= REACTION_S - 0.02).all()


def test_movement_in_the_wrong_direction_is_labelled_toward_the_target(session: Session) -> None:
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])  # by 90 degrees
    astray = replace(session, cursor_vel=session.cursor_vel @ turn.T)
    meant = relabelled(astray, "intention")
    kept = within(session.cursor_times, meant.domain)
    velocity = meant.cursor_vel[kept]
    straight = relabelled(session, "intention").cursor_vel[kept]
    np.testing.assert_allclose(velocity, straight, atol=1e-9)


def test_retrospective_labels_leave_out_movement_away_from_the_target(session: Session) -> None:
    back = replace(session, cursor_vel=-session.cursor_vel)
    total = {
        name: np.diff(relabelled(one, "retrospective").domain, axis=1).sum()
        for name, one in {"there": session, "back": back}.items()
    }
    assert total["back"] < 0.7 * total["there"]


def test_the_held_out_set_stays_held_out(session: Session) -> None:
    meant = relabelled(session, "intention")
    for split in ("train", "valid", "test"):
        kept = within(session.cursor_times, meant.intervals(split))
        assert 0.5 < kept.sum() / within(session.cursor_times, session.intervals(split)).sum() < 1.0
        assert within(session.cursor_times[kept], session.intervals(split)).all()


def test_a_few_long_trials_are_labelled(session: Session) -> None:
    """As in a recalibration with a decoder that drift has made almost useless."""
    start = session.domain[0, 0]
    few = Trials(
        intervals=start + np.array([[0.0, 18.0], [18.5, 39.0]]),
        target_pos=np.array([[0.08, 0.0]] * 2),
    )
    domain = np.array([[start, start + 40.0]])
    whole = replace(session, trials=few, domain=domain, train_domain=domain)
    assert duration_s(relabelled(whole, "intention").train_domain) == pytest.approx(38.1, abs=0.1)


def test_kinematics_labels_change_nothing(session: Session) -> None:
    assert relabelled(session, "kinematics") is session


def test_decoded_movements_are_corrected_to_end_at_their_targets(session: Session) -> None:
    """No kinematics are used: the recorded ones are replaced by nonsense."""
    rng = np.random.default_rng(0)
    nonsense = replace(
        session, cursor_vel=np.zeros_like(session.cursor_vel), cursor_pos=0 * session.cursor_pos
    )

    def decode(given: Session) -> tuple[np.ndarray, np.ndarray]:
        low, high = given.train_domain[0, 0], given.train_domain[-1, 1]
        times = np.arange(low, high, 0.02)
        true = session.velocity_at(times)
        slow = np.cumsum(rng.normal(size=true.shape), axis=0) * 2e-3  # drifts, as errors do
        return times, 0.8 * true + slow - slow.mean(axis=0)

    meant = relabelled(nonsense, "targets", decode=decode)
    own = relabelled(nonsense, "decoded", decode=decode)
    kept = within(meant.cursor_times, meant.train_domain)
    assert 0.3 < kept.mean() <= 1.0
    true = session.velocity_at(meant.cursor_times[kept])
    error = {
        name: np.square(one.cursor_vel[kept] - true).mean()
        for name, one in {"corrected": meant, "own": own}.items()
    }
    assert error["corrected"] < 0.7 * error["own"]
    np.testing.assert_array_equal(own.test_domain, session.test_domain)


def test_targets_that_were_never_set_are_no_targets(session: Session) -> None:
    """Of whatever file the session came from; the trials around it keep their labels."""
    targets = session.trials.target_pos.copy()
    targets[3] = (-2.7e34, 1e-30)
    unset = replace(session, trials=replace(session.trials, target_pos=targets))
    start, end = session.trials.intervals[3]
    without = replace(session, trials=Trials(
        intervals=np.delete(session.trials.intervals, 3, axis=0),
        target_pos=np.delete(session.trials.target_pos, 3, axis=0),
    ))  # fmt: skip
    for labels in ("intention", "retrospective"):
        meant, expected = relabelled(unset, labels), relabelled(without, labels)
        np.testing.assert_array_equal(meant.domain, expected.domain)
        np.testing.assert_array_equal(meant.cursor_vel, expected.cursor_vel)
        assert not within(np.array([(start + end) / 2]), meant.domain).any()


def test_own_labels_need_a_decoder_that_works(session: Session) -> None:
    with pytest.raises(TrainingError, match="need a decoder that is in use"):
        relabelled(session, "decoded")

    def still(given: Session) -> tuple[np.ndarray, np.ndarray]:
        times = np.arange(given.train_domain[0, 0], given.train_domain[-1, 1], 0.02)
        return times, np.zeros((len(times), 2))

    with pytest.raises(TrainingError, match="no decoded movement ends near its target"):
        relabelled(session, "targets", decode=still)
    with pytest.raises(TrainingError, match="target_x, target_y"):
        relabelled(replace(session, trials=None), "targets", decode=still)


def test_without_targets_the_error_names_the_channels_to_send(session: Session) -> None:
    intervals = session.trials.intervals
    none = Trials(intervals=intervals, target_pos=np.full((len(intervals), 2), np.nan))
    for trials in (None, Trials(intervals=intervals), none):
        with pytest.raises(TrainingError, match="target_x, target_y"):
            relabelled(replace(session, trials=trials), "intention")
    with pytest.raises(TrainingError, match="expected one of kinematics"):
        relabelled(session, "wishes")  # type: ignore[arg-type]
