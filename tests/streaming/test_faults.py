"""Silent, noisy and doubled units, and artifacts: found in damaged sessions, and in no other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streaming.evidence import Evidence, gather
from streaming.faults import Faults, faults_of, judged
from streaming.sessions.plausible import faults_in
from streaming.sessions.plausible import judged as plausible
from streaming.sessions.session import Session
from tests.streaming.damage import copied, humming, ringing, shaken, silenced, times_of
from training.data.simulate import simulate
from training.importers import import_recording

NOTHING = Faults(silent=[], noisy=[], doubled=[], artifact=[], artifacts_per_min=0.0)


@pytest.fixture(scope="module")
def session() -> Session:
    return simulate(n_units=32, minutes=2.0, subject=1, seed=1)


def busiest(session: Session, place: int = 0) -> int:
    """The unit with the most spikes, the second most, …"""
    n = np.bincount(session.spike_units, minlength=session.n_units)
    return int(np.argsort(-n, kind="stable")[place])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n_units", [12, 96])
def test_an_undamaged_session_has_no_faults(n_units: int, seed: int) -> None:
    assert faults_in(simulate(n_units=n_units, minutes=1.0, subject=seed, seed=seed)) == NOTHING


@pytest.mark.parametrize("jitter_s", [0.0, 0.0001])
def test_a_copy_is_named_with_its_original(session: Session, jitter_s: float) -> None:
    original, copy = busiest(session), busiest(session, 5)
    damaged = copied(session, copy, original, jitter_s=jitter_s)
    [(one, other)] = faults_in(damaged).doubled
    assert {one, other} == {session.unit_ids[original], session.unit_ids[copy]}
    assert replace(faults_in(damaged), doubled=[]) == NOTHING


def test_of_two_units_with_one_neuron_the_one_with_fewer_spikes_is_the_copy(
    session: Session,
) -> None:
    original, copy = busiest(session), busiest(session, 5)
    damaged = copied(session, copy, original)
    some = (damaged.spike_units != copy) | (np.arange(len(damaged.spike_times)) % 3 > 0)
    damaged = replace(
        damaged, spike_times=damaged.spike_times[some], spike_units=damaged.spike_units[some]
    )
    assert faults_in(damaged).doubled == [(session.unit_ids[copy], session.unit_ids[original])]


@pytest.mark.parametrize("mains_hz", [50.03, 59.98])
def test_a_unit_that_is_locked_to_the_mains_is_noisy(session: Session, mains_hz: float) -> None:
    assert faults_in(humming(session, 3, mains_hz)) == replace(NOTHING, noisy=[session.unit_ids[3]])


def test_a_unit_whose_spikes_are_detected_twice_is_noisy(session: Session) -> None:
    unit = busiest(session, 3)
    assert faults_in(ringing(session, unit)) == replace(NOTHING, noisy=[session.unit_ids[unit]])


def test_silence_is_told_from_a_low_rate(session: Session) -> None:
    unit = busiest(session)
    for after_s in (-np.inf, 60.0):
        found = faults_in(silenced(session, unit, after_s))
        assert found == replace(NOTHING, silent=[session.unit_ids[unit]])


def test_artifacts_are_counted_and_name_the_unit_that_fires_in_nothing_else(
    session: Session,
) -> None:
    found = faults_in(shaken(session, per_min=60.0))
    assert 50 < found.artifacts_per_min < 70
    assert replace(found, artifacts_per_min=0.0) == NOTHING
    found = faults_in(shaken(session, per_min=60.0, only=7))
    assert replace(found, artifacts_per_min=0.0) == replace(NOTHING, artifact=[session.unit_ids[7]])


@pytest.mark.parametrize("bin_s", [0.01, 0.02, 0.05])
def test_stamps_of_bins_or_chunks_say_nothing_about_intervals(
    session: Session, bin_s: float
) -> None:
    coarse = np.floor(session.spike_times / bin_s) * bin_s
    assert faults_of(coarse, session.spike_units, session.unit_ids) == NOTHING


def test_evidence_of_two_parts_adds_up(session: Session) -> None:
    times, units, n = session.spike_times, session.spike_units, session.n_units
    middle = int(np.searchsorted(times, 60.0))
    whole = gather(times, units, n, seconds=120.0)
    first = gather(times[:middle], units[:middle], n, seconds=60.0)
    then = first.then(gather(times[middle:], units[middle:], n, seconds=60.0), keep=1.0)
    np.testing.assert_allclose(then.spikes, whole.spikes)
    np.testing.assert_allclose(then.soon, whole.soon, atol=2)
    assert then.coincidences.sum() == pytest.approx(whole.coincidences.sum(), abs=3)


def test_a_recording_without_spikes_is_silent() -> None:
    nothing = np.empty(0)
    assert faults_of(nothing, nothing.astype(int), ("a", "b")).silent == ["a", "b"]
    nobody = judged(Evidence.none(0), np.zeros(0, bool), np.ones(0))
    assert not nobody.any().any()


@pytest.mark.parametrize("n_spikes", [1, 2, 5, 40, 100_000])
def test_few_spikes_and_spikes_at_one_instant_are_judged(n_spikes: int) -> None:
    ids, units = ("a", "b", "c", "d"), np.arange(n_spikes) % 4
    for times in (np.linspace(0.0, 0.01, n_spikes), np.full(n_spikes, 3.0)):
        assert faults_of(times, units, ids).doubled == []


def test_names_are_listed_up_to_eight() -> None:
    faults = replace(NOTHING, silent=[f"u{i}" for i in range(10)], artifacts_per_min=3.2)
    first, second = faults.sentences()
    assert first.endswith("u0, u1, u2, u3, u4, u5, u6, u7 and 2 more")
    assert second.startswith("3 artifacts per minute")


def test_an_import_notes_faults(session: Session) -> None:
    damaged = copied(session, 4, busiest(session))
    notes = plausible(damaged).notes
    assert any(note.startswith("copies of other units") for note in notes)
    assert not any("cop" in note for note in plausible(session).notes)


def test_real_threshold_crossings_pass_and_real_noise_is_found(recordings: Path) -> None:
    """Two of 16 channels ring; three quarters of 96 others are kept although artifacts are many."""
    joystick = faults_in(import_recording(recordings / "joystick_m2s1_18.nwb"))
    assert set(joystick.noisy) == {"ch18u1", "ch98u1"}
    assert joystick.doubled == joystick.silent == joystick.artifact == []
    assert 2 < joystick.artifacts_per_min < 6


def test_damage_keeps_the_other_units(session: Session) -> None:
    damaged = humming(session, 3)
    assert np.array_equal(times_of(damaged, 2), times_of(session, 2))
