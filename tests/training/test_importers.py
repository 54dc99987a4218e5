"""Imports of real and synthetic NWB files, and of XDF files with our own streams."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from pynwb import NWBHDF5IO, NWBFile, TimeSeries
from pynwb.behavior import Position, SpatialSeries

from decoder.errors import ImportFailedError, SessionError
from streaming.recording import replay
from streaming.sessions import format as sessions
from streaming.sessions.intervals import duration_s
from streaming.sessions.session import Session
from tests import xdf_writer
from training.data.simulate import simulate
from training.importers import import_recording

END_S = 60.0
TIMES = np.arange(0.0, END_S, 0.02)
POS = 0.05 * np.stack([np.sin(TIMES), np.cos(TIMES)], axis=1)
VEL = 0.05 * np.stack([np.cos(TIMES), -np.sin(TIMES)], axis=1)
# Not periodic at 50 or 60 Hz, as mains hum would be.
SPIKES = tuple(np.arange(0.1 + 0.01 * unit, END_S, 0.2537) for unit in range(3))

lengths_differ = pytest.mark.filterwarnings("ignore:.*[Ll]ength of data.*:UserWarning")


def write_nwb(
    path: Path,
    *,
    spikes: tuple[np.ndarray, ...] = SPIKES,
    pos: TimeSeries | None = None,
    vel: TimeSeries | None = None,
    more: Callable[[NWBFile], None] = lambda nwb: None,
) -> Path:
    """Write a small file with series named as in DANDI 000688."""
    start = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    nwb = NWBFile(
        session_description="test", identifier="t", session_start_time=start, session_id="small"
    )
    for times in spikes:
        nwb.add_unit(spike_times=times)
    behavior = nwb.create_processing_module("behavior", "cursor")
    if pos is not None:
        behavior.add(Position(spatial_series=pos, name="Position"))
    if vel is not None:
        behavior.add(vel)
    more(nwb)
    with NWBHDF5IO(str(path), "w") as io:
        io.write(nwb)
    return path


def position(data: np.ndarray = POS, times: np.ndarray = TIMES, name: str = "cursor_pos"):
    return SpatialSeries(name=name, data=data, timestamps=times, reference_frame="screen centre")


def velocity(data: np.ndarray = VEL, times: np.ndarray = TIMES, name: str = "cursor_vel", **more):
    return TimeSeries(name=name, data=data, timestamps=times, unit="m/s", **more)


def real(folder: Path, name: str) -> Session:
    if not (folder / name).is_file():
        pytest.skip(f"no {name} in {folder}")
    return import_recording(folder / name)


def test_reach_a_imports_with_its_units_and_trials(recordings: Path) -> None:
    session = real(recordings, "reach_a.nwb")
    assert session.n_units == 195
    assert "1 units without spikes were left out" in session.notes
    assert duration_s(session.domain) / 60 == pytest.approx(12.9, abs=0.1)
    assert len(session.trials.intervals) == 180


def test_reach_b_imports_with_its_gaps(recordings: Path) -> None:
    session = real(recordings, "reach_b.nwb")
    assert session.n_units == 84
    assert len(session.domain) == 286
    assert "285 gaps in the kinematics; no window spans a gap" in session.notes


@pytest.mark.parametrize("name", ["reach_a.nwb", "reach_b.nwb"])
def test_domain_boundaries_of_real_recordings_cut_no_trial(recordings: Path, name: str) -> None:
    session = real(recordings, name)
    start, end = session.trials.intervals.T
    for cut in (session.valid_domain[0, 0], session.test_domain[0, 0]):
        assert not ((start + 1e-6 < cut) & (cut < end - 1e-6)).any()
    shares = [duration_s(session.intervals(part)) for part in ("train", "valid", "test")]
    assert np.array(shares) / sum(shares) == pytest.approx([0.7, 0.1, 0.2], abs=0.01)


@pytest.mark.parametrize("name", ["reach_a.nwb", "reach_b.nwb"])
def test_a_real_recording_is_unchanged_after_saving_and_loading(
    recordings: Path, name: str, tmp_path: Path
) -> None:
    session = real(recordings, name)
    loaded = sessions.load(sessions.save(session, tmp_path))
    np.testing.assert_array_equal(loaded.spike_times, session.spike_times)
    np.testing.assert_array_equal(loaded.cursor_vel, session.cursor_vel)
    np.testing.assert_array_equal(loaded.test_domain, session.test_domain)


def test_a_truncated_real_recording_is_refused(recordings: Path, tmp_path: Path) -> None:
    source = recordings / "reach_a.nwb"
    if not source.is_file():
        pytest.skip(f"no reach_a.nwb in {recordings}")
    content = source.read_bytes()
    (tmp_path / "cut.nwb").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImportFailedError, match="may be truncated"):
        import_recording(tmp_path / "cut.nwb")


def test_a_small_nwb_file_imports_completely(tmp_path: Path) -> None:
    session = import_recording(write_nwb(tmp_path / "s.nwb", pos=position(), vel=velocity()))
    assert session.session_id == "small"
    assert session.n_units == 3
    np.testing.assert_array_equal(session.cursor_pos, POS)
    np.testing.assert_array_equal(session.cursor_vel, VEL)
    assert session.notes == ("frame of reference: cursor_pos 'screen centre'",)
    assert session.recorded_at == datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)


def test_conversion_and_offset_give_si_units(tmp_path: Path) -> None:
    scaled = velocity(VEL * 100 - 3.0, conversion=0.01, offset=0.03)
    session = import_recording(write_nwb(tmp_path / "s.nwb", vel=scaled))
    np.testing.assert_allclose(session.cursor_vel, VEL, atol=1e-12)


def test_a_file_without_units_is_refused(tmp_path: Path) -> None:
    path = write_nwb(tmp_path / "s.nwb", spikes=(), vel=velocity())
    with pytest.raises(ImportFailedError, match="no units; expected a units table"):
        import_recording(path)


def test_units_without_spike_times_are_refused(tmp_path: Path) -> None:
    def add(nwb: NWBFile) -> None:
        nwb.add_unit_column("quality", "how good")
        nwb.add_unit(quality=1.0)

    path = write_nwb(tmp_path / "s.nwb", spikes=(), vel=velocity(), more=add)
    with pytest.raises(ImportFailedError, match=r"no spike_times, only \['quality'\]"):
        import_recording(path)


def test_a_file_without_kinematics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportFailedError, match="no cursor kinematics; expected one of"):
        import_recording(write_nwb(tmp_path / "s.nwb"))


@lengths_differ
@pytest.mark.parametrize("which", ["pos", "vel"])
def test_kinematics_shorter_than_their_timestamps_are_refused(tmp_path: Path, which: str) -> None:
    path = write_nwb(tmp_path / "s.nwb", pos=position(), vel=velocity())
    name = {"pos": "Position/cursor_pos", "vel": "cursor_vel"}[which]
    with h5py.File(path, "r+") as file:
        data = file[f"processing/behavior/{name}/data"]
        short = file.create_dataset("short", data=data[:-5])
        short.attrs.update(data.attrs)
        del file[f"processing/behavior/{name}/data"]
        file.move("short", f"processing/behavior/{name}/data")
    with pytest.raises(ImportFailedError, match="2995 samples but 3000 timestamps"):
        import_recording(path)


def test_position_with_other_timestamps_is_interpolated_and_noted(tmp_path: Path) -> None:
    path = write_nwb(tmp_path / "s.nwb", pos=position(POS[::2], TIMES[::2]), vel=velocity())
    session = import_recording(path)
    np.testing.assert_allclose(session.cursor_pos[:-1], POS[:-1], atol=1e-4)
    assert any("position was interpolated" in note for note in session.notes)


def test_samples_with_nan_are_left_out_and_noted(tmp_path: Path) -> None:
    data = VEL.copy()
    data[100:103] = np.nan
    session = import_recording(write_nwb(tmp_path / "s.nwb", vel=velocity(data)))
    assert len(session.cursor_times) == len(TIMES) - 3
    assert "3 kinematics samples with NaN were left out" in session.notes


def test_a_long_run_of_nan_becomes_a_gap(tmp_path: Path) -> None:
    data = VEL.copy()
    data[1000:1100] = np.nan
    session = import_recording(write_nwb(tmp_path / "s.nwb", vel=velocity(data)))
    np.testing.assert_allclose(session.domain, [[-0.01, 19.99], [21.99, 59.99]])
    assert "1 gaps in the kinematics; no window spans a gap" in session.notes


def test_kinematics_with_only_nan_are_refused(tmp_path: Path) -> None:
    path = write_nwb(tmp_path / "s.nwb", vel=velocity(np.full_like(VEL, np.nan)))
    with pytest.raises(ImportFailedError, match="0 usable samples of kinematics"):
        import_recording(path)


def test_kinematics_with_one_axis_are_refused(tmp_path: Path) -> None:
    path = write_nwb(tmp_path / "s.nwb", vel=velocity(VEL[:, 0]))
    with pytest.raises(ImportFailedError, match=r"cursor_vel has shape \(3000,\)"):
        import_recording(path)


def test_unsorted_spikes_are_sorted_and_noted(tmp_path: Path) -> None:
    path = write_nwb(tmp_path / "s.nwb", spikes=(SPIKES[0][::-1], SPIKES[1]), vel=velocity())
    session = import_recording(path)
    np.testing.assert_array_equal(session.spike_times[session.spike_units == 0], SPIKES[0])
    assert "spikes of some units were out of order and were sorted" in session.notes


def test_empty_units_are_left_out_and_noted(tmp_path: Path) -> None:
    spikes = (SPIKES[0], np.empty(0), SPIKES[2], np.array([np.nan]))
    session = import_recording(write_nwb(tmp_path / "s.nwb", spikes=spikes, vel=velocity()))
    assert session.unit_ids == ("0", "2")
    assert "2 units without spikes were left out" in session.notes
    assert "1 spikes without a finite time were left out" in session.notes


def test_a_file_with_only_empty_units_is_refused(tmp_path: Path) -> None:
    path = write_nwb(tmp_path / "s.nwb", spikes=(np.empty(0), np.empty(0)), vel=velocity())
    with pytest.raises(ImportFailedError, match="none of the 2 units has a spike"):
        import_recording(path)


def test_spikes_on_another_clock_are_refused(tmp_path: Path) -> None:
    path = write_nwb(tmp_path / "s.nwb", spikes=(SPIKES[0] + 1e6,), vel=velocity())
    with pytest.raises(ImportFailedError, match="are both on one clock"):
        import_recording(path)


def test_missing_velocity_is_computed_as_the_gradient_and_noted(tmp_path: Path) -> None:
    session = import_recording(write_nwb(tmp_path / "s.nwb", pos=position()))
    np.testing.assert_allclose(session.cursor_vel[1:-1], VEL[1:-1], atol=1e-5)
    assert "velocity is the gradient of position" in session.notes


def test_series_named_by_option_are_used(tmp_path: Path) -> None:
    series = {"pos": position(name="wrist"), "vel": velocity(name="wrist_speed")}
    path = write_nwb(tmp_path / "s.nwb", **series)
    session = import_recording(path, position="wrist", velocity="wrist_speed")
    np.testing.assert_array_equal(session.cursor_pos, POS)
    np.testing.assert_array_equal(session.cursor_vel, VEL)


@pytest.mark.parametrize("option", ["position", "velocity"])
def test_an_unknown_series_is_refused_and_the_existing_ones_are_listed(
    tmp_path: Path, option: str
) -> None:
    path = write_nwb(tmp_path / "s.nwb", pos=position(), vel=velocity())
    with pytest.raises(ImportFailedError, match=r"'elbow' .* \['cursor_pos', 'cursor_vel'\]"):
        import_recording(path, **{option: "elbow"})


def test_trials_without_an_end_are_left_out(tmp_path: Path) -> None:
    def add(nwb: NWBFile) -> None:
        for start, stop in ((1.0, 4.0), (5.0, np.nan), (9.0, 12.0)):
            nwb.add_trial(start_time=start, stop_time=stop)

    session = import_recording(write_nwb(tmp_path / "s.nwb", vel=velocity(), more=add))
    np.testing.assert_array_equal(session.trials.intervals, [[1.0, 4.0], [9.0, 12.0]])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
def test_a_truncated_nwb_file_is_refused(tmp_path: Path, share: float) -> None:
    path = write_nwb(tmp_path / "s.nwb", vel=velocity())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ImportFailedError, match="not a readable NWB file"):
        import_recording(path)


def test_a_text_file_is_not_an_nwb_file(tmp_path: Path) -> None:
    (tmp_path / "s.nwb").write_text("unit,time\n1,0.5\n")
    with pytest.raises(ImportFailedError, match="not a readable NWB file"):
        import_recording(tmp_path / "s.nwb")


def test_a_plain_hdf5_file_is_not_an_nwb_file(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "s.nwb", "w") as file:
        file["data"] = np.arange(3)
    with pytest.raises(ImportFailedError, match="not a readable NWB file"):
        import_recording(tmp_path / "s.nwb")


@pytest.mark.parametrize("name", ["none.nwb", "none.xdf"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImportFailedError, match="no such file"):
        import_recording(tmp_path / name)


def test_an_unknown_file_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportFailedError, match=r"expected \.nwb, \.xdf or \.h5"):
        import_recording(tmp_path / "s.mat")


@pytest.fixture(scope="module")
def recorded() -> Session:
    return simulate(n_units=14, minutes=1.0, subject=1, seed=5)


def streams_of(session: Session, clock_s: float = 0.0) -> list[xdf_writer.Stream]:
    """Streams of `volition replay` as LabRecorder records them; the sender is `clock_s` behind."""
    events = np.stack([session.spike_units, np.zeros_like(session.spike_units)], axis=1)
    starts, ends = session.trials.intervals.T
    markers = [(t, 1, f"trial_start {i}") for i, t in enumerate(starts)]
    markers = sorted(markers + [(t, 0, f"trial_end {i}") for i, t in enumerate(ends)])
    tracks = (
        (replay.spikes_info, session.spike_times, events.astype("<i4")),
        (
            replay.kinematics_info,
            session.cursor_times,
            np.concatenate([session.cursor_pos, session.cursor_vel], axis=1),
        ),
        (replay.markers_info, np.array([m[0] for m in markers]), [m[2] for m in markers]),
    )
    return [
        xdf_writer.Stream(info(session, "test").as_xml(), times - clock_s, values, clock_s)
        for info, times, values in tracks
    ]


def assert_equal_sessions(imported: Session, original: Session, tolerance_s: float) -> None:
    fired = np.unique(original.spike_units)
    assert imported.unit_ids == tuple(original.unit_ids[unit] for unit in fired)
    for row, unit in enumerate(fired):
        np.testing.assert_allclose(
            imported.spike_times[imported.spike_units == row],
            original.spike_times[original.spike_units == unit],
            atol=tolerance_s,
        )
    np.testing.assert_allclose(imported.cursor_times, original.cursor_times, atol=tolerance_s)
    np.testing.assert_allclose(imported.cursor_pos, original.cursor_pos, atol=1e-9)
    np.testing.assert_allclose(imported.cursor_vel, original.cursor_vel, atol=1e-9)
    np.testing.assert_allclose(
        imported.trials.intervals, original.trials.intervals, atol=tolerance_s
    )


def test_a_recording_of_our_own_streams_equals_the_original(
    recorded: Session, tmp_path: Path
) -> None:
    path = xdf_writer.write(tmp_path / "day.xdf", streams_of(recorded))
    imported = import_recording(path)
    assert_equal_sessions(imported, recorded, tolerance_s=1e-9)
    assert imported.notes == ()


def test_streams_on_another_clock_are_converted_to_the_recorders_clock(
    recorded: Session, tmp_path: Path
) -> None:
    path = xdf_writer.write(tmp_path / "day.xdf", streams_of(recorded, clock_s=812.25))
    assert_equal_sessions(import_recording(path), recorded, tolerance_s=1e-6)


def test_an_imported_xdf_file_saves_and_loads(recorded: Session, tmp_path: Path) -> None:
    imported = import_recording(xdf_writer.write(tmp_path / "day.xdf", streams_of(recorded)))
    loaded = sessions.load(sessions.save(imported, tmp_path))
    assert_equal_sessions(loaded, recorded, tolerance_s=1e-9)


def test_a_file_of_a_killed_recorder_is_imported_with_a_note(
    recorded: Session, tmp_path: Path
) -> None:
    path = xdf_writer.write(tmp_path / "day.xdf", streams_of(recorded), with_footers=False)
    imported = import_recording(path)
    assert len(imported.spike_times) == len(recorded.spike_times)
    assert any("truncated" in note for note in imported.notes)


def test_a_truncated_xdf_file_is_refused_or_its_loss_is_noted(
    recorded: Session, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = xdf_writer.write(tmp_path / "day.xdf", streams_of(recorded))
    content = path.read_bytes()
    for n_bytes in np.linspace(0, len(content) - 1, 40, dtype=int):
        path.write_bytes(content[:n_bytes])
        try:
            imported = import_recording(path)
        except SessionError:
            continue
        assert any("truncated" in note for note in imported.notes), n_bytes
    assert "Traceback" not in capfd.readouterr().err


def test_a_text_file_is_not_an_xdf_file(tmp_path: Path) -> None:
    (tmp_path / "s.xdf").write_text("unit,time\n1,0.5\n")
    with pytest.raises(ImportFailedError, match="not a readable XDF file"):
        import_recording(tmp_path / "s.xdf")


def test_velocity_is_the_gradient_if_only_position_was_streamed(
    recorded: Session, tmp_path: Path
) -> None:
    spikes, kinematics, markers = streams_of(recorded)
    kinematics = replace(kinematics, xml=kinematics.xml.replace("vel_", "grip_"))
    path = xdf_writer.write(tmp_path / "day.xdf", [spikes, kinematics, markers])
    assert "velocity is the gradient of position" in import_recording(path).notes


def test_unknown_channels_are_refused_and_the_existing_ones_are_listed(
    recorded: Session, tmp_path: Path
) -> None:
    path = xdf_writer.write(tmp_path / "day.xdf", streams_of(recorded))
    with pytest.raises(ImportFailedError, match=r"elbow_x and elbow_y; found .*'vel_x', 'vel_y'"):
        import_recording(path, velocity="elbow")


def test_events_of_undescribed_units_are_left_out_and_noted(
    recorded: Session, tmp_path: Path
) -> None:
    spikes, kinematics, markers = streams_of(recorded)
    events = spikes.values.copy()
    events[:7, 0] = 99
    path = xdf_writer.write(
        tmp_path / "day.xdf", [replace(spikes, values=events), kinematics, markers]
    )
    assert "7 events of units that aren't in desc/units were left out" in (
        import_recording(path).notes
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<units>", "<cells>", "desc/units is empty"),
        ("<channel>0</channel>", "<channel />", "unexpected stream descriptions"),
        ("<channel>0</channel>", "", "unexpected stream descriptions"),
        ("<type>Spikes</type>", "<type />", "no stream of type 'Spikes'"),
    ],
)
def test_a_spike_stream_with_an_unexpected_description_is_refused(
    recorded: Session, tmp_path: Path, old: str, new: str, message: str
) -> None:
    spikes, kinematics, markers = streams_of(recorded)
    xml = spikes.xml.replace(old, new).replace(
        "</units>", "</cells>" * ("cells" in new) or "</units>"
    )
    assert xml != spikes.xml
    path = xdf_writer.write(tmp_path / "day.xdf", [replace(spikes, xml=xml), kinematics, markers])
    with pytest.raises(ImportFailedError, match=message):
        import_recording(path)


@pytest.mark.parametrize(
    ("name", "stream"),
    [
        ("clock_resets.xdf", r"BioSemi \(EEG\)"),
        ("empty_streams.xdf", r"ctrl \(control\)"),
        ("minimal.xdf", r"SendDataC \(EEG\)"),
        ("switch_example.xdf", r"g\.USBamp-1 \(EEG\)"),
    ],
)
def test_a_file_without_spikes_is_refused_and_its_streams_are_listed(
    recordings: Path, name: str, stream: str
) -> None:
    path = recordings / "xdf" / name
    if not path.is_file():
        pytest.skip(f"no {path}")
    with pytest.raises(ImportFailedError, match=f"no stream of type 'Spikes' .*{stream}"):
        import_recording(path)


def test_a_session_in_centimetres_is_converted_to_metres(recorded: Session, tmp_path: Path) -> None:
    in_cm = replace(
        recorded,
        cursor_pos=100.0 * recorded.cursor_pos,
        cursor_vel=100.0 * recorded.cursor_vel,
        trials=replace(recorded.trials, target_pos=100.0 * recorded.trials.target_pos),
    )
    path = sessions.save(in_cm, tmp_path)
    assert any("too fast for m/s" in note for note in sessions.load(path).notes)
    imported = import_recording(path, unit="cm")
    np.testing.assert_allclose(imported.cursor_vel, recorded.cursor_vel, atol=1e-12)
    np.testing.assert_allclose(imported.trials.target_pos, recorded.trials.target_pos, atol=1e-12)
    assert imported.notes == ("kinematics converted from cm",)


def test_an_unknown_unit_of_length_is_refused(recorded: Session, tmp_path: Path) -> None:
    path = sessions.save(recorded, tmp_path)
    for unit in ("furlong", "cm/s", "-1", "nan", "inf", ""):
        with pytest.raises(ImportFailedError, match=f"unit '{unit}'; expected m, cm, mm"):
            import_recording(path, unit=unit)


def test_a_missing_reader_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyxdf", None)
    path = tmp_path / "s.xdf"
    path.touch()
    with pytest.raises(ImportFailedError, match=r"needs pyxdf; install .*'volition\[train\]'"):
        import_recording(path)
