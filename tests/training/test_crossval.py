"""Evidence for a calibration: cross-validation on unseen seconds, and doubts about the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from clients.harness.daemon import BUNDLES
from decoder.errors import TrainingError
from decoder.gate import Evidence, decide
from streaming.sessions.intervals import duration_s, intersect
from streaming.sessions.session import Session
from tests.conftest import TinyDecoder
from training.baselines.linear import fit_linear
from training.calibration import adapt
from training.calibration.adapt import Adapted
from training.calibration.candidate import Plan, Ready, mean_of, prepare, train_candidate
from training.calibration.crossval import APART_S, N_FOLDS, Compared, folds
from training.calibration.doubts import doubts, lag
from training.data.simulate import simulate
from training.pretraining import runs

SECONDS = 40.0


@pytest.fixture(scope="module")
def today() -> Session:
    """40 s of labelled data from 60 units."""
    session = simulate(n_units=60, minutes=2.0, subject=4, seed=9)
    domain = np.array([[0.0, SECONDS]])
    return replace(session, domain=domain, train_domain=domain)


@pytest.fixture(scope="module")
def ready() -> Ready:
    """The shipped decoder, loaded in advance."""
    return prepare(BUNDLES / "possm.bundle")


def test_every_second_is_decoded_once_by_a_model_not_trained_on_it(today: Session) -> None:
    broken = replace(today, train_domain=np.array([[0.0, 13.0], [15.0, 22.0], [30.0, 40.0]]))
    for session in (today, broken):
        parts = folds(session)
        assert len(parts) == N_FOLDS
        tested = np.concatenate([part.test_domain for part in parts])
        assert duration_s(tested) == pytest.approx(duration_s(session.train_domain))
        assert (np.diff(tested.ravel()) >= 0).all()
        for part in parts:
            for start, end in part.test_domain:
                near = intersect(part.train_domain, start - APART_S / 2, end + APART_S / 2)
                assert duration_s(near) == 0.0 if len(near) else True
            assert duration_s(part.train_domain) > 0.6 * duration_s(session.train_domain)


def test_an_overfitted_model_scores_badly_on_held_out_seconds(
    ready: Ready, today: Session, tmp_path: Path
) -> None:
    """A decoder trained on shuffled labels is rejected."""
    rng = np.random.default_rng(0)
    blocks = np.array_split(np.arange(round(100 * SECONDS)), 40)
    order = np.concatenate([blocks[i] for i in rng.permutation(40)])
    vel = today.cursor_vel.copy()
    vel[: len(order)] = vel[order]
    plan = Plan(method="ridge", allowed_s=None)
    done = train_candidate(replace(today, cursor_vel=vel), None, tmp_path / "a.bundle", plan, ready)
    assert decide(done.evidence, Evidence.none()).answer == "reject"
    right = train_candidate(today, None, tmp_path / "b.bundle", plan, ready)
    assert decide(right.evidence, Evidence.none()).answer == "promote"


@pytest.mark.slow
def test_the_candidate_is_the_mean_of_the_cross_validated_models(
    ready: Ready, today: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapt, "WARM", replace(adapt.WARM, steps=3, batch_size=2))
    plan = Plan(method="full", allowed_s=None, steps=2)
    done = train_candidate(today, ready.bundle, tmp_path / "candidate.bundle", plan, ready)
    assert done.method == "full"
    assert done.evidence.compared_s > 0.8 * SECONDS
    assert done.evidence.active_r2() is not None
    model, record = runs.load_model(done.made.path)
    assert record.session_words[-1] == today.session_id
    assert len(record.unit_tuning) == len(record.unit_words)
    assert (done.made.usual is not None) == (record.family == "possm")
    base, made = runs.weights(ready.model), runs.weights(model)
    moved = [n for n, w in base.items() if not torch.equal(made[n][: len(w)], w)]
    assert moved
    assert not any(name.startswith("unit_emb") for name in moved), "a known unit changed"


def test_the_mean_of_a_model_with_itself_is_that_model(tiny: TinyDecoder) -> None:
    model, record = runs.load_model(tiny.bundle.path)
    before = {name: tensor.clone() for name, tensor in runs.weights(model).items()}
    same = mean_of([Adapted(model, record, "units"), Adapted(model, record, "full")])
    for name, tensor in runs.weights(same.model).items():
        torch.testing.assert_close(tensor, before[name])


def test_a_session_that_the_base_knows_can_be_learned_again(
    ready: Ready, today: Session, tmp_path: Path
) -> None:
    known = replace(today, session_id=ready.record.session_words[-1])
    plan = Plan(method="units", allowed_s=None, steps=2)
    done = train_candidate(known, None, tmp_path / "again.bundle", plan, ready)
    assert done.made.manifest.session_id == f"{known.session_id}-2"


def test_too_few_seconds_make_a_decoder_without_evidence(
    ready: Ready, today: Session, tmp_path: Path
) -> None:
    plan = Plan(method="units", allowed_s=None, steps=2)
    few = replace(today, train_domain=np.array([[0.0, 6.5]]))
    done = train_candidate(few, None, tmp_path / "few.bundle", plan, ready)
    assert decide(done.evidence, Evidence.none()).answer == "undecided"
    fewer = replace(today, train_domain=np.array([[0.0, 2.0]]))
    with pytest.raises(TrainingError, match="collect"):
        train_candidate(fewer, None, tmp_path / "fewer.bundle", plan, ready)


def compared(session: Session, shift_s: float) -> Compared:
    """A candidate in step with the labels, and an active decoder `shift_s` ahead."""
    times = np.arange(1.0, SECONDS - 1.0, 0.05)
    rng = np.random.default_rng(1)
    noise = 0.5 * session.cursor_vel.std() * rng.standard_normal((2, len(times), 2))
    true = session.velocity_at(times)
    return Compared(
        times=times, true=true, candidate=true + noise[0],
        active=session.velocity_at(times + shift_s) + noise[1],
    )  # fmt: skip


@pytest.mark.parametrize("shift_s", [-0.3, -0.16, 0.16, 0.3])
def test_a_clock_shift_raises_a_doubt(today: Session, shift_s: float) -> None:
    (doubt,) = doubts(today, compared(today, shift_s), None)
    assert "clocks" in doubt
    assert lag(today, compared(today, shift_s).times, compared(today, shift_s).active)[0] == (
        pytest.approx(shift_s, abs=0.03)
    )


@pytest.mark.parametrize("shift_s", [-0.1, 0.0, 0.1])
def test_a_small_difference_in_lag_raises_no_doubt(today: Session, shift_s: float) -> None:
    assert doubts(today, compared(today, shift_s), None) == []


def test_silent_units_raise_a_doubt(today: Session, tmp_path: Path) -> None:
    held_out = replace(
        today, train_domain=np.array([[0.0, 30.0]]), valid_domain=np.array([[30.0, 40.0]])
    )
    active = fit_linear(held_out, "ridge", tmp_path / "active.bundle")
    assert doubts(today, None, active) == []
    half = today.spike_units < today.n_units // 2
    for lost in (half, half & (today.spike_times < SECONDS / 2)):
        (doubt,) = doubts(without(today, lost), None, active)
        assert "silent" in doubt
    knew_no_better = fit_linear(without(held_out, half), "ridge", tmp_path / "knew.bundle")
    assert doubts(without(today, half), None, knew_no_better) == []


def without(session: Session, lost: NDArray[np.bool_]) -> Session:
    """The session without some of its spikes."""
    return replace(
        session, spike_times=session.spike_times[~lost], spike_units=session.spike_units[~lost]
    )
