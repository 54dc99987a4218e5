"""Faulty units of a live stream: named within a minute, and without flicker."""

from __future__ import annotations

import numpy as np
import pytest

from streaming.faults import Faults
from streaming.inlets.unit_watch import MOST_SPIKES, UnitWatch
from streaming.sessions.session import Session
from streaming.units import UNKNOWN
from tests.streaming.damage import copied, humming, shaken, silenced
from tests.streaming.test_faults import NOTHING, busiest
from training.data.simulate import simulate


@pytest.fixture(scope="module")
def session() -> Session:
    return simulate(n_units=32, minutes=2.5, subject=2, seed=2)


def watched(session: Session, watch: UnitWatch | None = None) -> list[Faults]:
    """What a watch says after each second of a session."""
    watch, said = watch or UnitWatch(), []
    for second in range(int(session.domain[-1, 1])):
        part = session.spikes_between(second, second + 1.0)
        watch.see(
            session.spike_times[part], session.spike_units[part], session.n_units, seconds=1.0
        )
        if (faults := watch.faults(session.unit_ids)) is not None:
            said.append(faults)
    return said


@pytest.mark.parametrize("seed", range(3))
def test_an_undamaged_stream_has_no_faults(seed: int) -> None:
    session = simulate(n_units=64, minutes=1.5, subject=seed, seed=seed)
    assert all(faults == NOTHING for faults in watched(session))


def test_faults_are_named_within_a_minute_and_don_t_flicker(session: Session) -> None:
    silent, original, copy = (busiest(session, place) for place in (0, 1, 2))
    damaged = silenced(humming(copied(session, copy, original), 3), silent, after_s=60.0)
    said = watched(damaged)
    assert said[20].noisy == [session.unit_ids[3]]
    assert len(said[20].doubled) == 1
    assert said[-1].silent == [session.unit_ids[silent]]
    for kind in ("noisy", "doubled", "silent"):
        named = [bool(getattr(faults, kind)) for faults in said]
        assert named == sorted(named), f"{kind} comes and goes"
    assert len({tuple(faults.doubled) for faults in said[20:]}) == 1


def test_a_repaired_unit_is_no_longer_named(session: Session) -> None:
    watch = UnitWatch()
    assert watched(humming(session, 3), watch)[-1].noisy == [session.unit_ids[3]]
    assert watched(session, watch)[-1].noisy == []


def test_artifacts_are_counted_live(session: Session) -> None:
    last = watched(shaken(session, per_min=60.0, only=7))[-1]
    assert session.unit_ids[7] in last.artifact  # others may fire less than once per second
    assert 20 < last.artifacts_per_min < 100


def test_a_fast_stream_is_watched_in_part(session: Session) -> None:
    """Ten times the rate, of which a part is looked at: the same is said."""
    rng = np.random.default_rng(0)
    times = np.concatenate([session.spike_times + rng.uniform(0, 1.0) for _ in range(10)])
    units = np.tile(session.spike_units, 10)
    order = np.argsort(times)
    times, units = times[order], units[order]
    watch = UnitWatch()
    for second in range(100):
        first, last = np.searchsorted(times, (second, second + 1.0))
        assert second == 0 or last - first > MOST_SPIKES
        watch.see(times[first:last], units[first:last], session.n_units, seconds=1.0)
    faults = watch.faults(session.unit_ids)
    assert faults is not None
    assert faults.silent == faults.doubled == []


def test_counts_in_bins_are_judged_by_their_rates_alone(session: Session) -> None:
    watch = UnitWatch()
    for second in range(60):
        part = session.spikes_between(second, second + 1.0)
        binned = np.sort(np.floor(session.spike_times[part] * 50) / 50)
        watch.see(binned, session.spike_units[part], session.n_units, seconds=1.0, fine=False)
    assert watch.faults(session.unit_ids) == NOTHING


def test_unknown_units_and_new_units_are_no_problem(session: Session) -> None:
    watch, times = UnitWatch(), np.sort(np.random.default_rng(0).uniform(0, 1, 50))
    assert watch.faults(()) is None
    watch.see(times, np.full(50, UNKNOWN), 4, seconds=1.0)
    assert watch.faults(("a",) * 4) is None
    watch.see(times, np.arange(50) % 4, 4, seconds=1.0)
    watch.see(times, np.arange(50) % 6, 6, seconds=1.0)
    assert watch.faults(tuple("abcdef")) == NOTHING
