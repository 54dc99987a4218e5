"""Live streams are recorded to disk as a session, even if the recorder is killed."""

from __future__ import annotations

import json
import signal
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pylsl
import pytest

from decoder.errors import SessionError, StreamError
from streaming.inlets.spikes import StreamQuery
from streaming.recording import rigstreams
from streaming.recording.outlets import kinematics_info, spikes_info
from streaming.recording.raw import KINEMATICS_FILE, NO_KINEMATICS, SPIKES_FILE, read_recording
from streaming.recording.record import Recorder, RecordSettings
from streaming.sessions import format as sessions
from streaming.sessions.checks import check
from streaming.sessions.intervals import duration_s
from tests.rig import DEADLINE_S, POLLED_LATE_S, Process, no_kinematics, running, wait_for
from tests.streaming.test_live import stream_of
from training.calibration.labels import relabelled


def record_arguments(tiny, folder: Path, *more: str) -> tuple[str, ...]:
    name = tiny.session.session_id
    return (
        "record", "-o", str(folder), "--name", "today", "--spikes", stream_of(tiny),
        "--kinematics", f"{name}-kinematics", "--markers", f"{name}-markers", *more,
    )  # fmt: skip


one_family = pytest.mark.parametrize("tiny", ["poyo"], indirect=True)  # the decoder doesn't matter


@pytest.fixture
def played(tiny, tmp_path: Path):
    """A replay of the tiny session that starts late enough for a recorder to connect."""
    with running(
        tmp_path / "replay.log", "replay", str(tiny.session_path), "--wait", "--lead", "6"
    ) as replay:
        yield replay


@one_family
def test_a_recording_is_the_session_that_was_played(tiny, played, tmp_path: Path) -> None:
    process = Process(tmp_path / "record.log", *record_arguments(tiny, tmp_path, "--seconds", "8"))
    assert process.popen.wait(DEADLINE_S) == 0, process.output()
    recorded = sessions.load(tmp_path / "today.h5")
    original = tiny.session
    assert recorded.unit_ids == original.unit_ids
    shift = recorded.cursor_times[0] - original.cursor_times[0]
    n = len(recorded.cursor_times)
    assert n >= 700
    np.testing.assert_allclose(recorded.cursor_times - shift, original.cursor_times[:n], atol=2e-3)
    np.testing.assert_allclose(recorded.cursor_vel, original.cursor_vel[:n], atol=1e-9)
    start, end = recorded.cursor_times[[0, -1]]
    part = original.spikes_between(start - shift, end - shift - 0.5)
    there = recorded.spikes_between(start, end - 0.5)
    assert abs((there.stop - there.start) - (part.stop - part.start)) <= 3
    assert recorded.trials is not None
    assert duration_s(recorded.domain) == pytest.approx(end - start, abs=0.05)


@one_family
def test_a_killed_recorder_loses_at_most_a_second(tiny, played, tmp_path: Path) -> None:
    process = Process(tmp_path / "record.log", *record_arguments(tiny, tmp_path))
    folder = tmp_path / "today.recording"
    written: list[tuple[float, float]] = []  # recorded seconds, and when they were read

    def five_seconds() -> bool:
        if (seconds := _seconds_in(folder)) and (not written or seconds != written[-1][0]):
            written.append((seconds, pylsl.local_clock()))
        return seconds > 5.0

    wait_for("5 s", five_seconds)
    longest_s = max(
        b - a for (_, a), (_, b) in pairwise(written)
    )  # longest time between two writes
    killed_at = pylsl.local_clock()
    process.popen.send_signal(signal.SIGKILL)
    process.popen.wait()
    with (folder / SPIKES_FILE).open("ab") as file:
        file.write(b"half a re")  # an incomplete line, as after an interrupted write
    session = read_recording(folder)
    lost_s = max(1.0, 2 * longest_s)
    assert killed_at - session.cursor_times[-1] < lost_s
    assert killed_at - session.spike_times[-1] < lost_s
    check(session)
    process = Process(tmp_path / "again.log", *record_arguments(tiny, tmp_path))
    assert process.popen.wait(DEADLINE_S) == 1
    assert "exists; choose another name" in process.output().replace("\n", " ")


