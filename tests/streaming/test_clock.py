"""Deadlines on a scripted clock: missed ones are skipped, never queued."""

from __future__ import annotations

import pytest

from streaming import clock
from streaming.clock import Metronome


class HandClock:
    """A clock that only moves during sleeps, by `oversleep_s` too far."""

    def __init__(self) -> None:
        self.now = 100.0
        self.oversleep_s = 0.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self.oversleep_s
        self.oversleep_s = 0.0


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch) -> HandClock:
    hand = HandClock()
    monkeypatch.setattr(clock.time, "sleep", hand.sleep)
    return hand


def test_deadlines_are_on_a_grid_and_do_not_drift(hand: HandClock) -> None:
    metronome = Metronome(0.01, clock=hand)
    dues = []
    for _ in range(100):
        dues.append(metronome.wait())
        hand.now += 0.007
    assert dues[-1] - dues[0] == pytest.approx(0.99)
    assert metronome.n_skipped == 0


def test_after_a_stall_older_deadlines_are_skipped_and_counted(
    hand: HandClock,
) -> None:
    metronome = Metronome(0.01, clock=hand)
    first = metronome.wait()
    hand.now += 1.0
    assert metronome.wait() - first == pytest.approx(1.0)
    assert metronome.n_skipped == 99


def test_a_stall_during_the_sleep_is_counted_too(hand: HandClock) -> None:
    metronome = Metronome(0.01, clock=hand)
    first = metronome.wait()
    hand.oversleep_s = 1.5
    due = metronome.wait()
    assert hand.now - due < 0.01
    assert metronome.n_skipped == round((due - first) / 0.01) - 1


def test_a_tick_of_zero_seconds_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 0"):
        Metronome(0.0)
