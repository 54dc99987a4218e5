"""A stream recorded live and the XDF file of the same stream give the same session."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pylsl
import pytest

from decoder.errors import SessionError, StreamError
from streaming.columns import NO_UNIT
from streaming.inlets.kinematics import find_kinematics
from streaming.inlets.spikes import StreamQuery
from streaming.recording.outlets import spikes_info
from streaming.recording.record import Recorder, RecordSettings
from streaming.sessions.session import Session
from tests import xdf_writer
from tests.rig import DEADLINE_S, wait_for
from training.importers import import_recording

N = 1000
LABELS = ["pos_x", "pos_y", "vel_x", "vel_y"]
ANGLE = 2 * np.pi * np.arange(N) / 500
POS = 0.05 * np.column_stack([np.cos(ANGLE), np.sin(ANGLE)])
VEL = 0.05 * 2 * np.pi / 5 * np.column_stack([-np.sin(ANGLE), np.cos(ANGLE)])
SPIKES = ([[0, 0], [1, 0]] * N)[: N - 1]


@dataclass
class Rig:
    """Two outlets and their data: ten seconds of a circular movement, sampled at 100 Hz."""

    spikes: pylsl.StreamInfo
    kinematics: pylsl.StreamInfo
    scale: float

    def __post_init__(self) -> None:
        self.times = pylsl.local_clock() - 12.0 + 0.01 * np.arange(N)
        self.spike_times = self.times[:-1] + 0.005
        self.samples = self.scale * np.column_stack([POS, VEL])[:, -len(self.labels) :]

    @property
    def labels(self) -> list[str]:
        return LABELS[-self.kinematics.channel_count() :]

    def record(self, folder: Path) -> Path:
        """Send everything, and return the live recording."""
        spikes, kinematics = pylsl.StreamOutlet(self.spikes), pylsl.StreamOutlet(self.kinematics)
        query = StreamQuery(name=self.spikes.name())
        settings = RecordSettings(
            spikes=query, kinematics=self.kinematics.name(), markers=f"{query.name}-none"
        )
        recorder = Recorder(folder, "day", settings)
        recorder.start()
        with recorder:
            for outlet in (spikes, kinematics):
                assert outlet.wait_for_consumers(DEADLINE_S)
            kinematics.push_chunk(self.samples.tolist(), self.times.tolist())
            spikes.push_chunk(SPIKES, self.spike_times.tolist())
            wait_for(
                "all of it",
                lambda: recorder.poll() or (recorder.n_samples, recorder.n_spikes) == (N, N - 1),
            )
        return recorder.path

    def xdf(self, folder: Path) -> Path:
        """Write the same data as LabRecorder would."""
        streams = [
            xdf_writer.Stream(
                self.spikes.as_xml(), self.spike_times, np.array(SPIKES, dtype="<i4")
            ),
            xdf_writer.Stream(self.kinematics.as_xml(), self.times, self.samples),
        ]
        return xdf_writer.write(folder / "day.xdf", streams)


def rig(units: list[str], scale: float = 1.0, kind: str = "Kinematics") -> Rig:
    """A rig with a channel per entry of `units`; an empty entry means no unit."""
    name = f"same-{time.time_ns()}"
    info = pylsl.StreamInfo(f"{name}-k", kind, len(units), 100.0, pylsl.cf_double64, f"{name}-k")
    info.set_channel_labels(LABELS[-len(units) :])
    if any(units):
        info.set_channel_units(units)
    return Rig(spikes_info(f"{name}-s", f"{name}-s", ["a", "b"]), info, scale)


def assert_same(live: Session, file: Session) -> None:
    assert live.unit_ids == file.unit_ids
    np.testing.assert_allclose(live.cursor_vel, VEL, atol=1e-12)
    np.testing.assert_allclose(file.cursor_vel, VEL, atol=1e-12)
    for one, other in (
        (live.spike_times, file.spike_times),
        (live.cursor_times, file.cursor_times),
        (live.domain, file.domain),
    ):
        np.testing.assert_allclose(one, other, atol=2e-3)


@pytest.mark.parametrize(
    ("units", "scale", "kind"),
    [
        (["", "", "", ""], 1.0, "Kinematics"),
        (["", ""], 1.0, "HandVelocity"),
        (["cm", "cm", "cm/s", "cm/s"], 100.0, "Kinematics"),
    ],
    ids=["unnamed", "velocity-unnamed", "cm"],
)
def test_a_stream_without_units_is_in_metres_live_and_in_a_file(
    tmp_path: Path, units: list[str], scale: float, kind: str
) -> None:
    sent = rig(units, scale, kind)
    live, file = (import_recording(path) for path in (sent.record(tmp_path), sent.xdf(tmp_path)))
    assert_same(live, file)
    if len(units) == 4:
        np.testing.assert_allclose(live.cursor_pos, file.cursor_pos, atol=1e-12)
    for session in (live, file):
        assert (NO_UNIT in session.notes) == (not any(units))


def test_a_stream_without_units_too_large_for_metres_needs_a_unit_live_and_in_a_file(
    tmp_path: Path,
) -> None:
    sent = rig(["", "", "", ""], scale=100.0)
    paths = sent.record(tmp_path), sent.xdf(tmp_path)
    for path in paths:
        with pytest.raises(SessionError, match=r"too much for a hand.*--unit"):
            import_recording(path)
    live, file = (import_recording(path, unit="cm") for path in paths)
    assert_same(live, file)
    np.testing.assert_allclose(live.cursor_pos, file.cursor_pos, atol=1e-12)


@pytest.mark.parametrize("units", [["pixels"] * 4, ["unknown"] * 4, ["cm", "cm", "", ""]])
def test_a_stream_in_pixels_or_with_partial_units_is_refused_live_and_in_a_file(
    tmp_path: Path, units: list[str]
) -> None:
    sent = rig(units)
    outlet = pylsl.StreamOutlet(sent.kinematics)
    with pytest.raises(StreamError, match=r"is in pixels|lacks units"):
        find_kinematics(sent.kinematics.name(), DEADLINE_S)
    del outlet
    with pytest.raises(SessionError, match="--unit"):
        import_recording(sent.xdf(tmp_path))