@one_family
def test_an_interrupted_recording_can_be_resumed(tiny, played, tmp_path: Path) -> None:
    name = tiny.session.session_id
    settings = RecordSettings(
        spikes=StreamQuery(name=stream_of(tiny)),
        kinematics=f"{name}-kinematics",
        markers=f"{name}-markers",
    )
    first = Recorder(tmp_path, "today", settings)
    first.start()
    with first:
        first.run(2.0)
    with (tmp_path / "today.recording" / SPIKES_FILE).open("ab") as file:
        file.write(b"half a re")
    again = Recorder(tmp_path, "today", settings, resume=True)
    again.start()
    assert again.labelled_s == pytest.approx(first.labelled_s)
    assert again.n_spikes == first.n_spikes
    with again:
        again.run(4.0)
    session = check(read_recording(tmp_path / "today.recording"))
    assert session.unit_ids == tiny.session.unit_ids
    assert len(session.domain) == 2  # the time between was not recorded
    assert duration_s(session.domain) == pytest.approx(again.labelled_s, abs=0.5)
    assert again.labelled_s >= 4.0
    whole = read_recording(tmp_path / "today.recording", cut=False)
    np.testing.assert_array_equal(whole.train_domain, whole.domain)


def _seconds_in(folder: Path) -> float:
    try:
        times = read_recording(folder).cursor_times
    except SessionError:
        return 0.0
    return float(times[-1] - times[0])


def test_a_rig_without_kinematics_is_refused(tmp_path: Path) -> None:
    name = f"alone-{time.time_ns()}"
    info = pylsl.StreamInfo(name, "SpikeEvents", 2, 0.0, pylsl.cf_int32, name)
    outlet = pylsl.StreamOutlet(info)
    settings = RecordSettings(
        spikes=StreamQuery(name=name), kinematics=f"{name}-kinematics", wait_s=1.0
    )
    recorder = Recorder(tmp_path, "today", settings)
    with pytest.raises(StreamError, match="nothing would label"), recorder:
        recorder.start()
    del outlet
    assert not (tmp_path / "today.recording").exists()


def test_spikes_alone_are_recorded_if_no_kinematics_are_needed(tmp_path: Path) -> None:
    name = f"alone-{time.time_ns()}"
    unit_ids = ["a", "b", "c"]
    outlet = pylsl.StreamOutlet(spikes_info(name, name, unit_ids))
    settings = RecordSettings(spikes=StreamQuery(name=name), needs_kinematics=False)
    no_kinematics()

    def recorded(seconds: float, *, resume: bool = False) -> Recorder:
        with Recorder(tmp_path, "today", settings, resume=resume) as recorder:
            recorder.start()
            assert not recorder.has_kinematics
            recorder.run(
                seconds, lambda _: outlet.push_sample([recorder.n_spikes % 3, 0])
            )  # fmt: skip
        return recorder

    assert 1.0 <= recorded(1.0).labelled_s < 1.0 + POLLED_LATE_S
    again = recorded(2.0, resume=True)
    assert 2.0 <= again.labelled_s < 2.0 + POLLED_LATE_S
    session = read_recording(again.path, cut=False, needs_kinematics=False)
    assert duration_s(session.domain) == pytest.approx(again.labelled_s, abs=0.01)
    assert len(session.domain) == 2, "the pause between both is a gap"
    assert NO_KINEMATICS in session.notes
    assert len(session.spike_times) == again.n_spikes
    assert not session.cursor_vel.any()
    assert sessions.load(sessions.save(session, tmp_path)).unit_ids == tuple(unit_ids)
    with pytest.raises(SessionError, match="0 samples of kinematics"):
        read_recording(again.path)


