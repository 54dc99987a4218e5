"""Mutated `.recording` folders: refused in one line, or converted to a session and saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from streaming.recording import raw as recording
from streaming.sessions import format as sessions
from tests.fuzz.mutate import Rng, mutate_bytes, mutate_json

FILES = (recording.SPIKES_FILE, recording.KINEMATICS_FILE, recording.MARKERS_FILE)


def prepare(folder: Path) -> None:
    """Write one recording of 30 s."""
    whole = folder / "whole.recording"
    whole.mkdir()
    rng = np.random.default_rng(0)
    times = 500.0 + 0.01 * np.arange(3000)
    samples = np.zeros(len(times), dtype=recording.SAMPLE)
    samples["time"] = times
    samples["values"] = 0.05 * np.sin(times)[:, None]
    spikes = np.zeros(900, dtype=recording.SPIKE)
    spikes["time"], spikes["unit"] = np.sort(rng.uniform(500, 530, 900)), rng.integers(5, size=900)
    markers = [{"time": 501.0 + 3 * i, "text": f"trial_start {i}"} for i in range(9)]
    markers += [{"time": 503.0 + 3 * i, "text": f"trial_end {i}"} for i in range(9)]
    about = {"session_id": "today", "subject_id": "m", "unit_ids": list("abcde"), "spikes": "s"}
    (whole / recording.ABOUT).write_text(json.dumps(about))
    (whole / recording.SPIKES_FILE).write_bytes(spikes.tobytes())
    (whole / recording.KINEMATICS_FILE).write_bytes(samples.tobytes())
    (whole / recording.MARKERS_FILE).write_text("\n".join(map(json.dumps, markers)))


def case(folder: Path, rng: Rng, scratch: Path) -> None:
    """Damage or delete one of its files, and import it."""
    from training.importers import import_recording

    damaged = scratch / "damaged.recording"
    shutil.copytree(folder / "whole.recording", damaged)
    if rng.random() < 0.3:
        about = json.loads((damaged / recording.ABOUT).read_text())
        (damaged / recording.ABOUT).write_text(mutate_json(about, rng), errors="surrogatepass")
    else:
        file = damaged / FILES[int(rng.integers(len(FILES)))]
        if rng.random() < 0.1:
            file.unlink()
        else:
            file.write_bytes(mutate_bytes(file.read_bytes(), rng))
    sessions.save(import_recording(damaged), scratch)
