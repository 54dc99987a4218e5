"""Writes small NWB files with unusual layouts, always with the same movement and units."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pynwb import NWBHDF5IO, NWBFile, TimeSeries
from pynwb.behavior import Position, SpatialSeries
from pynwb.file import Subject

END_S = 60.0
TIMES = np.arange(0.0, END_S, 0.02)
POS = 0.05 * np.stack([np.sin(TIMES), np.cos(0.7 * TIMES)], axis=1)
VEL = 0.05 * np.stack([np.cos(TIMES), -0.7 * np.sin(0.7 * TIMES)], axis=1)
SPIKES = tuple(np.arange(0.1 + 0.01 * unit, END_S, 0.25) for unit in range(3))


def write(
    path: Path,
    *series: Any,
    spikes: Sequence[np.ndarray] = SPIKES,
    names: Sequence[str] | None = None,
    session_id: str = "small",
    subject: str | None = None,
    acquisition: Sequence[Any] = (),
    trials: Sequence[dict[str, Any]] = (),
    more: Callable[[NWBFile], None] = lambda nwb: None,
) -> Path:
    """Write a file with `series` in its behavior module; a position gets its own container."""
    start = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    nwb = NWBFile(
        session_description="test", identifier="t", session_start_time=start, session_id=session_id
    )
    if subject:
        nwb.subject = Subject(subject_id=subject, species="Macaca mulatta", age="P8Y", sex="M")
    if names is not None:
        nwb.add_unit_column("unit_name", "as the sorter calls it")
    for i, times in enumerate(spikes):
        nwb.add_unit(spike_times=times, **({} if names is None else {"unit_name": names[i]}))
    behavior = nwb.create_processing_module("behavior", "kinematics")
    for i, item in enumerate(series):
        if isinstance(item, SpatialSeries):
            behavior.add(Position(spatial_series=item, name=f"Position{i or ''}"))
        else:
            behavior.add(item)
    for item in acquisition:
        nwb.add_acquisition(item)
    more(nwb)
    for trial in trials:
        nwb.add_trial(**trial)
    with NWBHDF5IO(str(path), "w") as io:
        io.write(nwb)
    return path


def position(data: np.ndarray = POS, name: str = "cursor_pos", **more: Any) -> SpatialSeries:
    more.setdefault("reference_frame", "screen centre")
    return SpatialSeries(name=name, data=data, timestamps=TIMES[: len(data)], **more)


def velocity(
    data: np.ndarray = VEL, name: str = "cursor_vel", unit: str = "m/s", **more: Any
) -> TimeSeries:
    return TimeSeries(name=name, data=data, timestamps=TIMES[: len(data)], unit=unit, **more)
