"""Damages a session's units, as electrodes, cables and amplifiers do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from streaming.sessions.session import Session, sorted_spikes


def times_of(session: Session, unit: int) -> np.ndarray:
    """The spike times of a unit."""
    return session.spike_times[session.spike_units == unit]


def with_spikes(session: Session, unit: int, times: np.ndarray, *, added: bool = False) -> Session:
    """The session with these spikes of a unit, instead of its own or added to them."""
    kept = np.ones(len(session.spike_times), bool) if added else session.spike_units != unit
    spike_times, units, _ = sorted_spikes(
        np.concatenate([session.spike_times[kept], times]),
        np.concatenate([session.spike_units[kept], np.full(len(times), unit)]),
    )
    return replace(session, spike_times=spike_times, spike_units=units)


def silenced(session: Session, unit: int, after_s: float = -np.inf) -> Session:
    """A unit falls silent."""
    times = times_of(session, unit)
    return with_spikes(session, unit, times[times < after_s])


def copied(session: Session, unit: int, original: int, *, jitter_s: float = 0.0) -> Session:
    """A unit has the spikes of another one, with jitter."""
    rng = np.random.default_rng(0)
    times = times_of(session, original)
    return with_spikes(session, unit, times + rng.normal(0.0, jitter_s, len(times)))


def humming(session: Session, unit: int, mains_hz: float = 50.03) -> Session:
    """A unit fires at most cycles of the mains, with a jitter of a millisecond."""
    rng = np.random.default_rng(0)
    low, high = session.spike_times[[0, -1]]
    cycles = np.arange(low, high, 1 / mains_hz)
    return with_spikes(
        session, unit, cycles[rng.random(len(cycles)) < 0.8] + rng.normal(0, 0.001, 1)
    )


def ringing(session: Session, unit: int) -> Session:
    """A third of a unit's spikes are detected again half a millisecond later."""
    rng = np.random.default_rng(0)
    times = times_of(session, unit)
    again = times[rng.random(len(times)) < 1 / 3] + rng.uniform(3e-4, 7e-4)
    return with_spikes(session, unit, again, added=True)


def shaken(session: Session, per_min: float, only: int | None = None) -> Session:
    """Artifacts hit 80 % of the units within a third of a millisecond, and `only` fires in them."""
    rng = np.random.default_rng(0)
    low, high = session.spike_times[[0, -1]]
    moments = rng.uniform(low, high, int((high - low) / 60 * per_min))
    if only is not None:
        session = silenced(session, only)
    for unit in range(session.n_units):
        hit = (rng.random(len(moments)) < 0.8) | (unit == only)
        times = moments[hit] + rng.uniform(0.0, 3e-4, hit.sum())
        session = with_spikes(session, unit, times, added=True)
    return session
