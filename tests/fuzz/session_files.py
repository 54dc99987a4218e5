"""Mutated sessions (HDF5): refused in one line, or loaded and saved again."""

from __future__ import annotations

import shutil
from pathlib import Path

from streaming.sessions import format as sessions
from tests.fuzz import hdf5
from tests.fuzz.mutate import Rng


def prepare(folder: Path) -> None:
    """Write sessions of two layouts: our own, and a hand as a regular time series."""
    import h5py
    from torch_brain.data import RegularTimeSeries

    from training.data.simulate import simulate

    path = sessions.save(simulate(n_units=6, minutes=0.5, subject=1, seed=5), folder)
    other = Path(shutil.copy(path, folder / "other.h5"))
    session = sessions.load(path)
    with h5py.File(other, "r+") as file:
        del file["cursor"]
        series = RegularTimeSeries(
            sampling_rate=100.0, domain_start=0.0, pos=session.cursor_pos, vel=session.cursor_vel
        )
        series.to_hdf5(file.create_group("hand"))


def case(folder: Path, rng: Rng, scratch: Path) -> None:
    """Damage a session, load or import it, save it."""
    from training.importers import import_recording

    originals = sorted(folder.glob("*.h5"))
    path = scratch / "damaged.h5"
    shutil.copy(originals[int(rng.integers(len(originals)))], path)
    hdf5.damage(path, rng)
    if rng.random() < 0.5:
        session = sessions.load(path, lazy=bool(rng.random() < 0.5))
    else:
        session = import_recording(path)
    sessions.save(session, scratch / "again")
