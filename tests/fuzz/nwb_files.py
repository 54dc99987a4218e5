"""Mutated NWB files: refused in one line, or imported and saved.

Half of them are real recordings, if there are any (`VOLITION_RECORDINGS`, or ../shared/data).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from streaming.sessions import format as sessions
from tests.fuzz import hdf5
from tests.fuzz.mutate import Rng, mutate_bytes

LARGEST = 2_500_000  # bytes of a real file
ROOT = Path(__file__).parents[2]


def prepare(folder: Path) -> None:
    """Write a small file with everything that an import reads; copy the smaller real files."""
    from tests.training import nwb_files as small

    def add(nwb: object) -> None:
        nwb.add_trial_column("target_pos", "where")  # type: ignore[attr-defined]

    trials = [
        {"start_time": 4.0 * i, "stop_time": 4.0 * i + 3, "target_pos": [0.05, 0.0]}
        for i in range(14)
    ]
    small.write(
        folder / "small.nwb",
        small.position(description="x, y"), small.velocity(),
        small.position(name="hand_pos"), names=["a", "b", "c"], subject="m",
        trials=trials, more=add,
    )  # fmt: skip
    real = Path(os.environ.get("VOLITION_RECORDINGS", ROOT.parent / "shared" / "data"))
    for path in sorted(real.glob("*.nwb")):
        if path.stat().st_size < LARGEST:
            shutil.copyfile(path, folder / path.name)


def case(folder: Path, rng: Rng, scratch: Path) -> None:
    """Damage a file, import it, save it."""
    from training.importers import import_recording

    originals = sorted(folder.glob("*.nwb"))
    path = scratch / "damaged.nwb"
    if rng.random() < 0.5:
        shutil.copyfile(folder / "small.nwb", path)
        hdf5.damage(path, rng)
    else:
        original = originals[int(rng.integers(len(originals)))]
        path.write_bytes(mutate_bytes(original.read_bytes(), rng))
    sessions.save(import_recording(path), scratch)
