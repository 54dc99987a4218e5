"""Excluded units: their spikes never reach a decoder, whichever decoder and stream is in use."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import pylsl
import pytest

from clients.harness.daemon import free_port
from clients.subscriber import CursorSubscriber
from decoder.bundles.bundle import Bundle
from decoder.errors import StreamError
from decoder.runtimes.base import Runtime
from decoder.runtimes.opening import open_runtime
from streaming.daemon.commands import handle, swap, units_of
from streaming.daemon.settings import DaemonSettings
from streaming.inlets.spikes import SpikeInlet
from streaming.recording.outlets import spikes_info
from streaming.units import EXCLUDED, MAX_EXCLUDED, UNKNOWN, UnitMatch, mark_of, too_many_excluded
from streaming.wire import control
from streaming.wire.control import ControlClient
from tests.rig import DEADLINE_S, daemon, frames_until, running, wait_for
from tests.streaming.scripted_rig import TICK_S, Rig
from tests.streaming.test_live import is_decoding, replay, stream_of
from tests.streaming.test_swap import changed, status_after


class Reference:
    """A decoder that gets a session's spikes without some units, on a rig's clock."""

    def __init__(self, rig: Rig, bundle: Bundle, without: set[str]) -> None:
        self.runtime: Runtime = open_runtime(bundle, epoch=rig.clock.now)
        self.match = UnitMatch(rig.units, bundle.manifest.unit_ids)
        self.without = [rig.units.index(unit) for unit in without]

    def append(self, times: np.ndarray, units: np.ndarray) -> None:
        index = self.match(units)
        kept = ~np.isin(units, self.without) & (index != UNKNOWN)
        self.runtime.append(times[kept], index[kept])


def play(rig: Rig, tiny, seconds: float, *references: Reference, only: Bundle | None = None):
    """Play the session's first seconds; yields each valid frame with each reference's velocity.

    only: play the spikes of its units.
    """
    began, session = rig.clock.now, tiny.session
    played = np.isin(session.unit_ids, only.manifest.unit_ids if only else session.unit_ids)
    while rig.clock.now < began + seconds:
        start = rig.clock.now - began
        part = session.spikes_between(start, start + TICK_S)
        times, units = session.spike_times[part] + began, session.spike_units[part]
        times, units = times[played[units]], units[played[units]]
        for time, unit in zip(times.tolist(), units.tolist(), strict=True):
            rig.send(time, unit=unit)
        for reference in references:
            reference.append(times, units)
        frame = rig.tick()
        if frame.valid:
            yield frame, [one.runtime.decode(frame.window_end) for one in references]


def exclude(rig: Rig, *unit_ids: str) -> str | None:
    return handle(rig.ticker, control.SetExcluded(unit_ids=list(unit_ids)), rig.clock.now)


def busiest(tiny, n: int) -> set[str]:
    """The ids of the `n` units with the most spikes."""
    counts = np.bincount(tiny.session.spike_units, minlength=tiny.session.n_units)
    return {tiny.session.unit_ids[index] for index in np.argsort(counts)[-n:]}


def test_the_velocity_is_that_of_the_spikes_of_the_other_units(tiny) -> None:
    rig, units = Rig(tiny.bundle), busiest(tiny, 3)
    assert exclude(rig, *units) is None
    without, with_all = Reference(rig, tiny.bundle, units), Reference(rig, tiny.bundle, set())
    differs = 0.0
    n_valid = 0
    for frame, (expected, otherwise) in play(rig, tiny, 2.5, without, with_all):
        np.testing.assert_allclose(frame.velocity, expected, atol=1e-6)
        differs = max(differs, float(np.abs(expected - otherwise).max()))
        n_valid += 1
    assert n_valid > 50
    assert differs > 1e-3, "the excluded units matter"
    counters = rig.ticker.admission.counters
    assert counters.excluded > 100
    assert counters.unknown_unit == 0
    rig.close()


@pytest.mark.parametrize("tiny", ["poyo"], indirect=True)  # it forgets all but its window
def test_spikes_in_the_window_leave_with_it_and_return_with_it(tiny) -> None:
    rig, units = Rig(tiny.bundle), busiest(tiny, 3)
    without, with_all = Reference(rig, tiny.bundle, units), Reference(rig, tiny.bundle, set())
    began, window_s = rig.clock.now, rig.ticker.runtime.window_s
    changes = {1.5: units, 3.0: set()}
    seen = set()
    for frame, (excluded, all_of_them) in play(rig, tiny, 5.0, without, with_all):
        at = frame.window_end - began
        for due in [due for due in changes if at >= due]:
            assert exclude(rig, *changes.pop(due)) is None
        expected = None
        if at < 1.5 or at > 3.0 + window_s + TICK_S:
            expected = all_of_them
        elif 1.5 + window_s + TICK_S < at < 3.0:
            expected = excluded
        if expected is not None:
            np.testing.assert_allclose(frame.velocity, expected, atol=1e-6)
            seen.add(expected is excluded)
    assert seen == {True, False}
    rig.close()


def test_a_swap_keeps_the_exclusion_and_leaves_out_their_recent_spikes(
    tiny, tmp_path: Path
) -> None:
    other = changed(tiny, tmp_path, drop=5)
    rig, units = Rig(tiny.bundle), busiest(tiny, 2) & set(other.manifest.unit_ids)
    assert units
    assert exclude(rig, *units) is None
    reference = Reference(rig, other, units)
    began = rig.clock.now
    compared = 0
    for frame, (expected,) in play(rig, tiny, 3.0, reference, only=other):
        if frame.window_end > began + 1.5 and rig.ticker.runtime.bundle is tiny.bundle:
            current = rig.ticker.runtime
            swapped = open_runtime(other, epoch=0.0, settings=current.settings, graph_from=current)
            assert swap(rig.ticker, swapped, rig.clock.now) is None
        elif frame.decoder == other.manifest.decoder_id:
            np.testing.assert_allclose(frame.velocity, expected, atol=1e-5)
            compared += 1
    assert compared > 50
    rig.close()


@pytest.mark.parametrize("how", ["a lost sender", "another input"])
def test_a_new_inlet_keeps_the_exclusion(tiny, how: str) -> None:
    rig, units = Rig(tiny.bundle), busiest(tiny, 3)
    assert exclude(rig, *units) is None
    rig.live(1.0)
    if how == "a lost sender":
        rig.inlet.breaks = StreamError("gone")
    else:
        command = control.SetInput(kind="Spikes", name="elsewhere")
        assert handle(rig.ticker, command, rig.clock.now) is None
    rig.tick()
    assert rig.ticker.inlet is None
    rig.connect()
    rig.tick()
    reference = Reference(rig, tiny.bundle, units)
    velocities = list(play(rig, tiny, 2.0, reference))
    assert len(velocities) > 30
    for frame, (expected,) in velocities:
        np.testing.assert_allclose(frame.velocity, expected, atol=1e-6)
    rig.close()


def test_the_last_known_unit_can_not_be_excluded(tiny, tmp_path: Path) -> None:
    rig = Rig(tiny.bundle)
    known = list(rig.units)
    for _ in range(2):  # before and after the stream is open
        problem = exclude(rig, *known, "stranger")
        assert f"all {len(known)} units that the decoder knows" in str(problem)
        assert not rig.ticker.excluded
        rig.live(0.1)
        assert rig.ticker.inlet is not None
    few = changed(tiny, tmp_path, drop=len(known) - 2)
    assert exclude(rig, *few.manifest.unit_ids) is None
    swapped = open_runtime(few, epoch=0.0, settings=rig.ticker.runtime.settings)
    rig.ticker.settings = rig.ticker.settings.model_copy(update={"min_known_share": 0.0})
    assert "all 2 units" in str(swap(rig.ticker, swapped, rig.clock.now))
    assert rig.ticker.runtime is not swapped
    rig.close()


def test_the_set_is_bounded(tiny) -> None:
    rig = Rig(tiny.bundle)
    assert "expected at most 100,000" in str(exclude(rig, *(str(i) * 400 for i in range(999))))
    assert too_many_excluded([str(i) for i in range(MAX_EXCLUDED)]) is None
    assert "expected at most 1,000" in str(too_many_excluded(list(map(str, range(1001)))))
    with pytest.raises(ValueError, match="expected at most 1,000"):
        DaemonSettings(excluded=tuple(map(str, range(1001))))
    rig.close()


def test_units_are_listed_with_what_the_daemon_does_with_them(tiny) -> None:
    rig = Rig(tiny.bundle)
    assert units_of(rig.ticker) == []
    first = rig.units[0]
    assert exclude(rig, first, "stranger", "elsewhere") is None
    rig.live(0.1)
    units = units_of(rig.ticker)
    assert [unit.id for unit in units] == [*rig.units, "stranger"]
    assert [unit.id for unit in units if unit.excluded] == [first, "stranger"]
    assert [unit.id for unit in units if not unit.known] == ["stranger"]
    assert {unit.fault for unit in units} == {None}
    rig.close()


def test_a_match_tells_excluded_units_from_unknown_ones() -> None:
    match = UnitMatch(["a", "b", "c", "d"], ["b", "c", "e"], {"c", "d", "z"})
    assert match(np.array([0, 1, 2, 3, UNKNOWN])).tolist() == [
        UNKNOWN, 0, EXCLUDED, EXCLUDED, UNKNOWN,
    ]  # fmt: skip
    assert (match.n_known, match.n_used, match.n_unknown, match.n_missing) == (2, 1, 2, 1)
    assert mark_of({"a", "b"}) == mark_of({"b", "a"}) != mark_of({"a"}) != mark_of(set()) == ""


def test_a_stream_whose_known_units_are_all_excluded_is_refused(tiny) -> None:
    name = f"excluded-{uuid.uuid4().hex[:8]}"
    known = tiny.bundle.manifest.unit_ids
    outlet = pylsl.StreamOutlet(spikes_info(name, name, [*known[:30], "stranger"]))
    (info,) = pylsl.resolve_byprop("name", name, timeout=DEADLINE_S)
    with pytest.raises(StreamError, match="all 30 units that the decoder knows"):
        SpikeInlet(info, known, excluded=frozenset(known[:30]))
    SpikeInlet(info, known, min_known_share=0.5, excluded=frozenset(known[:29])).close()
    del outlet


@pytest.mark.parametrize("tiny", ["poyo"], indirect=True)
def test_a_daemon_excludes_units_between_two_ticks(tiny, tmp_path: Path) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with (
        daemon(tmp_path, tiny.bundle.path, stream_of(tiny), "--control", address) as (_, cursors),
        CursorSubscriber(cursors, max_age_s=None) as cursor,
        running(tmp_path / "replay.log", *replay(tiny)),
    ):
        client = ControlClient(address, timeout_s=DEADLINE_S)
        frames_until(cursor, is_decoding)
        chosen = sorted(busiest(tiny, 2))
        status = status_after(client, control.SetExcluded(unit_ids=[*chosen, "not here"]))
        assert (status.excluded_units, status.excluded_mark) == (3, mark_of({*chosen, "not here"}))
        wait_for(
            "excluded spikes",
            lambda: status_after(client, control.GetStatus()).events["excluded"] > 10,
        )
        units = client.ask(control.GetUnits()).units
        assert units is not None
        assert [unit.id for unit in units] == list(tiny.session.unit_ids)
        assert sorted(unit.id for unit in units if unit.excluded) == chosen
        refused = client.ask(control.SetExcluded(unit_ids=list(tiny.session.unit_ids)))
        assert "it would decode silence" in str(refused.problem)
        assert refused.status.excluded_units == 3
        assert refused.units is None
        assert frames_until(cursor, is_decoding)[-1].valid
        client.close()
