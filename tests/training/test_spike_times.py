"""The study of exact spike times: folds, rounding, scores."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streaming.sessions.intervals import duration_s
from streaming.sessions.session import Session
from training.baselines.ridge import r2
from training.data.simulate import simulate
from training.pretraining.settings import PretrainSettings
from training.studies.spike_times import (
    N_FOLDS,
    VARIANTS,
    Times,
    decoded_fold,
    fold_of,
    pooled,
    rows_of,
    table,
)


@pytest.fixture(scope="module")
def session() -> Session:
    return simulate(n_units=12, minutes=3.4, subject=0, seed=0)


def test_each_second_is_tested_once(session: Session) -> None:
    folds = [fold_of(session, number) for number in range(N_FOLDS)]
    tests = np.concatenate([fold.test_domain for fold in folds])
    order = tests[np.argsort(tests[:, 0])]
    assert order[0, 0] == session.domain[0, 0]
    assert order[-1, 1] == session.domain[-1, 1]
    np.testing.assert_allclose(order[1:, 0], order[:-1, 1])
    for fold in folds:
        parts = [fold.train_domain, fold.valid_domain, fold.test_domain]
        assert sum(map(duration_s, parts)) == pytest.approx(duration_s(session.domain))


def test_times_are_rounded_up_and_stay_in_order(session: Session) -> None:
    rounded = Times(name="", bin_s=0.05).of(session).spike_times
    late = rounded - session.spike_times
    assert (np.diff(rounded) >= 0).all()
    assert late.min() > -1e-5
    assert late.max() < 0.05
    assert late.mean() == pytest.approx(0.025, abs=0.001)
    np.testing.assert_allclose(rounded / 0.05, np.round(rounded / 0.05), atol=1e-4)
    on_the_edge = replace(session, spike_times=np.full_like(session.spike_times, 0.05))
    assert Times(name="", bin_s=0.05).of(on_the_edge).spike_times[0] == pytest.approx(0.1, abs=1e-5)


def test_folds_are_pooled(tmp_path: Path, session: Session) -> None:
    settings = PretrainSettings(preset="stream", minutes=None, steps=3, threads=1)
    rows, true, decoded = [], [], []
    for number in (0, 1):
        parts = list(decoded_fold([session], VARIANTS[1], number, tmp_path / str(number), settings))
        rows += list(rows_of("10 ms bins", number, iter(parts)))
        true.append(parts[0][1])
        decoded.append(parts[0][2])
    assert len(rows) == 2
    whole = r2(np.concatenate(true), np.concatenate(decoded)).r2_mean
    assert pooled(rows) == pytest.approx(whole)
    assert table(rows) == {"10 ms bins": [pytest.approx(whole)]}