def test_targets_and_trials_are_recorded(tmp_path: Path) -> None:
    name = f"rig-{time.time_ns()}"
    spikes = pylsl.StreamOutlet(
        pylsl.StreamInfo(f"{name}-s", "SpikeEvents", 2, 0.0, pylsl.cf_int32, f"{name}-s")
    )
    info = pylsl.StreamInfo(f"{name}-k", "Kinematics", 4, 100.0, pylsl.cf_double64, f"{name}-k")
    info.set_channel_labels(["pos_x", "pos_y", "target_x", "target_y"])
    info.set_channel_units(["cm"] * 4)
    kinematics = pylsl.StreamOutlet(info)
    markers = pylsl.StreamOutlet(
        pylsl.StreamInfo(f"{name}-m", "Markers", 1, 0.0, pylsl.cf_string, f"{name}-m")
    )
    settings = RecordSettings(
        spikes=StreamQuery(name=f"{name}-s"), kinematics=f"{name}-k", markers=f"{name}-m"
    )
    recorder = Recorder(tmp_path, "today", settings)
    recorder.start()
    with recorder:
        for outlet in (spikes, kinematics, markers):
            assert outlet.wait_for_consumers(DEADLINE_S)
        begin = pylsl.local_clock() - 10.0
        times = begin + 0.01 * np.arange(1000)
        angle = 2 * np.pi * np.arange(1000) / 500
        target = np.where(np.arange(1000)[:, None] < 500, [[8.0, 0.0]], [[0.0, -8.0]])
        samples = np.column_stack([5 * np.cos(angle), 5 * np.sin(angle), target])
        kinematics.push_chunk(samples.tolist(), times.tolist())
        spikes.push_chunk([[3, 0], [4, 1]] * 400, (begin + 0.012 * np.arange(800)).tolist())
        for i, (a, b) in enumerate([(0.5, 4.5), (5.5, 9.5)]):
            markers.push_sample([f"trial_start {i}"], begin + a)
            markers.push_sample([f"trial_end {i}"], begin + b)
        wait_for(
            "everything",
            lambda: (
                recorder.poll()
                or (recorder.n_markers, recorder.n_samples, recorder.n_spikes) == (4, 1000, 800)
            ),
        )
    session = check(read_recording(recorder.path))
    assert session.unit_ids == ("3/0", "4/1")
    np.testing.assert_allclose(session.trials.target_pos, [[0.08, 0.0], [0.0, -0.08]])
    speed = np.linalg.norm(session.cursor_vel[5:-5], axis=1)
    np.testing.assert_allclose(
        speed, 0.05 * 2 * np.pi / 5, rtol=0.01
    )  # from position: no velocity was sent
    saved = sessions.load(sessions.save(session, tmp_path))
    np.testing.assert_allclose(saved.trials.target_pos, session.trials.target_pos)
    relabelled(saved, "intention")


def spikes_and_velocity(name: str) -> list[pylsl.StreamOutlet]:
    spikes = pylsl.StreamInfo(f"{name}-s", "SpikeEvents", 2, 0.0, pylsl.cf_int32, f"{name}-s")
    kinematics = pylsl.StreamInfo(
        f"{name}-k", "CursorVelocity", 2, 50.0, pylsl.cf_float32, f"{name}-k"
    )
    kinematics.set_channel_labels(["vel_x", "vel_y"])
    return [pylsl.StreamOutlet(spikes), pylsl.StreamOutlet(kinematics)]


