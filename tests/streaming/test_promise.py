"""A valid frame keeps its promises under any order of events.

The clock and the stream are scripted, so that minutes pass in milliseconds. The tick, decoder,
admission, watch, filters and publisher are those of the daemon.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decoder.bundles import bundle as bundles
from decoder.bundles.bundle import Bundle
from decoder.filters import Filters
from decoder.runtimes.base import MAX_RATE_HZ, Runtime
from decoder.runtimes.opening import open_runtime
from streaming.daemon.commands import handle, swap
from streaming.daemon.status import explain
from streaming.wire.control import Arm, Pause, Resume, Rollback, SetFilters
from streaming.wire.states import State
from tests.streaming.scripted_rig import EPS, TICK_S, Rig

UNIX_S = 1.7e9


def other_units(bundle: Bundle, folder: Path, n_units: int) -> Bundle:
    """The same decoder with the last `n_units` units only."""
    order = np.arange(len(bundle.manifest.unit_ids))[-n_units:]
    return bundles.write(
        folder / f"last-{n_units}.bundle",
        manifest=bundle.manifest.model_copy(
            update={
                "decoder_id": f"last-{n_units}",
                "unit_ids": tuple(bundle.manifest.unit_ids[i] for i in order),
            }
        ),
        graph=bundle.graph_path,
        tables=replace(bundle.tables, tokens=bundle.tables.tokens[order]),
        weights={"nothing": np.zeros(1)},
    )


@pytest.fixture
def rig(tiny) -> Iterator[Rig]:
    made = Rig(tiny.bundle)
    yield made
    made.close()


@pytest.fixture
def counts_rig(tiny) -> Iterator[Rig]:
    made = Rig(tiny.bundle, regular=True)
    yield made
    made.close()


def test_a_live_stream_is_valid_after_one_window(rig: Rig) -> None:
    assert rig.live(0.9).state == "warming"
    assert rig.live(0.2).valid


@pytest.mark.parametrize("ahead_s", [UNIX_S, 3600.0, 0.2])
def test_bins_that_are_not_admitted_are_not_signs_of_life(counts_rig: Rig, ahead_s: float) -> None:
    rig = counts_rig
    for _ in range(100):
        rig.send(rig.clock.now + ahead_s)
        frame = rig.tick()
    assert frame.state == "ready"
    assert frame.n_spikes == 0
    assert "ahead of this host's clock" in explain(rig.ticker)
    rig.live(1.1)
    assert rig.frames[-1].valid
    for _ in range(30):
        rig.send(rig.clock.now + ahead_s)
        frame = rig.tick()
    assert frame.state == "stale"


def test_empty_bins_are_a_sign_of_life_and_silence_is_not(counts_rig: Rig) -> None:
    rig = counts_rig
    rig.live(1.1)
    for _ in range(60):
        assert rig.inlet is not None
        rig.inlet.bins.append(rig.clock.now + 0.01)
        assert rig.tick().valid
    assert rig.frames[-1].n_spikes == 0
    assert rig.tick(20).state == "stale"


@pytest.mark.parametrize("why", ["jump", "fault"])
def test_after_a_break_only_new_spikes_fill_the_window(rig: Rig, why: str) -> None:
    rig.live(2.0)
    assert rig.inlet is not None
    rig.tick(9)  # some time after the newest spike
    if why == "jump":
        rig.inlet.jumped = True
    else:
        rig.output = math.nan
    rig.tick()
    broke, rig.output = rig.clock.now, None
    rig.tick()  # no spike yet: the newest is from before the break
    while not rig.live(TICK_S).valid:
        assert rig.clock.now < broke + 2.0
    assert rig.clock.now - broke >= rig.ticker.runtime.window_s


@pytest.mark.parametrize("late_s", [0.3, 3.0])
def test_after_a_late_frame_the_filters_start_from_rest(rig: Rig, late_s: float) -> None:
    rig.output = 0.5
    handle(rig.ticker, SetFilters(filters=Filters(acceleration_limit=0.5)), 0.0)
    rig.live(2.5)
    assert rig.frames[-1].velocity[0] > 0.4
    rig.slow_s = late_s
    assert rig.live(TICK_S).state == "stale"
    rig.slow_s = 0.0
    while not (frame := rig.live(TICK_S)).valid:
        assert frame.velocity == (0.0, 0.0)
    assert math.hypot(*frame.velocity) <= 0.5 * TICK_S + EPS


def test_after_a_stall_without_frames_the_filters_start_from_rest(rig: Rig) -> None:
    rig.output = 0.5
    handle(rig.ticker, SetFilters(filters=Filters(smoothing_s=1.0)), 0.0)
    rig.live(2.5)
    rig.output = 0.1
    for _ in range(20):  # spikes arrive, but no tick runs
        rig.send(rig.clock.now + 0.01)
        rig.clock.now += TICK_S
    assert rig.live(TICK_S).velocity[0] == pytest.approx(0.1)


@pytest.mark.parametrize("output", [1e30, -1e30, 6.0, math.nan, math.inf, RuntimeError("CUDA")])
@pytest.mark.parametrize("given", [{}, {"gain": 100.0}, {"bias_s": 10.0, "speed_limit": 0.5}])
def test_an_implausible_output_is_a_fault_and_recovers_by_itself(
    rig: Rig, output: object, given: dict[str, float]
) -> None:
    if output == 6.0 and "speed_limit" in given:
        pytest.skip("the limit makes it plausible")
    rig.output = 0.01
    handle(rig.ticker, SetFilters(filters=Filters(**given)), 0.0)
    rig.live(2.0)
    bias = rig.ticker.filters.bias
    rig.output = output
    assert rig.live(2.5).state == "fault"
    assert rig.ticker.filters.bias == bias
    assert "m/s" in explain(rig.ticker) or "CUDA" in explain(rig.ticker)
    rig.output = 0.01
    assert rig.live(1.2).valid
    assert rig.ticker.fault is None


def test_an_error_of_onnx_runtime_is_a_fault_and_recovers_by_itself(rig: Rig) -> None:
    rig.live(1.5)
    runtime = rig.ticker.runtime
    good = runtime._constant  # type: ignore[attr-defined]
    runtime._constant = {name: value[..., :1] for name, value in good.items()}  # type: ignore
    assert rig.live(0.1).state == "fault"
    assert "the decoder failed" in explain(rig.ticker)
    assert rig.live(2.5).state == "fault"
    runtime._constant = good  # type: ignore[attr-defined]
    assert rig.live(1.2).valid


def test_a_fault_in_a_pause_clears_by_itself_and_can_be_armed(rig: Rig) -> None:
    rig.ticker.publisher._subscriptions.add(b"cursor:")
    rig.live(1.5)
    rig.output = math.nan
    rig.live(TICK_S)
    handle(rig.ticker, Pause(why="a look at it"), rig.clock.now)
    rig.live(1.5)
    assert "not a velocity" in str(handle(rig.ticker, Arm(), rig.clock.now))
    rig.output = None
    assert rig.live(1.2).state == "paused"
    assert handle(rig.ticker, Arm(), rig.clock.now) is None
    assert rig.live(TICK_S).valid


def test_a_pause_of_minutes_does_not_overflow_the_ring(rig: Rig) -> None:
    """At 2,000 spikes/s, 5 minutes exceed the capacity of the ring."""
    rig.live(1.5)
    handle(rig.ticker, Pause(), rig.clock.now)
    runtime = rig.ticker.runtime
    for _ in range(15_000):
        rig.clock.now += TICK_S
        times = rig.clock.now - rig.rng.uniform(0.0, 0.02, 40)
        runtime.append(times, rig.rng.integers(0, len(rig.units), 40))
    assert runtime.n_overflowed == 0
    assert len(runtime._ring) < 3 * 2000
    handle(rig.ticker, Resume(), rig.clock.now)
    rig.live(1.5)
    assert rig.frames[-1].valid


def test_too_many_spikes_for_the_window_are_invalid_and_reported(rig: Rig) -> None:
    rig.live(1.5)
    assert rig.inlet is not None
    for _ in range(70):
        n_spikes = round(1.5 * MAX_RATE_HZ * TICK_S)
        times = rig.clock.now + np.linspace(0.0, TICK_S, n_spikes)
        rig.inlet.waiting = [(float(time), 0) for time in times]
        rig.clock.now = window_end = rig.clock.now + TICK_S
        rig.ticker.paused = "its decodes are not of interest"
        rig.ticker.tick(window_end)
    rig.ticker.paused = None
    assert rig.ticker.runtime.n_overflowed > 0
    assert rig.ticker.watch.judge(rig.clock.now) is not State.DECODING
    rig.ticker.state = State.WARMING
    assert "200,000 spikes/s" in explain(rig.ticker)


@pytest.mark.parametrize("stamp", ["future", "past", "none", "unit"])
def test_the_status_reports_why_spikes_are_left_out(rig: Rig, stamp: str) -> None:
    rig.live(1.5)
    for _ in range(50):
        now = rig.clock.now
        times = {"future": UNIX_S, "past": now - 40.0, "none": math.nan, "unit": now}
        rig.send(*[times[stamp]] * 20, unit=len(rig.units) if stamp == "unit" else None)
        rig.tick()
    words = {
        "future": "1000 are stamped ahead of this host's clock",
        "past": "1000 are stamped before the decoder's window",
        "none": "1000 have no time stamp",
        "unit": "1000 are of units that are not in the bundle",
    }
    assert rig.frames[-1].state == "stale"
    assert words[stamp] in explain(rig.ticker)


@pytest.mark.parametrize("error", [RuntimeError("liblsl gave up"), MemoryError(), KeyError("x")])
def test_any_error_of_the_stream_is_a_state_and_is_reported(rig: Rig, error: Exception) -> None:
    rig.live(1.5)
    assert rig.inlet is not None
    rig.inlet.breaks = error
    assert rig.tick().state == "stale"
    assert type(error).__name__ in explain(rig.ticker)
    rig.connect()
    assert rig.live(1.3).valid


@pytest.mark.parametrize("n_units", [40, 10])
def test_a_swap_without_a_stream_defers_the_unit_check_to_the_next_stream(
    rig: Rig, tmp_path: Path, n_units: int
) -> None:
    other = open_runtime(other_units(rig.ticker.bundle, tmp_path, n_units), epoch=0.0)
    rig.live(1.2)
    assert rig.inlet is not None
    rig.inlet.breaks = RuntimeError("gone")
    rig.tick()
    assert swap(rig.ticker, other, rig.clock.now) is None
    assert rig.connector.bundle_units == other.bundle.manifest.unit_ids
    assert rig.tick(50).state == "stale"


def test_a_decoder_with_silent_units_is_not_valid_on_other_units_spikes(
    rig: Rig, tmp_path: Path
) -> None:
    other = open_runtime(other_units(rig.ticker.bundle, tmp_path, 20), epoch=0.0)
    for _ in range(100):
        rig.send(rig.clock.now + 0.01, unit=0)
        rig.tick()
    assert rig.frames[-1].valid
    assert swap(rig.ticker, other, rig.clock.now) is None
    rig.send(rig.clock.now + 0.01, unit=0)
    assert not rig.tick().valid


@pytest.mark.parametrize("hours", [0.0, 30.0, 24.0 * 40])
def test_velocities_do_not_depend_on_the_epoch(tiny, hours: float) -> None:
    session = tiny.session
    near, far = (open_runtime(tiny.bundle, epoch=epoch) for epoch in (0.0, -3600.0 * hours))
    for at in np.arange(1.0, 1.5, 0.1):
        part = session.spikes_between(at - 1.0 if at == 1.0 else at - 0.1, at)
        for runtime in (near, far):
            runtime.append(session.spike_times[part], session.spike_units[part])
        np.testing.assert_allclose(far.decode(float(at)), near.decode(float(at)), atol=1e-5)


STAMPS = {
    "late": -0.1, "very late": -0.4, "ahead": 0.05, "far ahead": 0.3, "old": -40.0,
    "unix": UNIX_S, "none": math.nan, "infinite": math.inf,
}  # fmt: skip
FILTERS = (
    Filters(),
    Filters(acceleration_limit=1.0),
    Filters(acceleration_limit=0.2, smoothing_s=0.2),
    Filters(smoothing_s=0.5),
    Filters(gain=100.0, speed_limit=0.3),
    Filters(gain=0.4, bias_s=5.0, dead_zone=0.01),
)
LONG, SHORT = st.sampled_from([1.1, 1.4]), st.sampled_from([0.02, 0.1, 0.24, 0.3, 0.6])
EVENTS = st.one_of(
    st.tuples(st.just("live"), LONG),
    st.tuples(st.just("live"), SHORT),
    st.tuples(st.just("silence"), SHORT),
    st.tuples(st.just("stamps"), st.sampled_from(sorted(STAMPS)), SHORT),
    st.tuples(st.just("stranger"), SHORT),
    st.tuples(st.just("shuffled"), SHORT),
    st.tuples(st.just("jump")),
    st.tuples(st.just("loss"), SHORT),
    st.tuples(st.just("fault"), st.sampled_from([math.nan, 1e30, 7.0, None]), SHORT),
    st.tuples(st.just("stall"), st.booleans(), SHORT),
    st.tuples(st.just("slow"), SHORT),
    st.tuples(st.just("swap"), st.sampled_from([0, 1])),
    st.tuples(st.just("rollback")),
    st.tuples(st.just("pause"), SHORT),
    st.tuples(st.just("filters"), st.sampled_from(FILTERS)),
)


def play(rig: Rig, others: list[Runtime], event: tuple) -> None:
    """Play one event of a script."""
    ticks = math.ceil(event[-1] / TICK_S) if isinstance(event[-1], float) else 0
    match event:
        case "live", float(seconds):
            rig.live(seconds)
        case "silence", _:
            rig.tick(ticks)
        case "stamps", str(kind), _:
            for _ in range(ticks):
                rig.send(rig.clock.now + STAMPS[kind])
                rig.tick()
        case "stranger", _:
            if not rig.regular:
                for _ in range(ticks):
                    rig.send(rig.clock.now, unit=len(rig.units))
                    rig.tick()
        case "shuffled", _:
            for _ in range(ticks):
                rig.send(*(rig.clock.now - rig.rng.uniform(0.0, 0.2, 5)).tolist())
                rig.tick()
        case ("jump",):
            if rig.ticker.inlet is not None:
                rig.inlet.jumped = True
            rig.tick()
        case "loss", _:
            if rig.ticker.inlet is not None:
                rig.inlet.breaks = RuntimeError("lost")
            rig.tick(ticks)
            rig.connect()
        case "fault", output, float(seconds):
            rig.output = RuntimeError("no memory") if output is None else output
            rig.live(seconds)
            rig.output = None
        case "stall", bool(spikes), _:
            for _ in range(ticks):
                if spikes:
                    rig.send(rig.clock.now + 0.01)
                rig.clock.now += TICK_S
        case "slow", float(seconds):
            rig.slow_s = seconds
            rig.live(TICK_S)
            rig.slow_s = 0.0
        case "swap", int(index):
            if others[index] is not rig.ticker.runtime:
                swap(rig.ticker, others[index], rig.clock.now)
        case ("rollback",):
            handle(rig.ticker, Rollback(), rig.clock.now)
        case "pause", float(seconds):
            handle(rig.ticker, Pause(), rig.clock.now)
            rig.live(seconds)
            handle(rig.ticker, Resume(), rig.clock.now)
        case "filters", Filters() as filters:
            handle(rig.ticker, SetFilters(filters=filters), rig.clock.now)


@pytest.fixture(scope="module")
def others(tiny, tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    folder = tmp_path_factory.mktemp("others")
    return [other_units(tiny.bundle, folder, n_units) for n_units in (40, 20)]


@pytest.mark.parametrize("regular", [False, True])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(script=st.lists(EVENTS, min_size=1, max_size=15))
def test_valid_frames_keep_their_promise_under_random_events(
    tiny, others: list[Bundle], regular: bool, script: list[tuple]
) -> None:
    """`Rig._check` has the promises."""
    rig = Rig(tiny.bundle, regular=regular)
    try:
        runtimes = [
            open_runtime(
                o, epoch=0.0, settings=rig.ticker.runtime.settings, graph_from=rig.ticker.runtime
            )
            for o in others
        ]
        for runtime in runtimes:
            rig._wrap(runtime)
        for event in script:
            play(rig, runtimes, event)
        handle(rig.ticker, Resume(), rig.clock.now)
        rig.connect()
        assert rig.live(1.5).valid, "it recovers without help"
    finally:
        rig.close()
