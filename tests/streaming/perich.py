"""A file in the layout of brainsets' perich_miller_population_2018 pipeline."""

from __future__ import annotations

import datetime
from pathlib import Path

import h5py
import numpy as np
from torch_brain.data import (
    ArrayDict,
    BrainsetDescription,
    Data,
    DeviceDescription,
    Interval,
    IrregularTimeSeries,
    SessionDescription,
    SubjectDescription,
)


def perich_file(folder: Path) -> Path:
    """Write such a file with random data to `folder`. Returns its path."""
    rng = np.random.default_rng(3)
    n_units, end = 7, 120.0
    spike_times = np.sort(rng.uniform(0.0, end, 4000))
    cursor_times = np.arange(0.0, end, 0.01)
    phase = 2 * np.pi * cursor_times[:, None] / np.array([3.0, 4.1])
    trials = Interval(
        start=np.arange(0.5, 117.0, 3.0),
        end=np.arange(0.5, 117.0, 3.0) + 2.7,
        target_id=np.append(np.nan, np.arange(38.0) % 8),
        result=np.array(["R", "F", "R"] * 13),
        go_cue_time_array=rng.uniform(0.0, 1.0, (39, 4)),
        is_valid=np.arange(39) % 3 != 1,
    )
    valid = trials.select_by_mask(np.arange(39) % 10 == 4)
    test = trials.select_by_mask(np.arange(39) % 5 == 2)
    cursor = IrregularTimeSeries(
        timestamps=cursor_times,
        pos=5.0 * np.sin(phase),
        vel=10.0 * np.cos(phase),
        acc=-20.0 * np.sin(phase),
        domain="auto",
    )
    data = Data(
        brainset=BrainsetDescription(
            id="perich_miller_population_2018",
            origin_version="dandi/000688/draft",
            derived_version="1.0.0",
            source="https://dandiarchive.org/dandiset/000688",
            description="monkeys reach",
        ),
        subject=SubjectDescription(id="c", species="NCBITaxon_9544", sex="M"),
        session=SessionDescription(
            id="c_20131003_center_out_reaching",
            recording_date=datetime.datetime(2013, 10, 3),
            task="REACHING",
        ),
        device=DeviceDescription(id="c_20131003", recording_tech="UTAH_ARRAY_SPIKES"),
        spikes=IrregularTimeSeries(
            timestamps=spike_times, unit_index=rng.integers(0, n_units, 4000), domain="auto"
        ),
        units=ArrayDict(
            id=np.array([f"group_M1/elec{i}/unit_{i}" for i in range(n_units)]),
            unit_number=np.arange(n_units),
            count=np.full(n_units, 4000 // n_units),
        ),
        trials=trials,
        movement_phases=Data(
            hold_period=Interval(start=trials.start, end=trials.start + 0.5),
            reach_period=Interval(start=trials.start + 0.5, end=trials.end),
            domain="auto",
        ),
        cursor=cursor,
        cursor_outlier_segments=Interval(start=np.array([7.0]), end=np.array([7.2])),
        domain=cursor.domain,
    )
    data.train_domain = data.domain.difference((valid | test).dilate(0.2))
    data.valid_domain, data.test_domain = valid, test
    path = folder / "c_20131003_center_out_reaching.h5"
    with h5py.File(path, "w") as file:
        data.to_hdf5(file)
    return path
