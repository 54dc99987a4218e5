"""Calibrations leave out copies of units, say so, and keep all other units."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from decoder.errors import TrainingError
from streaming.sessions.session import Session
from tests.conftest import TinyDecoder
from tests.streaming.damage import copied, humming, shaken, times_of
from tests.streaming.test_faults import busiest
from training.calibration.blocks import joined
from training.calibration.candidate import Plan, Ready, train_candidate
from training.calibration.excluded import without_copies, without_excluded
from training.data.simulate import simulate
from training.pretraining import runs


@pytest.fixture(scope="module")
def today() -> Session:
    """40 s of labelled data from 32 units."""
    session = simulate(n_units=32, minutes=1.0, subject=3, seed=3)
    return replace(session, train_domain=np.array([[0.0, 40.0]]))


def test_copies_are_left_out_with_a_note(today: Session) -> None:
    original, copy = busiest(today), busiest(today, 3)
    damaged = copied(today, copy, original, jitter_s=1e-4)
    kept, (note,) = without_copies(damaged)
    assert note.startswith("copies of other units were left out: ")
    assert set(today.unit_ids) - set(kept.unit_ids) < {
        today.unit_ids[copy], today.unit_ids[original],
    }  # fmt: skip
    unit = kept.unit_ids.index(today.unit_ids[busiest(today, 1)])
    assert np.array_equal(times_of(kept, unit), times_of(damaged, busiest(today, 1)))


def test_ordinary_and_noisy_units_are_kept(today: Session) -> None:
    for session in (today, humming(today, 3), shaken(today, per_min=60.0, only=3)):
        assert without_copies(session) == (session, [])


def test_only_the_training_domain_counts(today: Session) -> None:
    original, copy = busiest(today), busiest(today, 3)
    damaged = copied(today, copy, original)
    late = damaged.spike_times > 40.0
    mixed = replace(
        today,
        spike_times=np.concatenate(
            [today.spike_times[today.spike_times <= 40.0], damaged.spike_times[late]]
        ),
        spike_units=np.concatenate(
            [today.spike_units[today.spike_times <= 40.0], damaged.spike_units[late]]
        ),
    )
    assert without_copies(mixed).notes == []


def test_if_most_units_are_copies_none_is_left_out(today: Session) -> None:
    damaged = today
    for unit in range(18):
        damaged = copied(damaged, unit, 20 + unit // 3, jitter_s=1e-4)
    kept, (note,) = without_copies(damaged)
    assert kept.unit_ids == today.unit_ids
    assert "too many to leave out" in note


def test_a_candidate_knows_only_the_units_that_were_kept(
    tiny: TinyDecoder, today: Session, tmp_path: Path
) -> None:
    original, copy = busiest(today), busiest(today, 3)
    damaged = copied(today, copy, original)
    ready = Ready(bundle=tiny.bundle, model=tiny.model, record=runs.load_model(tiny.bundle.path)[1])
    plan = Plan(method="ridge", allowed_s=None)
    done = train_candidate(damaged, None, tmp_path / "candidate.bundle", plan, ready)
    assert len(done.made.manifest.unit_ids) == today.n_units - 1
    assert done.notes
    assert done.evidence.compared_s > 10.0


def test_blocks_are_left_without_copies_too(today: Session) -> None:
    damaged = copied(today, busiest(today, 3), busiest(today), jitter_s=1e-4)
    kept, (note,) = without_copies(joined([damaged, replace(damaged, session_id="next")]))
    assert note.startswith("copies")
    assert [len(block.has_unit) for block in kept.blocks] == [kept.n_units] * 2
    assert kept.units_at(kept.train_domain[0, 0]).tolist() == list(range(kept.n_units))


def test_units_that_the_operator_excludes_are_left_out_with_a_note(today: Session) -> None:
    first, second = today.unit_ids[:2]
    kept, (note,) = without_excluded(today, [first, second, "not recorded"])
    assert note == f"units that the operator has excluded were left out: {first}, {second}"
    assert kept.unit_ids == today.unit_ids[2:]
    assert np.array_equal(times_of(kept, 0), times_of(today, 2))
    assert without_excluded(today, ["not recorded"]) == (today, [])
    with pytest.raises(TrainingError, match="all 32 units"):
        without_excluded(today, today.unit_ids)
