"""Several blocks are learned from as one session; newer ones count more."""

from __future__ import annotations

import io
import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from clients.reports.runs import run_adaptation
from decoder.bundles.bundle import open_bundle
from decoder.errors import TrainingError
from streaming.sessions import format as sessions
from streaming.sessions.checks import check
from streaming.sessions.intervals import duration_s, intersect
from streaming.sessions.session import Session, Trials
from tests.conftest import TinyDecoder
from training.baselines.linear import Kind, fit_linear
from training.baselines.ridge import r2
from training.calibration.adapt import AdaptSettings
from training.calibration.blocks import (
    GAP_S,
    HALF_LIFE_S,
    hold_out_last_fifth,
    joined,
    recent,
)
from training.calibration.crossval import folds
from training.calibration.doubts import doubts
from training.data.profile import profiles
from training.data.simulate import simulate
from training.data.tuning import tuning
from training.data.windows import OutputScale, WindowSource, unit_words
from training.evaluation.offline import decode_split
from training.models.config import ModelConfig

TODAY = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
KINDS: tuple[Kind, ...] = ("ridge", "kalman")
END_S = 39.97  # not on the grid of bins, where rounding decides whether the last bin fits
SECONDS, LATER = 40.0, np.array([[45.0, 118.0]])


@pytest.fixture(scope="module")
def whole() -> Session:
    """40 s to train on, in one piece; the rest is for tests."""
    session = simulate(n_units=24, minutes=2.0, subject=4, seed=9)
    domain = np.array([[0.0, SECONDS]])
    return replace(
        session, domain=domain, train_domain=domain, valid_domain=domain, test_domain=LATER,
        recorded_at=TODAY,
    )  # fmt: skip


def block(session: Session, start_s: float, end_s: float, *, age_s: float = 0.0) -> Session:
    """A part of a session as a recording of its own, made earlier."""
    inside = session.spikes_between(start_s, end_s)
    moved = (session.cursor_times >= start_s) & (session.cursor_times < end_s)
    domain = intersect(session.domain, start_s, end_s)
    return replace(
        session, session_id=f"{start_s:g} s", domain=domain, train_domain=domain,
        valid_domain=domain, test_domain=domain, recorded_at=TODAY - timedelta(seconds=age_s),
        spike_times=session.spike_times[inside], spike_units=session.spike_units[inside],
        cursor_times=session.cursor_times[moved], cursor_pos=session.cursor_pos[moved],
        cursor_vel=session.cursor_vel[moved],
    )  # fmt: skip


def without_units(session: Session, lost: set[int]) -> Session:
    """The session of a stream that didn't have some units."""
    kept = [index for index in range(session.n_units) if index not in lost]
    place = {unit: index for index, unit in enumerate(kept)}
    spikes = np.isin(session.spike_units, kept)
    return replace(
        session, unit_ids=tuple(session.unit_ids[unit] for unit in kept),
        spike_times=session.spike_times[spikes],
        spike_units=np.array([place[int(unit)] for unit in session.spike_units[spikes]]),
    )  # fmt: skip