def test_streams_that_answer_in_time_may_open_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine, opening takes seconds; a calibration once failed for that reason."""
    monkeypatch.setattr(rigstreams, "LEAST_S", 0.0)
    name = f"busy-{time.time_ns()}"
    outlets = spikes_and_velocity(name)
    streams = rigstreams.RigStreams(StreamQuery(name=f"{name}-s"), f"{name}-k", None)
    sources = streams._spikes, streams._kinematics
    wait_for("answers", lambda: all(source.is_opening or source.tend() for source in sources))
    streams.wait(0.0)
    streams.close()
    assert streams.names["kinematics"] == f"{name}-k"
    del outlets


def test_late_marker_streams_are_awaited(tmp_path: Path) -> None:
    """On a busy machine, markers once answered last, and a recording lost its first trial."""
    name = f"late-{time.time_ns()}"
    outlets = spikes_and_velocity(name)
    settings = RecordSettings(
        spikes=StreamQuery(name=f"{name}-s"), kinematics=f"{name}-k", markers=f"{name}-m"
    )
    markers = pylsl.StreamInfo(f"{name}-m", "Markers", 1, 0.0, pylsl.cf_string, f"{name}-m")
    late = threading.Timer(2.5, lambda: outlets.append(pylsl.StreamOutlet(markers)))
    late.start()
    recorder = Recorder(tmp_path, "today", settings)
    recorder.start()
    with recorder:
        late.join()
        outlets[2].push_sample(["trial_start 0"], pylsl.local_clock())
        wait_for("the marker", lambda: recorder.poll() or recorder.n_markers == 1)


def test_velocity_alone_is_enough(tmp_path: Path) -> None:
    name = f"hand-{time.time_ns()}"
    spikes = pylsl.StreamOutlet(
        pylsl.StreamInfo(f"{name}-s", "SpikeEvents", 2, 0.0, pylsl.cf_int16, f"{name}-s")
    )
    info = pylsl.StreamInfo(f"{name}-k", "CursorVelocity", 2, 50.0, pylsl.cf_float32, f"{name}-k")
    info.set_channel_labels(["vel_x", "vel_y"])
    velocity = pylsl.StreamOutlet(info)
    settings = RecordSettings(
        spikes=StreamQuery(name=f"{name}-s"), kinematics=f"{name}-k", markers=f"{name}-m"
    )
    recorder = Recorder(tmp_path, "today", settings)
    recorder.start()
    with recorder:
        for outlet in (spikes, velocity):
            assert outlet.wait_for_consumers(DEADLINE_S)
        times = pylsl.local_clock() - 10.0 + 0.02 * np.arange(500)
        times[250:] += 2.0  # a gap without movement
        velocity.push_chunk([[0.1, -0.05]] * 500, times.tolist())
        spikes.push_chunk([[3, 0]] * 500, times.tolist())
        wait_for(
            "everything",
            lambda: recorder.poll() or (recorder.n_samples, recorder.n_spikes) == (500, 500),
        )
    session = check(read_recording(recorder.path))
    np.testing.assert_allclose(session.cursor_vel, [[0.1, -0.05]] * 500, atol=1e-7)
    np.testing.assert_allclose(session.cursor_pos[0], [0.0, 0.0])
    np.testing.assert_allclose(session.cursor_pos[-1], 498 * 0.02 * np.array([0.1, -0.05]), 1e-3)


def test_a_folder_that_is_not_a_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="not a recording"):
        read_recording(tmp_path)
    (tmp_path / "about.json").write_text('{"session_id": "a", "subject_id": "b", "unit_ids": []}')
    for name in (SPIKES_FILE, KINEMATICS_FILE):
        (tmp_path / name).touch()
    with pytest.raises(SessionError, match="0 samples of kinematics"):
        read_recording(tmp_path)


def test_a_recording_goes_on_when_senders_return_with_other_units(tmp_path: Path) -> None:
    name = f"again-{time.time_ns()}"

    def rig(*unit_ids: str) -> tuple[pylsl.StreamOutlet, pylsl.StreamOutlet]:
        return (
            pylsl.StreamOutlet(spikes_info(f"{name}-s", f"{name}-s", unit_ids)),
            pylsl.StreamOutlet(
                kinematics_info(f"{name}-k", f"{name}-k", ["pos_x", "pos_y"], 100.0)
            ),
        )

    def send(outlets: tuple[pylsl.StreamOutlet, pylsl.StreamOutlet], until_spikes: int) -> None:
        spikes, kinematics = outlets
        for outlet in outlets:
            assert outlet.wait_for_consumers(30.0)

        def sent() -> bool:
            spikes.push_sample([0, 0])
            kinematics.push_sample([pylsl.local_clock() % 1.0, 0.0])
            recorder.poll()
            return recorder.n_spikes >= until_spikes

        wait_for("spikes", sent)

    settings = RecordSettings(
        spikes=StreamQuery(name=f"{name}-s"), kinematics=f"{name}-k", markers=f"{name}-m"
    )
    recorder = Recorder(tmp_path, "today", settings)
    outlets = rig("a", "b")
    recorder.start()
    with recorder:
        send(outlets, 50)
        del outlets
        outlets = rig("c", "b")
        wait_for("both again", lambda: recorder.poll() or all(o.have_consumers() for o in outlets))
        send(outlets, 100)
    about = json.loads((recorder.path / "about.json").read_text())
    assert about["unit_ids"] == ["a", "b", "c"]
    spikes = np.fromfile(recorder.path / SPIKES_FILE, dtype=[("time", "f8"), ("unit", "i8")])
    assert set(spikes["unit"][:50]) == {0}
    assert spikes["unit"][-1] == 2


def test_the_seconds_before_a_clock_jump_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "jumped.recording"
    folder.mkdir()
    times = 100.0 + 0.01 * np.arange(6000)
    samples = np.zeros(6000, dtype=[("time", "f8"), ("values", "f8", 6)])
    samples["time"] = times
    samples["values"] = np.nan
    samples["values"][:, :2] = 0.1 * np.column_stack([np.sin(times), np.cos(times)])
    samples.tofile(folder / KINEMATICS_FILE)
    spikes = np.zeros(6000, dtype=[("time", "f8"), ("unit", "i8")])
    spikes["time"] = times
    spikes.tofile(folder / SPIKES_FILE)
    (folder / "markers.jsonl").touch()
    about = {"session_id": "jumped", "subject_id": "s", "unit_ids": ["a"], "clock_jumps": [130.0]}
    (folder / "about.json").write_text(json.dumps(about))
    session = read_recording(folder)
    np.testing.assert_allclose(session.domain.ravel(), [100.0, 125.0, 130.0, 160.0], atol=0.02)
    assert any("clock jumped" in note for note in session.notes)


@one_family
def test_a_full_disk_is_one_line_of_error_and_the_recording_is_kept(
    tiny, played, full_disk: Path, tmp_path: Path
) -> None:
    room = 40 * 2**10  # enough for some seconds of data
    (full_disk / "filler").write_bytes(bytes(2**20 - room))
    process = Process(tmp_path / "record.log", *record_arguments(tiny, full_disk))
    assert process.popen.wait(DEADLINE_S) == 1
    output = process.output()
    assert "Traceback" not in output
    (error,) = [line for line in output.splitlines() if "error:" in line]
    recording = full_disk / "today.recording"
    for text in ("No space left", "free some space", "is kept", f"volition import {recording}"):
        assert text in error
    done = Process(tmp_path / "import.log", "import", str(recording), "-o", str(tmp_path / "out"))
    assert done.popen.wait(DEADLINE_S) == 0, done.output()
    session = sessions.load(tmp_path / "out" / "today.h5")
    assert session.unit_ids == tiny.session.unit_ids
    stored = 16 * len(session.spike_times) + 56 * len(session.cursor_times)
    assert stored > room / 2, "the disk was full of the recording"


@pytest.mark.parametrize(
    ("taken", "reason"),
    [("today.h5", r"today\.h5 exists"), ("today.recording", r"volition import .*today\.recording")],
)
def test_an_existing_name_is_refused_before_recording(
    tmp_path: Path, taken: str, reason: str
) -> None:
    (tmp_path / taken).mkdir()
    with pytest.raises(SessionError, match=reason):
        Recorder(tmp_path, "today", RecordSettings())
