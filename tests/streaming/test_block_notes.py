"""Notes that people write are recorded with their time, and stay in the session's file."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

import h5py
import pylsl
import pytest
from torch_brain.data import Data

from decoder.errors import SessionError
from streaming.inlets.kinematics import NOTES, Markers
from streaming.inlets.spikes import StreamQuery
from streaming.recording.outlets import notes_info
from streaming.recording.raw import NOTES_FILE, read_recording
from streaming.recording.record import Recorder, RecordSettings
from streaming.sessions import format as sessions
from streaming.sessions.session import BlockNote, Session
from tests.rig import DEADLINE_S, running, wait_for
from tests.streaming.test_live import replay, stream_of
from training.data.simulate import simulate

ODD = 'électrode 12 \\x41 "lose", 接続 🙂'


@pytest.fixture(scope="module")
def session() -> Session:
    return simulate(n_units=8, minutes=0.5, subject=0, seed=0)


@pytest.mark.parametrize("tiny", ["poyo"], indirect=True)  # the decoder doesn't matter
def test_a_recording_keeps_the_notes_with_their_times(tiny, tmp_path: Path) -> None:
    name = tiny.session.session_id
    outlet = pylsl.StreamOutlet(notes_info("written", f"written-{uuid.uuid4().hex}"))
    settings = RecordSettings(
        spikes=StreamQuery(name=stream_of(tiny)),
        kinematics=f"{name}-kinematics",
        markers=f"{name}-markers",
        wait_s=DEADLINE_S,
    )
    with running(tmp_path / "replay.log", *replay(tiny)):
        recorder = Recorder(tmp_path, "today", settings)
        recorder.start()
        with recorder:
            assert outlet.wait_for_consumers(DEADLINE_S)
            recorder.run(1.0)
            written = [(pylsl.local_clock(), ODD), (pylsl.local_clock() + 0.5, "second")]
            for at, text in written:
                outlet.push_sample([text], at)
            wait_for("the notes", lambda: recorder.poll() or "second" in texts_in(recorder.path))
            recorder.run(recorder.labelled_s + 1.0)
        with (recorder.path / NOTES_FILE).open("a") as file:
            file.write('{"time": 12.0, "text": "from another time"}\n{"time": 1')
        again = Recorder(tmp_path, "today", settings, resume=True)
        again.start()
        with again:
            again.run(again.labelled_s + 0.5)
    found = read_recording(recorder.path)
    ours = [note for note in found.block_notes if note.text in (ODD, "second")]
    assert [note.text for note in ours] == [ODD, "second"]
    for note, (at, _) in zip(ours, written, strict=True):
        assert note.time_s == pytest.approx(at, abs=2e-3)
    assert "1 written notes are from another time and were left out" in found.notes
    assert found.trials is None or len(found.trials.intervals) > 0
    loaded = sessions.load(sessions.save(found, tmp_path / "out"))
    assert loaded.block_notes == found.block_notes


def texts_in(folder: Path) -> str:
    return (folder / NOTES_FILE).read_text()


def test_a_stream_of_notes_is_no_stream_of_markers() -> None:
    name = f"written-{uuid.uuid4().hex[:8]}"
    outlet = pylsl.StreamOutlet(notes_info(name, name))
    notes, markers = Markers(kind=NOTES), Markers()
    try:
        wait_for("the notes", lambda: name in notes.names)
        outlet.push_sample(["trial_start 1"])
        found: list[tuple[float, str]] = []
        wait_for("the note", lambda: found.extend(notes.drain()) or found)
        assert found[0][1] == "trial_start 1"
        assert name not in markers.names
    finally:
        notes.close()
        markers.close()


def test_a_file_with_notes_opens_in_torch_brain(session: Session, tmp_path: Path) -> None:
    start = session.domain[0, 0]
    written = (BlockNote(time_s=start + 5.0, text="a"), BlockNote(time_s=start + 12.0, text=ODD))
    path = sessions.save(replace(session, block_notes=written), tmp_path)
    with h5py.File(path) as file:
        data = Data.from_hdf5(file)
        part = data.slice(start + 10.0, start + 20.0)
        assert len(data.block_notes) == 2
        assert len(part.block_notes) == 1
        assert part.block_notes.timestamps[0] == pytest.approx(2.0)
        assert str(data.block_notes.text[0]) == "a"
    assert sessions.load(path, lazy=True).block_notes == written


def test_files_without_notes_or_with_damaged_ones_load(session: Session, tmp_path: Path) -> None:
    assert sessions.load(sessions.save(session, tmp_path)).block_notes == ()
    written = (BlockNote(time_s=float(session.domain[0, 0]), text="a"),)
    path = sessions.save(replace(session, block_notes=written), tmp_path)
    with h5py.File(path, "a") as file:
        del file["block_notes"]["text"]
    damaged = sessions.load(path)
    assert damaged.block_notes == ()
    assert any("block_notes can't be read" in note for note in damaged.notes)


def test_a_note_from_years_away_is_not_stored(session: Session, tmp_path: Path) -> None:
    stray = (BlockNote(time_s=1e12, text="a"),)
    with pytest.raises(SessionError, match="domains and notes span"):
        sessions.save(replace(session, block_notes=stray), tmp_path)
