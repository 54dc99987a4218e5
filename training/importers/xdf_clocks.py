"""Corrects timestamps of XDF streams whose sender's clock stepped during the recording.

pyxdf fits one line through a stream's clock offsets unless they step by several seconds, so a
smaller step would shift every timestamp. Here the offsets are split where they step by more than
their measurement error, and the timestamps where they step by the opposite amount. Each part is
corrected by its own offsets.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from decoder.arrays import Floats, Ints
from training.importers.xdf_chunks import open_sound
from training.importers.xdf_streams import Stream, field_of

STEP_S = 0.1  # of an offset between measurements; their error is a few ms, drift is less
ALIKE = 3  # measurements on each side of a step that give its size
MANY = 10  # measurements needed to fit a drift


def steps_of(values: Sequence[float]) -> list[Ints]:
    """Split offsets (n,) in seconds at steps; returns the indices of each part, in order.

    An offset that disagrees with those before and after it is in no part.
    """
    parts: list[list[int]] = []
    for number, value in enumerate(values):
        if parts and abs(value - _level(values, parts[-1][-ALIKE:])) <= STEP_S:
            parts[-1].append(number)
            continue
        after = values[number + 1 : number + 2]
        if not parts or (len(after) and abs(after[0] - value) <= STEP_S):
            parts.append([number])
    sure = [part for part in parts if len(part) > 1] or parts
    return [np.array(part) for part in sure]


def is_steady(values: Sequence[float]) -> bool:
    """Whether the offsets (n,) in seconds have no step and no outlier."""
    return not len(values) or [len(part) for part in steps_of(values)] == [len(values)]


def on_one_clock(
    stamps: Floats, clock_times: Sequence[float], values: Sequence[float]
) -> tuple[Floats, list[tuple[float, float]]]:
    """Convert a sender's stamps (n,) to the recorder's clock; also returns its steps.

    clock_times: (k,) s, when offsets were measured, on the sender's clock. values: (k,) s, offsets.
    A step is (start, stop) in s: equal if the stamps show the step, else the times of the
    measurements around it.
    """
    at, offset = np.asarray(clock_times, dtype=np.float64), np.asarray(values, dtype=np.float64)
    parts = steps_of(values)
    cuts, stepped = [0], []
    for before, after in pairwise(parts):
        a, b = int(before[-1]), int(after[0])
        step_s = _level(offset, before[-ALIKE:]) - _level(offset, after[:ALIKE])
        cut = _where_stamps_step(stamps, cuts[-1], float(at[a]), step_s)
        if cut is None:
            middle = (at[a] + offset[a] + at[b] + offset[b]) / 2 - offset[a]
            cut = cuts[-1] + int(np.searchsorted(stamps[cuts[-1] :], middle))
            stepped.append((float(at[a] + offset[a]), float(at[b] + offset[b])))
        else:
            moment = float(stamps[cut - 1] + offset[a])
            stepped.append((moment, moment))
        cuts.append(cut)
    put_right = stamps.copy()
    for part, (start, stop) in zip(parts, pairwise([*cuts, len(stamps)]), strict=True):
        put_right[start:stop] += _line(at[part], offset[part], stamps[start:stop])
    return put_right, stepped


def _level(values: Sequence[float] | Floats, numbers: Sequence[int] | Ints) -> float:
    return float(np.median([values[number] for number in numbers]))


def _where_stamps_step(stamps: Floats, first: int, last_known: float, step_s: float) -> int | None:
    """Index of the first stamp after a step of `step_s` nearest to `last_known`; None if none."""
    steps = np.diff(stamps[first:])
    likely = np.flatnonzero(np.abs(steps - step_s) <= max(STEP_S / 2, 0.05 * abs(step_s)))
    if len(likely) == 0:
        return None
    nearest = likely[np.argmin(np.abs(stamps[first:][likely] - last_known))]
    return first + int(nearest) + 1


def _line(at: Floats, offset: Floats, stamps: Floats) -> Floats:
    """Offsets at stamps (n,): a fitted line for many measurements, the median for a few."""
    if len(at) < MANY:
        return np.full(len(stamps), np.median(offset))
    middle = at.mean()
    slope, level = np.polyfit(at - middle, offset, 1)
    return np.asarray(level + slope * (stamps - middle))


def put_clocks_right(streams: list[Stream], path: Path) -> list[str]:
    """Replace timestamps that pyxdf can't correct, in place; returns notes for the session."""
    import pyxdf

    wrong = [
        stream["info"]["stream_id"]
        for stream in streams
        if len(stream["info"]["clock_segments"]) == 1 and not is_steady(stream["clock_values"])
    ]
    if not wrong:
        return []
    file, _ = open_sound(path)  # pyxdf closes it
    with file:
        raw, _ = pyxdf.load_xdf(file, dejitter_timestamps=False, synchronize_clocks=False)
    as_sent = {stream["info"]["stream_id"]: stream for stream in raw}
    notes = []
    for stream in streams:
        if stream["info"]["stream_id"] in wrong:
            sent = as_sent[stream["info"]["stream_id"]]
            stream["time_stamps"], steps = on_one_clock(
                np.asarray(sent["time_stamps"], dtype=np.float64),
                sent["clock_times"],
                sent["clock_values"],
            )
            notes.append(_about_clock(field_of(stream, "name"), steps))
    return notes


def _about_clock(name: str, steps: list[tuple[float, float]]) -> str:
    if not steps:
        return f"clock offsets of {name!r} that disagree with their neighbours were ignored"
    where = ", ".join(f"{start:.1f}" for start, _ in steps[:3])
    vague = sum(stop > start for start, stop in steps)
    return (
        f"the clock of {name!r} stepped {len(steps)} times (at {where} s); its timestamps were "
        "corrected by its clock offsets"
        + (f", {vague} times only to within a few seconds" if vague else "")
    )
