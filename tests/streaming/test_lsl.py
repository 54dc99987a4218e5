"""Spike streams of every type, over real LSL."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pylsl
import pytest

from decoder.errors import StreamError
from streaming.inlets.search import Lookout
from streaming.inlets.spikes import (
    MAX_NEW_UNITS,
    MAX_UNITS,
    SpikeConnector,
    SpikeInlet,
    StreamQuery,
    find_spikes,
)
from streaming.units import UNKNOWN, UnitMatch
from tests.rig import DEADLINE_S, wait_for

UNITS = ("1/0", "2/0", "3/1")


def unique(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


def describe(info: pylsl.StreamInfo, units: dict[str, tuple[int, int]]) -> pylsl.StreamInfo:
    node = info.desc().child("units")
    if node.empty():
        node = info.desc().append_child("units")
    for unit_id, (channel, number) in units.items():
        unit = node.append_child("unit")
        unit.append_child_value("id", unit_id)
        unit.append_child_value("channel", str(channel))
        unit.append_child_value("unit", str(number))
    return info


def spikes_info(units: dict[str, tuple[int, int]], name: str = "") -> pylsl.StreamInfo:
    name = name or unique("spikes")
    return describe(pylsl.StreamInfo(name, "Spikes", 2, 0.0, pylsl.cf_int32, name), units)


def counts_info(labels: list[str], rate_hz: float) -> pylsl.StreamInfo:
    name = unique("counts")
    info = pylsl.StreamInfo(name, "SpikeCounts", len(labels), rate_hz, pylsl.cf_int32, name)
    info.set_channel_labels(labels)
    return info


def found(query: StreamQuery) -> pylsl.StreamInfo:
    with Lookout(query) as lookout:
        return lookout.wait(DEADLINE_S)[0]


@contextmanager
def opened(
    info: pylsl.StreamInfo,
    unit_ids: tuple[str, ...] | None = UNITS,
    min_known_share: float = 0.0,
) -> Iterator[tuple[pylsl.StreamOutlet, SpikeInlet]]:
    outlet = pylsl.StreamOutlet(info)
    query = StreamQuery(name=info.name())
    inlet = SpikeInlet(found(query), unit_ids, min_known_share=min_known_share)
    assert outlet.wait_for_consumers(DEADLINE_S)
    yield outlet, inlet
    inlet.close()


def drained(inlet: SpikeInlet, n_events: int) -> tuple[np.ndarray, np.ndarray]:
    """The times and units of the first `n_events` samples."""
    times, units = [], []

    def enough() -> bool:
        t, u = inlet.drain(pylsl.local_clock())
        times.append(t)
        units.append(u)
        return inlet.n_drained >= n_events

    wait_for(f"{n_events} samples", enough)
    return np.concatenate(times), np.concatenate(units)


def test_events_are_mapped_to_units_by_the_description() -> None:
    info = spikes_info({"3/1": (0, 0), "unheard of": (1, 0), "1/0": (7, 2)})
    with opened(info) as (outlet, inlet):
        now = pylsl.local_clock()
        events = [[0, 0], [1, 0], [7, 2], [7, 0], [-1, 0], [500, 3]]
        stamps = [now + 0.001 * i for i in range(len(events))]
        outlet.push_chunk(events, stamps)
        times, units = drained(inlet, len(events))
        assert list(units) == [0, 1, 2, UNKNOWN, UNKNOWN, UNKNOWN]
        assert inlet.unit_ids == ["3/1", "unheard of", "1/0"]
        match = UnitMatch(inlet.unit_ids, UNITS)
        assert list(match(units)) == [2, UNKNOWN, 0, UNKNOWN, UNKNOWN, UNKNOWN]
        np.testing.assert_allclose(times - inlet.clock_offset_s, stamps, atol=1e-9)
        assert (match.n_known, match.n_unknown, match.n_missing) == (2, 1, 1)
        assert inlet.bin_ends is None


def test_without_a_description_unit_ids_are_channel_slash_unit() -> None:
    name = unique("nds")
    info = pylsl.StreamInfo(name, "SpikeEvents", 6, 0.0, pylsl.cf_int16, name)
    with opened(info) as (outlet, inlet):
        now = pylsl.local_clock()
        assert UnitMatch(inlet.unit_ids, UNITS).n_known == 3
        events = [[3, 1], [2, 0], [9, 9], [9, 9], [-1, 0], [30_000, 30_000]]
        outlet.push_chunk([event + [0] * 4 for event in events], [now] * len(events))
        _, units = drained(inlet, len(events))
        assert list(units) == [2, 1, 3, 3, UNKNOWN, UNKNOWN], (
            "a unit is known from its first event on"
        )
        assert inlet.unit_ids == [*UNITS, "9/9"]


def test_counts_become_spikes_inside_their_bins() -> None:
    with opened(counts_info(["2/0", "noise", "3/1"], rate_hz=50.0)) as (outlet, inlet):
        end = pylsl.local_clock()
        outlet.push_chunk([[2, 1, 0], [0, 0, 4]], [end - 0.02, end])
        times, units = drained(inlet, 2)
        times = times - inlet.clock_offset_s
        assert list(units) == [0, 0, 1, 2, 2, 2, 2]
        assert list(UnitMatch(inlet.unit_ids, UNITS)(units)) == [1, 1, UNKNOWN, 2, 2, 2, 2]
        np.testing.assert_allclose(times[:2], end - 0.04 + np.array([0.005, 0.015]), atol=1e-9)
        np.testing.assert_allclose(
            times[3:], end - 0.02 + np.array([0.0025, 0.0075, 0.0125, 0.0175]), atol=1e-9
        )


def test_empty_bins_are_reported_too() -> None:
    with opened(counts_info(["2/0", "3/1"], rate_hz=50.0)) as (outlet, inlet):
        end = pylsl.local_clock()
        outlet.push_chunk([[0, 0], [0, 0]], [end - 0.02, end])
        times, _ = drained(inlet, 2)
        assert len(times) == 0
        ends = np.array([end - 0.02, end]) + inlet.clock_offset_s
        assert inlet.bin_ends == pytest.approx(ends)
        inlet.drain(pylsl.local_clock())
        assert len(inlet.bin_ends) == 0


@pytest.mark.parametrize(
    ("value", "n_spikes"),
    [(float("nan"), 0), (float("inf"), 0), (float("-inf"), 0), (-3.0, 0), (1.6, 2), (1e9, 20)],
)
def test_invalid_counts_are_zero_and_absurd_ones_are_limited_to_1000_hz(
    value: float, n_spikes: int
) -> None:
    """20 spikes in a bin of 20 ms are 1000 Hz."""
    name = unique("counts")
    info = pylsl.StreamInfo(name, "SpikeCounts", 1, 50.0, pylsl.cf_float32, name)
    info.set_channel_labels(["2/0"])
    with opened(info) as (outlet, inlet):
        outlet.push_chunk([[value], [3.0]])
        times, units = drained(inlet, 2)
        assert len(times) == n_spikes + 3
        assert np.isfinite(times).all()
        assert set(units.tolist()) == {0}


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (spikes_info({}), "no desc/units"),
        (spikes_info({"9/9": (0, 0)}), "is this the right bundle"),
        (spikes_info({"1/0": (2**20, 2**10)}), "expected small ones"),
        (counts_info(["1/0", "2/0", "1/0"], 50.0), "1 unit ids name more than one unit"),
        (
            describe(spikes_info({"1/0": (0, 0)}), {"1/0": (1, 0)}),
            "1 unit ids name more than one unit \\('1/0'\\).*ids of their own",
        ),
        (
            describe(spikes_info({"1/0": (0, 0)}), {"2/0": (0, 0)}),
            "calls channel 0, unit 0 both '1/0' and '2/0'",
        ),
        (counts_info(["8/0", "9/0"], 50.0), "is this the right bundle"),
        (counts_info(["1/0"], 0.0), "a regular rate"),
        (pylsl.StreamInfo("text", "Spikes", 1, 0.0, pylsl.cf_string, "text"), "carries strings"),
        (pylsl.StreamInfo("thin", "Spikes", 1, 0.0, pylsl.cf_int32, "thin"), "has 1 channel"),
    ],
)
def test_an_unreadable_stream_is_refused_with_the_reason(
    info: pylsl.StreamInfo, reason: str
) -> None:
    with pytest.raises(StreamError, match=reason), opened(info):
        pass


def test_a_stream_with_few_of_the_bundles_units_is_refused() -> None:
    with (
        pytest.raises(StreamError, match=r"has 1 of the bundle's 3 units; expected at least 50%"),
        opened(spikes_info({"1/0": (0, 0), "x": (1, 0)}), min_known_share=0.5),
    ):
        pass


def test_two_streams_of_one_type_need_a_name() -> None:
    kind = "SpikeEvents"  # no other test has a stream of this type
    outlets = [
        pylsl.StreamOutlet(pylsl.StreamInfo(name, kind, 2, 0.0, pylsl.cf_int16, name))
        for name in (unique("left"), unique("right"))
    ]

    def refused() -> StreamError | None:
        try:
            find_spikes(StreamQuery(kind=kind), 1.0)
        except StreamError as error:
            return error
        return None

    message = str(wait_for("both streams", refused))
    assert "left-" in message
    assert "right-" in message
    assert "--stream-name" in message
    del outlets


@pytest.mark.parametrize("bundle_units", [UNITS, None], ids=["decoded", "recorded"])
def test_the_number_of_undescribed_units_is_bounded(bundle_units: tuple[str, ...] | None) -> None:
    """Whatever a sender invents, each tick adds a bounded number of units; the rest are unknown."""
    name = unique("made-up")
    info = pylsl.StreamInfo(name, "SpikeEvents", 2, 0.0, pylsl.cf_int16, name)
    with opened(info, bundle_units) as (outlet, inlet):
        pairs = np.array([[c, u] for c in range(4096) for u in range(0, 256, 64)], dtype=np.int16)
        before, most = len(inlet.unit_ids), 0

        def is_full() -> bool:
            nonlocal before, most
            outlet.push_chunk(pairs, pylsl.local_clock())
            inlet.drain(pylsl.local_clock())
            most, before = max(most, len(inlet.unit_ids) - before), len(inlet.unit_ids)
            return before == MAX_UNITS

        wait_for("all that there can be", is_full)
        assert most == MAX_NEW_UNITS or bundle_units is None
        inlet.drain(pylsl.local_clock())
        assert len(inlet.unit_ids) == len(set(inlet.unit_ids)) == MAX_UNITS
        assert UnitMatch(inlet.unit_ids, UNITS).n_known == (3 if bundle_units else 2)


def test_a_bundle_of_more_units_than_the_limit_leaves_no_room_for_others() -> None:
    name = unique("many")
    numbered = [f"{n // 2}/{n % 2}" for n in range(MAX_UNITS + 10)]
    info = pylsl.StreamInfo(name, "SpikeEvents", 2, 0.0, pylsl.cf_int16, name)
    with opened(info, numbered) as (outlet, inlet):
        n_units = len(inlet.unit_ids)
        outlet.push_chunk(np.array([[5, unit] for unit in range(2, 60)], dtype=np.int16))
        wait_for("the events", lambda: inlet.has_samples)
        inlet.drain(pylsl.local_clock())
        assert len(inlet.unit_ids) == n_units


def test_a_full_buffer_is_counted() -> None:
    with opened(counts_info(["1/0"], rate_hz=100.0)) as (outlet, inlet):
        outlet.push_chunk(np.zeros((3000, 1), dtype=np.int32))
        time.sleep(0.5)
        drained(inlet, 1)
        assert inlet.n_overflows == 1
        inlet.drain(pylsl.local_clock())
        assert inlet.n_overflows == 1


def test_a_sender_that_is_gone_raises_an_error() -> None:
    info = spikes_info({"1/0": (0, 0)})
    outlet = pylsl.StreamOutlet(info)
    inlet = SpikeInlet(found(StreamQuery(name=info.name())), UNITS)
    del outlet

    def lost() -> bool:
        try:
            inlet.drain(pylsl.local_clock())
        except StreamError as error:
            return "is gone" in str(error)
        return False

    wait_for("the loss", lost)


def test_the_search_reports_any_error_of_a_stream_and_goes_on() -> None:
    """A stream with an infinite rate makes pylsl raise a TypeError."""
    name = unique("broken")
    info = pylsl.StreamInfo(name, "SpikeCounts", 1, float("inf"), pylsl.cf_int32, name)
    info.set_channel_labels(["1/0"])
    broken = pylsl.StreamOutlet(info)
    connector = SpikeConnector(StreamQuery(kind="SpikeCounts", name=name), UNITS)
    connector.start()

    def problem() -> str | None:
        assert connector.tend(None, pylsl.local_clock()) is None
        return connector.problem

    assert name in wait_for("the problem", problem)
    del broken
    mended = pylsl.StreamInfo(name, "SpikeCounts", 1, 50.0, pylsl.cf_int32, name)
    mended.set_channel_labels(["1/0"])
    outlet = pylsl.StreamOutlet(mended)
    inlet = wait_for("the stream", lambda: connector.tend(None, pylsl.local_clock()))
    assert inlet.unit_ids == ["1/0"]
    assert connector.problem is None
    connector.stop()
    inlet.close()
    del outlet


def test_a_stream_found_for_another_bundle_is_checked_again() -> None:
    info = spikes_info({"1/0": (0, 0), "2/0": (1, 0)})
    outlet = pylsl.StreamOutlet(info)
    connector = SpikeConnector(StreamQuery(name=info.name()), UNITS, min_known_share=0.5)
    connector.start()
    wait_for("the stream", lambda: connector._found)
    connector.bundle_units = ("7/0", "8/0")
    assert connector.tend(None, pylsl.local_clock()) is None
    assert "is this the right bundle" in wait_for("the refusal", lambda: connector.problem)
    assert connector.tend(None, pylsl.local_clock()) is None
    connector.stop()
    del outlet
