"""When a frame may be valid: only after a whole window of live stream."""

from __future__ import annotations

import pytest

from streaming.states import State, StreamWatch


@pytest.fixture
def watch() -> StreamWatch:
    return StreamWatch(window_s=1.0, stale_after_s=0.25)


def live(watch: StreamWatch, start: float, seconds: float) -> list[State]:
    return [
        watch.judge(start + k * 0.01, start + k * 0.01 - 0.002) for k in range(int(seconds / 0.01))
    ]


def test_before_the_first_spike_it_is_ready(watch: StreamWatch) -> None:
    assert watch.judge(10.0, None) is State.READY


def test_it_warms_until_the_window_is_filled(watch: StreamWatch) -> None:
    states = live(watch, 10.0, 1.5)
    assert states[:99] == [State.WARMING] * 99
    assert set(states[101:]) == {State.DECODING}


def test_silence_beyond_the_limit_is_stale_and_must_warm_again(watch: StreamWatch) -> None:
    live(watch, 10.0, 2.0)
    assert watch.judge(12.2, 11.988) is State.DECODING
    assert watch.judge(12.25, 11.988) is State.STALE
    assert watch.judge(13.0, 12.995) is State.WARMING
    assert live(watch, 13.01, 1.2)[-1] is State.DECODING


def test_spikes_that_arrive_late_for_ever_are_never_valid(watch: StreamWatch) -> None:
    assert {watch.judge(10.0 + k * 0.01, 9.5 + k * 0.01) for k in range(300)} == {State.READY}


def test_another_stream_must_fill_the_window_itself(watch: StreamWatch) -> None:
    live(watch, 10.0, 2.0)
    watch.forget()
    assert watch.judge(12.0, 11.999) is State.WARMING
