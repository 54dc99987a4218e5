"""Conversion of recordings to sessions: complete, cut short, or with wrong time stamps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from clients.cli.main import app
from decoder.errors import SessionError
from streaming.recording import raw as recording
from streaming.recording.raw import read_recording
from streaming.sessions import format as sessions
from streaming.sessions.intervals import duration_s
from training.importers import import_recording

N = 3000


SPIKES = np.linspace(500.1, 529.9, 900)


def written(
    folder: Path, times: np.ndarray | None = None, spike_times: np.ndarray = SPIKES
) -> Path:
    """Write a recording of half a minute that was not closed."""
    path = folder / "today.recording"
    path.mkdir()
    samples = np.zeros(N, dtype=recording.SAMPLE)
    clean = 500.0 + 0.01 * np.arange(N)
    samples["time"] = clean if times is None else times
    samples["values"][:, :2] = 0.05 * np.stack([np.sin(clean), np.cos(clean)], axis=1)
    samples["values"][:, 2:] = np.nan
    spikes = np.zeros(900, dtype=recording.SPIKE)
    spikes["time"] = spike_times
    spikes["unit"] = np.arange(900) % 3
    about = {
        "session_id": "today", "subject_id": "m", "unit_ids": ["a", "b", "c"],
        "recorded_at": "2026-03-05T14:30:00+01:00", "spikes": "s", "kinematics": "k",
    }  # fmt: skip
    (path / recording.ABOUT).write_text(json.dumps(about))
    (path / recording.SPIKES_FILE).write_bytes(spikes.tobytes() + b"half a re")
    (path / recording.KINEMATICS_FILE).write_bytes(samples.tobytes() + b"half")
    (path / recording.MARKERS_FILE).write_text('{"time": 501, "text": "trial_start 0"}\n{"ti')
    return path


@pytest.mark.parametrize("command", [["import"], ["record", "--repair"]])
def test_a_recording_that_was_cut_short_becomes_a_session(
    tmp_path: Path, command: list[str]
) -> None:
    path = written(tmp_path)
    result = CliRunner().invoke(app, [*command, str(path), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    session = sessions.load(tmp_path / "out" / "today.h5")
    assert len(session.spike_times) == 900
    assert len(session.cursor_times) == N
    assert session.recorded_at is not None
    again = CliRunner().invoke(app, [*command, str(path), "-o", str(tmp_path / "out")])
    assert isinstance(again.exception, SessionError)
    assert "exists" in str(again.exception)


@pytest.mark.parametrize("stamp", [1e8, 1.7e9, -1e8])
@pytest.mark.parametrize("index", [0, 1500, N - 1])
def test_an_outlying_stamp_loses_one_sample_and_takes_no_memory(
    tmp_path: Path, stamp: float, index: int
) -> None:
    times = 500.0 + 0.01 * np.arange(N)
    times[index] = stamp
    session = read_recording(written(tmp_path, times))
    assert len(session.cursor_times) == N - 1
    assert duration_s(session.domain) < 31
    assert sessions.save(session, tmp_path).stat().st_size < 1e6


@pytest.mark.parametrize("stamp", [1e8, 1.7e9, -1e8, 505.0, 529.0])
def test_an_outlying_stamp_loses_one_spike_and_is_noted(tmp_path: Path, stamp: float) -> None:
    times = SPIKES.copy()
    times[400] = stamp
    session = read_recording(written(tmp_path, spike_times=times))
    np.testing.assert_array_equal(session.spike_times, np.delete(SPIKES, 400))
    assert any("1 spikes of 's' with outlying time stamps" in note for note in session.notes)


def test_a_lasting_step_back_of_the_spikes_is_noted(tmp_path: Path) -> None:
    times = SPIKES - 5.0 * (np.arange(900) >= 500)
    session = read_recording(written(tmp_path, spike_times=times))
    assert any("clock of 's' stepped back 1 times (to 511.7 s)" in note for note in session.notes)


def test_spikes_on_another_clock_are_refused_with_the_cause(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match=r"0 of 900 spikes .*Unix time"):
        read_recording(written(tmp_path, spike_times=SPIKES + 1.7e9))


def test_samples_in_bursts_are_spread_and_noted(tmp_path: Path) -> None:
    times = 500.0 + 0.01 * np.arange(N)
    session = read_recording(written(tmp_path, np.repeat(times[9::10], 10)))
    assert np.linalg.norm(session.cursor_vel, axis=1).max() < 0.1
    assert any("came in bursts" in note for note in session.notes)
    np.testing.assert_allclose(session.cursor_times, times, atol=1e-6)


def test_inapplicable_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="expected no option"):
        import_recording(written(tmp_path), position="hand")
    with pytest.raises(SessionError, match=r"named their unit.*omit --unit"):
        import_recording(tmp_path / "today.recording", unit="cm")


@pytest.mark.parametrize(
    "about", ["", "[]", "[" * 100_000, "{}", '{"session_id": 3, "unit_ids": "abc"}']
)
def test_a_folder_without_a_valid_description_is_refused(tmp_path: Path, about: str) -> None:
    path = written(tmp_path)
    (path / recording.ABOUT).write_text(about)
    with pytest.raises(SessionError, match=r"not a recording|not a description of a recording"):
        read_recording(path)


def test_unusable_markers_and_dates_are_noted(tmp_path: Path) -> None:
    path = written(tmp_path)
    about = json.loads((path / recording.ABOUT).read_text())
    (path / recording.ABOUT).write_text(json.dumps({**about, "recorded_at": "yesterday"}))
    texts = [(2.0, "trial_start 0"), (4.0, "trial_end 0"), (502.0, "trial_start 1"),
             (503.0, "target 1 5 -3"), (504.0, "trial_end 1")]  # fmt: skip
    lines = [json.dumps({"time": time, "text": text}) for time, text in texts]
    (path / recording.MARKERS_FILE).write_text("\n".join(lines))
    notes = read_recording(path).notes
    for what in (
        "1 trials begin before the kinematics",
        "the date 'yesterday' can't be read",
        "targets are up to 5 m from the middle of the movement",
    ):
        assert any(what in note for note in notes), what
