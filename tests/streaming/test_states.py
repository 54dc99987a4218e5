"""A frame is valid only after a full window of live stream."""

from __future__ import annotations

import numpy as np
import pytest

from streaming.wire.states import State, StreamWatch

TICK_S = 0.01


@pytest.fixture
def watch() -> StreamWatch:
    return StreamWatch(unbroken_s=1.0, stale_after_s=0.25)


def tick(watch: StreamWatch, at: float, *spikes: float) -> State:
    watch.see(np.array(spikes), at)
    return watch.judge(at)


def live(
    watch: StreamWatch, start: float, seconds: float, *, delay_s: float = 0.002
) -> list[State]:
    """Send one spike per tick, which arrives after `delay_s`."""
    ticks = start + np.arange(int(seconds / TICK_S)) * TICK_S
    return [tick(watch, at, at - delay_s) for at in ticks.tolist()]


def test_before_the_first_spike_the_state_is_ready(watch: StreamWatch) -> None:
    assert tick(watch, 10.0) is State.READY


def test_the_state_is_warming_until_the_window_is_full(watch: StreamWatch) -> None:
    states = live(watch, 10.0, 1.5)
    assert states[:99] == [State.WARMING] * 99
    assert set(states[101:]) == {State.DECODING}


def test_silence_beyond_the_limit_is_stale_and_then_warms_again(watch: StreamWatch) -> None:
    live(watch, 10.0, 2.0)
    assert tick(watch, 12.2) is State.DECODING
    assert tick(watch, 12.25) is State.STALE
    assert tick(watch, 13.0, 12.995) is State.WARMING
    assert live(watch, 13.01, 1.2)[-1] is State.DECODING


@pytest.mark.parametrize("delay_s", [0.26, 0.5, 5.0])
def test_spikes_that_always_arrive_too_late_are_never_valid(
    watch: StreamWatch, delay_s: float
) -> None:
    assert set(live(watch, 10.0, 3.0, delay_s=delay_s)) == {State.READY}


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.2])
def test_spikes_with_tolerable_delay_are_valid_again_after_a_break(
    watch: StreamWatch, delay_s: float
) -> None:
    live(watch, 10.0, 2.0, delay_s=delay_s)
    assert tick(watch, 13.0) is State.STALE
    assert live(watch, 13.01, 2.0, delay_s=delay_s)[-1] is State.DECODING


@pytest.mark.parametrize("goes_on", [False, True])
def test_after_a_break_the_window_must_fill_again(watch: StreamWatch, goes_on: bool) -> None:
    """If the newest old spike counted, the frame would be valid too early by the stale limit."""
    live(watch, 10.0, 2.0)
    (watch.refill if goes_on else watch.forget)(12.0)
    before = tick(watch, 12.01, 11.99, 11.999)
    assert before is (State.WARMING if goes_on else State.STALE)
    assert tick(watch, 12.2, 12.19) is State.WARMING
    states = live(watch, 12.21, 1.5)
    first = 12.21 + states.index(State.DECODING) * TICK_S
    assert first == pytest.approx(13.19, abs=TICK_S)


def test_a_future_sign_of_life_counts_once_its_time_has_come(watch: StreamWatch) -> None:
    assert tick(watch, 10.0, 10.09) is State.READY
    assert tick(watch, 10.08) is State.READY
    assert tick(watch, 10.1) is State.WARMING


@pytest.mark.parametrize("ahead_s", [0.05, 3600.0])
def test_stamps_from_the_future_do_not_hide_silence(watch: StreamWatch, ahead_s: float) -> None:
    live(watch, 10.0, 2.0, delay_s=-ahead_s)
    state = tick(watch, 12.0 + 0.26)
    assert state is (State.STALE if ahead_s < 1.0 else State.READY)


def test_a_gap_in_spikes_that_arrive_together_is_a_break(watch: StreamWatch) -> None:
    """After a stall of both daemon and sender, spikes are fresh but don't fill a window."""
    live(watch, 10.0, 2.0)
    assert tick(watch, 13.0, 11.995, 12.0, 12.9, 12.95, 12.99) is State.WARMING


def test_a_stall_of_the_daemon_alone_is_not_a_break(watch: StreamWatch) -> None:
    live(watch, 10.0, 2.0)
    assert tick(watch, 13.0, *np.arange(11.99, 13.0, 0.1)) is State.DECODING


def test_another_decoder_is_judged_by_the_spikes_of_its_own_units(watch: StreamWatch) -> None:
    live(watch, 10.0, 2.0)
    watch.recount(np.arange(10.5, 12.0, 0.1), 12.0)
    assert watch.judge(12.0) is State.DECODING
    watch.recount(np.array([11.9]), 12.0)
    assert watch.judge(12.0) is State.WARMING
    watch.recount(np.empty(0), 12.0)
    assert watch.judge(12.0) is State.STALE
