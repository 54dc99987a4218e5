"""Descriptions of LSL output streams, and the chunks to send them in (docs/STREAMS.md)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import pylsl

from decoder.arrays import Floats
from streaming.inlets.kinematics import KINEMATICS, MARKERS, NOTES

MAX_CHUNK_S = 0.005  # longest chunk, also after a stall


def spikes_info(name: str, source_id: str, unit_ids: Sequence[str]) -> pylsl.StreamInfo:
    """Description of a spike stream. Unit `i` of `unit_ids` is sent as channel `i`, unit 0."""
    info = pylsl.StreamInfo(name, "Spikes", 2, 0.0, pylsl.cf_int32, source_id)
    info.set_channel_labels(["channel", "unit"])
    units = info.desc().append_child("units")
    for index, unit_id in enumerate(unit_ids):
        unit = units.append_child("unit")
        unit.append_child_value("id", unit_id)
        unit.append_child_value("channel", str(index))
        unit.append_child_value("unit", "0")
    return info


def kinematics_info(
    name: str, source_id: str, labels: Sequence[str], rate_hz: float
) -> pylsl.StreamInfo:
    """Description of a kinematics stream in metres and m/s. labels: some of `COLUMNS`."""
    info = pylsl.StreamInfo(name, KINEMATICS, len(labels), rate_hz, pylsl.cf_double64, source_id)
    info.set_channel_labels(list(labels))
    info.set_channel_units(["m/s" if label.startswith("vel") else "m" for label in labels])
    return info


def markers_info(name: str, source_id: str) -> pylsl.StreamInfo:
    """Description of a marker stream."""
    return pylsl.StreamInfo(name, MARKERS, 1, 0.0, pylsl.cf_string, source_id)


def notes_info(name: str, source_id: str) -> pylsl.StreamInfo:
    """Description of a stream of notes that people write during a session."""
    return pylsl.StreamInfo(name, NOTES, 1, 0.0, pylsl.cf_string, source_id)


def chunks(times: Floats, first: int, last: int) -> Iterator[slice]:
    """Slices of [first, last) that span at most `MAX_CHUNK_S` each.

    times: (n,), s, ascending.
    """
    while first < last:
        stop = int(np.searchsorted(times[:last], times[first] + MAX_CHUNK_S, side="left"))
        stop = max(stop, first + 1)
        yield slice(first, stop)
        first = stop


def sleep_until(due: float) -> None:
    """Sleep until `due` on the LSL clock, in short steps so that signals are handled."""
    while (left := due - pylsl.local_clock()) > 0:
        time.sleep(min(left, 0.1))
