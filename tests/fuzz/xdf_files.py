"""Mutated XDF files: refused in one line, or imported and saved.

Some of the damage keeps the lengths of chunks valid, so that descriptions and samples are checked
too.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from streaming.sessions import format as sessions
from tests import xdf_writer
from tests.fuzz.mutate import Rng, mutate_bytes

LARGEST = 2_500_000
ROOT = Path(__file__).parents[2]
STAMPS = (0.0, -1.0, 1e-9, 1e8, 1.7e9, 1e300, np.nan, np.inf, -np.inf)
WORDS = ("0", "-1", "1", "99999999", "nan", "cm", "m/s", "double64", "string", "int8", "Spikes",
         "SpikeEvents", "SpikeCounts", "Kinematics", "Markers", "", "é", "pos_x")  # fmt: skip


def prepare(folder: Path) -> None:
    """Write a short recording of our own streams; copy the smaller real files."""
    (folder / "small.xdf").write_bytes(b"")
    xdf_writer.write(folder / "small.xdf", _streams())
    real = Path(os.environ.get("VOLITION_RECORDINGS", ROOT.parent / "shared" / "data")) / "xdf"
    for path in sorted(real.glob("*.xdf")):
        if path.stat().st_size < LARGEST:
            (folder / path.name).write_bytes(path.read_bytes())


def _streams() -> list[xdf_writer.Stream]:
    from streaming.recording import replay
    from training.data.simulate import simulate

    session = simulate(n_units=4, minutes=0.5, subject=1, seed=5)
    events = np.stack([session.spike_units, np.zeros_like(session.spike_units)], axis=1)
    kinematics = np.concatenate([session.cursor_pos, session.cursor_vel], axis=1)
    starts = session.trials.intervals[:, 0] if session.trials else np.empty(0)
    return [
        xdf_writer.Stream(info(session, "fuzz").as_xml(), times, values, 0.25)
        for info, times, values in (
            (replay.spikes_info, session.spike_times, events.astype("<i4")),
            (replay.kinematics_info, session.cursor_times, kinematics),
            (replay.markers_info, starts, [f"trial_start {i}" for i in range(len(starts))]),
        )
    ]


def case(folder: Path, rng: Rng, scratch: Path) -> None:
    """Damage a file, import it, save it."""
    from training.importers import import_recording

    path = scratch / "damaged.xdf"
    if rng.random() < 0.4:
        xdf_writer.write(path, [_changed(s, rng) for s in _streams_once()])
    else:
        originals = sorted(folder.glob("*.xdf"))
        pick = 0 if rng.random() < 0.7 else int(rng.integers(len(originals)))
        original = folder / "small.xdf" if pick == 0 else originals[pick]
        path.write_bytes(mutate_bytes(original.read_bytes(), rng))
    sessions.save(import_recording(path), scratch)


_KEPT: list[xdf_writer.Stream] = []


def _streams_once() -> list[xdf_writer.Stream]:
    if not _KEPT:
        _KEPT.extend(_streams())
    return _KEPT


def _changed(stream: xdf_writer.Stream, rng: Rng) -> xdf_writer.Stream:
    """A stream with other stamps, values or description; its chunks stay valid."""
    times = stream.times.copy()
    match int(rng.integers(5)):
        case 0 if len(times):
            at = rng.integers(len(times), size=int(rng.integers(1, 20)))
            times[at] = STAMPS[int(rng.integers(len(STAMPS)))]
        case 1 if len(times):
            times[int(rng.integers(len(times))) :] += rng.choice([-1e3, -5.0, -0.3, 60.0, 1.7e9])
        case 2:
            return replace(stream, xml=_changed_xml(stream.xml, rng))
        case 3 if isinstance(stream.values, np.ndarray) and stream.values.dtype.kind == "f":
            values = stream.values.copy()
            values[rng.integers(len(values), size=9)] = STAMPS[int(rng.integers(len(STAMPS)))]
            return replace(stream, values=values)
        case 4:
            return replace(stream, clock_offset_s=float(rng.choice(STAMPS)))
        case _:
            pass
    return replace(stream, times=times)


def _changed_xml(xml: str, rng: Rng) -> str:
    """Change an element's text, duplicate or delete an element, or change bytes."""
    parts = xml.split("<")
    at = int(rng.integers(1, len(parts)))
    match int(rng.integers(4)):
        case 0:
            tag, _, _ = parts[at].partition(">")
            parts[at] = f"{tag}>{WORDS[int(rng.integers(len(WORDS)))]}"
        case 1:
            parts.insert(at, parts[at])
        case 2:
            del parts[at]
        case _:
            return mutate_bytes(xml.encode(), rng, 2).decode("utf-8", "replace")
    return "<".join(parts)
