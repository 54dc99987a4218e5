"""Timing of a replay as its consumers see it: mapping, chunks, speed, loop, recording."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pylsl
import pytest

from decoder.errors import SessionError, SettingsError
from streaming.recording.outlets import MAX_CHUNK_S
from streaming.recording.replay import (
    Mapping,
    Replay,
    ReplaySettings,
    kinematics_info,
    markers_info,
    spikes_info,
)
from streaming.sessions.session import Session
from tests import xdf_writer
from tests.rig import DEADLINE_S, Pace, wait_for
from training.data.simulate import simulate
from training.importers import import_recording


@pytest.fixture(scope="module")
def session() -> Session:
    made = simulate(n_units=30, minutes=1.0, subject=2, seed=5)
    return replace(made, session_id="replayed", unit_ids=tuple(f"u{i}" for i in range(30)))


class Received:
    """Inlets on the three streams of a replay, and the stamps and values they received."""

    def __init__(self, prefix: str) -> None:
        self.inlets = {}
        for kind in ("spikes", "kinematics", "markers"):
            found = wait_for(
                kind, lambda k=kind: pylsl.resolve_byprop("name", f"{prefix}-{k}", timeout=0.5)
            )
            self.inlets[kind] = pylsl.StreamInlet(found[0], max_buflen=4000)
            self.inlets[kind].open_stream(timeout=DEADLINE_S)
        self.parts = {kind: ([], [], []) for kind in self.inlets}

    def pull(self) -> None:
        for kind, inlet in self.inlets.items():
            values, stamps = inlet.pull_chunk(timeout=0.0, max_samples=8192)
            if stamps:
                self.parts[kind][0].extend(stamps)
                self.parts[kind][1].extend(values)
                self.parts[kind][2].extend([pylsl.local_clock()] * len(stamps))

    def stamps(self, kind: str) -> np.ndarray:
        return np.array(self.parts[kind][0])

    def values(self, kind: str) -> list:
        return self.parts[kind][1]

    def arrivals(self, kind: str) -> np.ndarray:
        return np.array(self.parts[kind][2])


def play(session: Session, until: Callable[[Received], bool] | None = None, **settings) -> tuple:
    """Play in a thread. Returns the received data, and the mapping of every round."""
    prefix = f"{session.session_id}-{np.random.default_rng().integers(2**40)}"
    replay = Replay(session, ReplaySettings(name_prefix=prefix, **settings))
    mappings: list[Mapping] = []
    received = Received(prefix)
    thread = threading.Thread(target=replay.play, args=(mappings.append,))
    thread.start()
    while thread.is_alive():
        received.pull()
        if until and until(received):
            replay.should_stop = True
        thread.join(0.001)
    received.pull()
    return received, mappings


def test_every_event_has_its_recorded_time_mapped_to_lsl_time(session: Session) -> None:
    received, (mapping,) = play(session, split="all", seconds=4.0, lead_s=0.5)
    part = session.spikes_between(mapping.recorded_start, mapping.recorded_start + 4.0)
    np.testing.assert_allclose(
        received.stamps("spikes"), mapping.to_lsl(session.spike_times[part]), rtol=0, atol=1e-9
    )
    assert [channel for channel, _ in received.values("spikes")] == list(session.spike_units[part])
    moved = session.cursor_times < mapping.recorded_start + 4.0
    np.testing.assert_allclose(
        received.stamps("kinematics"),
        mapping.to_lsl(session.cursor_times[moved]),
        rtol=0,
        atol=1e-9,
    )
    np.testing.assert_array_equal(
        np.array(received.values("kinematics"))[:, 2:], session.cursor_vel[moved]
    )
    assert received.values("markers")[0] == ["trial_start 0"]


@pytest.mark.timing
def test_no_event_is_early_and_few_are_late(session: Session) -> None:
    with Pace() as pace:
        received, _ = play(session, seconds=4.0, lead_s=0.5)
    late = received.arrivals("spikes") - received.stamps("spikes")
    assert late.min() > 0
    assert np.median(late) < 4 * MAX_CHUNK_S + pace.worst_s


@pytest.mark.parametrize("speed", [0.5, 4.0])
def test_speed_scales_the_stamps(session: Session, speed: float) -> None:
    received, (mapping,) = play(session, seconds=2.0 * speed, speed=speed, lead_s=0.5)
    stamps = received.stamps("kinematics")
    recorded = mapping.to_recorded(stamps)
    moved = session.cursor_times < mapping.recorded_start + 2.0 * speed
    np.testing.assert_allclose(recorded, session.cursor_times[moved], atol=1e-9)
    assert np.ptp(stamps) == pytest.approx(2.0, abs=0.1)


def test_a_loop_is_seamless(session: Session) -> None:
    received, mappings = play(
        session, until=lambda h: len(h.stamps("kinematics")) > 350, seconds=1.0, loop=True,
        lead_s=0.5,
    )  # fmt: skip
    assert len(mappings) >= 3
    starts = np.array([mapping.lsl_start for mapping in mappings])
    np.testing.assert_allclose(np.diff(starts), 1.0, atol=1e-9)  # no drift from round to round
    np.testing.assert_allclose(np.diff(received.stamps("kinematics")), 0.01, atol=1e-6)


def test_an_hour_of_stamps_drifts_less_than_a_millisecond() -> None:
    mapping = Mapping(lsl_start=1e6, recorded_start=0.0, recorded_end=3600.0, speed=1.0)
    recorded = np.array([0.0, 1800.0, 3600.0])
    np.testing.assert_allclose(mapping.to_lsl(recorded) - 1e6, recorded, atol=1e-6)


def test_a_recorded_replay_can_be_imported(session: Session, tmp_path: Path) -> None:
    """An XDF file of the live streams, as LabRecorder writes it, equals the replayed session."""
    received, (mapping,) = play(session, lead_s=0.5, speed=10.0)
    infos = {"spikes": spikes_info, "kinematics": kinematics_info, "markers": markers_info}
    streams = [
        xdf_writer.Stream(
            make(session, "live").as_xml(),
            received.stamps(kind),
            [label for (label,) in received.values(kind)]
            if kind == "markers"
            else np.array(
                received.values(kind), dtype=np.int32 if kind == "spikes" else np.float64
            ),
        )
        for kind, make in infos.items()
    ]
    path = xdf_writer.write(tmp_path / "live.xdf", streams)
    imported = import_recording(
        path, velocity="none"
    )  # at ten times the speed, velocity doesn't match position
    played = session.spikes_between(session.domain[0, 0], session.domain[-1, 1])
    assert imported.unit_ids == session.unit_ids
    np.testing.assert_array_equal(imported.spike_units, session.spike_units[played])
    np.testing.assert_allclose(
        mapping.to_recorded(imported.spike_times), session.spike_times[played], atol=1e-6
    )


@pytest.mark.parametrize("wrong", [{"speed": 0.0}, {"speed": -1.0}, {"seconds": 0.0}])
def test_invalid_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match="expected more than 0"):
        ReplaySettings(**wrong)


def test_a_missing_split_is_refused(session: Session) -> None:
    with pytest.raises(SessionError, match="no test domain"):
        Replay(replace(session, test_domain=np.empty((0, 2))), ReplaySettings(split="test"))


def test_streams_end_with_their_replay(session: Session) -> None:
    """Not when the garbage collector comes: a later replay of the same name would be one of two."""
    name = f"ended-{np.random.default_rng().integers(2**40)}"
    gc.disable()
    try:
        replay = Replay(session, ReplaySettings(name_prefix=name))
        assert len(pylsl.resolve_byprop("name", f"{name}-spikes", timeout=5.0)) == 1
        del replay
        assert not pylsl.resolve_byprop("name", f"{name}-spikes", timeout=1.0)
    finally:
        gc.enable()