def score(session: Session, kind: Kind, whole: Session, folder: Path) -> float:
    """R² on the later part of the recording, of a decoder fitted to a session."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        made = fit_linear(hold_out_last_fifth(session), kind, Path(place) / "made.bundle")
        decoded = decode_split(made, whole, "test", tick_s=0.04)
    return r2(whole.velocity_at(decoded.times), decoded.velocity).r2_mean


def halves(whole: Session, *, age_s: float = 600.0) -> Session:
    return joined([block(whole, 20.0, END_S), block(whole, 0.0, 20.0, age_s=age_s)])


def test_a_single_block_stays_as_it_is(whole: Session) -> None:
    assert joined([whole]) is whole


def test_blocks_are_laid_one_after_the_other_and_keep_what_they_hold(whole: Session) -> None:
    trials = Trials(intervals=np.array([[1.0, 2.0], [3.0, 4.0]]), target_pos=np.zeros((2, 2)))
    late = replace(block(whole, 20.0, END_S), trials=None)
    early = replace(block(whole, 0.0, 20.0, age_s=600.0), trials=trials)
    both = check(joined([late, early]))
    assert (both.session_id, both.recorded_at) == ("20 s", TODAY)
    assert len(both.spike_times) == len(late.spike_times) + len(early.spike_times)
    assert duration_s(both.domain) == pytest.approx(SECONDS, abs=0.05)
    assert both.domain[1, 0] - both.domain[0, 1] >= GAP_S - 0.1
    np.testing.assert_array_equal(both.trials.intervals, trials.intervals)
    by_s = both.domain[1, 0] - 20.0
    times = np.array([25.0, 30.0, 35.0])
    np.testing.assert_allclose(both.velocity_at(times + by_s), whole.velocity_at(times), atol=1e-9)


def test_two_halves_give_what_the_whole_gives(whole: Session, tmp_path: Path) -> None:
    both = halves(whole)
    for kind in KINDS:
        once, twice = (score(session, kind, whole, tmp_path) for session in (whole, both))
        assert twice == pytest.approx(once, abs=0.02), kind
        assert once > 0.1
    one, other = tuning(whole), tuning(both)
    assert both.unit_ids == whole.unit_ids
    assert np.abs(one - other).max() < 0.1
    known = profiles(whole, whole.train_domain, labelled=True)
    assert np.abs(known - profiles(both, both.train_domain, labelled=True)).max() < 0.1


def source_of(session: Session) -> WindowSource:
    words = ["NA", *unit_words(session)]
    return WindowSource(
        [session], {word: row for row, word in enumerate(words)}, {session.session_id: 1},
        layout=ModelConfig(sequence_length=1.0),
        scales={session.session_id: OutputScale.of(session)},
    )  # fmt: skip


@pytest.mark.parametrize(("half_lives", "share"), [(0.0, 0.5), (1.0, 1 / 3), (3.0, 1 / 9)])
def test_windows_are_drawn_from_a_block_by_its_age(
    whole: Session, half_lives: float, share: float
) -> None:
    both = halves(whole, age_s=half_lives * HALF_LIFE_S)
    rng = np.random.default_rng(0)
    plans = source_of(both).plan(rng, 2000)
    ends = np.array([plan.end_s for plan in plans])
    assert (ends < both.domain[0, 1]).mean() == pytest.approx(share, abs=0.04)
    for plan in plans:
        assert duration_s(intersect(both.domain, plan.end_s - 1.0, plan.end_s)) == (
            pytest.approx(1.0)
        ), "a window crosses the border of a block"


def test_a_block_of_long_ago_hardly_counts(whole: Session, tmp_path: Path) -> None:
    today = block(whole, 20.0, END_S)
    old = block(whole, 0.0, 20.0, age_s=12 * HALF_LIFE_S)
    wrong = replace(old, cursor_vel=-3.0 * old.cursor_vel)
    both = joined([today, wrong])
    assert np.abs(tuning(both) - tuning(today)).max() < 0.02
    assert np.abs(OutputScale.of(both).std / OutputScale.of(today).std - 1.0).max() < 0.01
    for kind in KINDS:
        alone, fitted = (score(session, kind, whole, tmp_path) for session in (today, both))
        assert fitted == pytest.approx(alone, abs=0.02), kind
    young = joined([today, replace(wrong, recorded_at=TODAY)])
    assert score(young, "ridge", whole, tmp_path) < 0.0


def test_blocks_without_a_date_count_the_same(whole: Session) -> None:
    undated = [replace(block(whole, 0.0, 20.0), recorded_at=None), block(whole, 20.0, END_S)]
    both = joined(undated)
    assert [one.weight for one in both.blocks] == [1.0, 1.0]
    assert both.session_id == "20 s"


def test_only_recent_blocks_judge_a_decoder_but_all_train_it(whole: Session) -> None:
    both = halves(whole, age_s=2 * HALF_LIFE_S)
    np.testing.assert_array_equal(recent(both), both.domain[1:])
    for part in folds(both):
        assert duration_s(part.test_domain) == pytest.approx(5.0, abs=0.01)
        assert duration_s(intersect(part.train_domain, *both.domain[0])) == pytest.approx(20.0)
    held_out = hold_out_last_fifth(both)
    assert duration_s(held_out.valid_domain) == pytest.approx(4.0, abs=0.01)
    assert held_out.valid_domain[-1, 1] == both.domain[1, 1]
    tested = np.concatenate([part.test_domain for part in folds(halves(whole))])
    assert duration_s(tested) == pytest.approx(SECONDS, abs=0.05), "blocks of one day all judge"


def test_a_unit_that_a_block_did_not_have_is_not_taken_for_silent(
    whole: Session, tmp_path: Path
) -> None:
    lost = set(range(8, 24))
    early = without_units(block(whole, 0.0, 20.0, age_s=600.0), lost)
    late = block(whole, 20.0, END_S)
    both = joined([early, late])
    assert both.unit_ids == whole.unit_ids
    features = tuning(both)
    np.testing.assert_allclose(features[8:], tuning(late)[8:], atol=1e-6)
    known = profiles(both, both.train_domain, labelled=True)
    alone = profiles(late, late.train_domain, labelled=True)
    np.testing.assert_allclose(known[8:], alone[8:], atol=1e-6)
    for plan in source_of(both).plan(np.random.default_rng(0), 200, keep_units=(1.0, 1.0)):
        expected = 8 if plan.end_s < both.domain[0, 1] else 24
        assert len(plan.kept) == expected

    held_out = hold_out_last_fifth(replace(whole, domain=whole.train_domain))
    active = fit_linear(held_out, "ridge", tmp_path / "active.bundle")
    assert doubts(both, None, active) == []
    silent = replace(
        early, unit_ids=whole.unit_ids,
        spike_units=np.array([*range(8)])[early.spike_units],
    )  # fmt: skip
    (doubt,) = doubts(joined([silent, late]), None, active)
    assert "16 of the 24 units" in doubt
    for kind in KINDS:
        alone, fitted = (score(session, kind, whole, tmp_path) for session in (late, both))
        assert fitted > alone - 0.02, kind


def test_blocks_of_two_subjects_are_refused(whole: Session) -> None:
    other = replace(block(whole, 0.0, 20.0), subject_id="someone else")
    with pytest.raises(TrainingError, match="of subject 'someone else', but 20 s of"):
        joined([block(whole, 20.0, END_S), other])


def test_a_bundle_is_adapted_to_several_sessions(
    tiny: TinyDecoder, whole: Session, tmp_path: Path
) -> None:
    early = without_units(block(whole, 0.0, 20.0, age_s=600.0), {0, 1})
    paths = [
        sessions.save(early, tmp_path),
        sessions.save(without_units(block(whole, 20.0, END_S), {23}), tmp_path),
    ]
    summary = run_adaptation(
        Console(file=io.StringIO()), tiny.bundle.path, paths, tmp_path / "both.bundle",
        AdaptSettings(method="units", steps=1),
    )  # fmt: skip
    assert summary["session"] == "20 s"
    assert set(open_bundle(tmp_path / "both.bundle").manifest.unit_ids) == set(whole.unit_ids)
