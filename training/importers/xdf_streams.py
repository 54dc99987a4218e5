"""The streams of an XDF file: selects them, groups them by sender, compares their clocks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from decoder.errors import ImportFailedError
from streaming.sessions.jumps import SPIKES_S, judge
from training.conversion.track import EFFECTORS

SPIKES, EVENTS, COUNTS = "Spikes", "SpikeEvents", "SpikeCounts"
KINEMATICS, MARKERS, NOTES = "Kinematics", "Markers", "Notes"
OVERLAP_S = 1.0  # the streams of a restarted sender may overlap by this
SHIFT_S = 2.0  # shifts above this are noted if both ends of the streams agree this closely
MOST_LISTED = 10  # streams named in one message

Stream = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Source:
    """The streams of one sender in time order; more than one if it was restarted."""

    name: str
    parts: list[Stream]

    def gaps(self) -> list[tuple[float, float]]:
        """Intervals between the streams, in which the sender was offline."""
        spans = [span_of(part) for part in self.parts]
        return [(a[1], b[0]) for a, b in pairwise(spans) if b[0] > a[1]]


def field_of(stream: Stream, name: str) -> str:
    """A field of the stream's info as text, or an empty string."""
    return str((stream["info"].get(name) or [""])[0] or "")


def stream_list(streams: Sequence[Stream]) -> str:
    """Names and types of streams, for messages."""
    seen = [f"{field_of(s, 'name')[:60]} ({field_of(s, 'type')[:40]})" for s in streams]
    more = [f"{len(seen) - MOST_LISTED} more"] if len(seen) > MOST_LISTED else []
    return ", ".join(seen[:MOST_LISTED] + more) or "no streams"


def of_type(
    streams: list[Stream], kinds: tuple[str, ...], path: Path, notes: list[str]
) -> list[Stream]:
    """The streams with data of the first type in `kinds` that has any.

    Raises ImportFailedError if none has.
    """
    for kind in kinds:
        if found := [s for s in streams if field_of(s, "type") == kind and has_data(s)]:
            others = [s for s in streams if field_of(s, "type") in kinds and s not in found]
            if others:
                notes.append(f"not imported: {stream_list(others)}")
            return found
    raise ImportFailedError(
        f"{path}: no stream of type {kinds[0]!r} with data; found {stream_list(streams)}. "
        f"Record the {kinds[0]!r} stream as well, and import that file"
    )


def note_other_types(streams: list[Stream], taken: list[Source], notes: list[str]) -> None:
    """Note streams of other types; unused streams of imported types are noted at their choice."""
    parts = [part for source in taken for part in source.parts]
    read = (SPIKES, EVENTS, COUNTS, KINEMATICS, MARKERS, NOTES)
    others = [
        s for s in streams
        if has_data(s) and field_of(s, "type") not in read and all(s is not p for p in parts)
    ]  # fmt: skip
    if others:
        notes.append(f"streams of other types, not imported: {stream_list(others)}")


def has_data(stream: Stream) -> bool:
    """Whether the stream has samples."""
    return len(stream["time_stamps"]) > 0


def span_of(stream: Stream) -> tuple[float, float]:
    """First and last time of the stream in seconds, without outliers."""
    times = np.asarray(stream["time_stamps"], dtype=np.float64)
    times = times[~judge(times, tolerance_s=SPIKES_S).wild]
    if len(times) == 0:
        raise ImportFailedError(f"stream {field_of(stream, 'name')!r} has no usable timestamp")
    return float(times.min()), float(times.max())


def by_sender(streams: list[Stream], notes: list[str]) -> list[Source]:
    """Group streams by sender: streams with one name that don't overlap have one sender."""
    sources: list[Source] = []
    for stream in sorted(streams, key=span_of):
        name = field_of(stream, "name")
        same = [s for s in sources if s.name == name]
        before = [s for s in same if span_of(s.parts[-1])[1] <= span_of(stream)[0] + OVERLAP_S]
        if before:
            before[0].parts.append(stream)
        else:
            sources.append(Source(name=name if not same else f"{name} {len(same) + 1}",
                                  parts=[stream]))  # fmt: skip
    for source in sources:
        if len(source.parts) > 1:
            away = ", ".join(f"{end - start:.1f} s" for start, end in source.gaps())
            notes.append(
                f"stream {source.name!r} has {len(source.parts)} parts (its sender was restarted); "
                f"joined, gaps: {away or 'none'}"
            )
    at = {id(stream): place for place, stream in enumerate(streams)}
    return sorted(sources, key=lambda source: at[id(source.parts[0])])


def one_effector(sources: list[Source], notes: list[str]) -> Source:
    """The kinematics of one effector: by the order of `EFFECTORS`, then the longest."""

    def rank(source: Source) -> tuple[int, int]:
        tokens = re.findall(r"[a-z]+", source.name.lower())
        at = next((i for i, e in enumerate(EFFECTORS) if e in tokens), len(EFFECTORS) - 1)
        return at, -sum(len(part["time_stamps"]) for part in source.parts)

    first, *others = sorted(sources, key=rank)
    if others:
        names = ", ".join(repr(source.name) for source in others)
        notes.append(f"kinematics of {first.name!r} imported; not imported: {names}")
    return first


def compare_clocks(sources: list[Source], notes: list[str]) -> None:
    """Note streams without clock offsets: their timestamps are on their sender's own clock.

    sources: those of spikes, then the one of kinematics.
    """
    bare = [s for s in sources if not all(part.get("clock_times") for part in s.parts)]
    for source in bare:
        shift = _shift(source, sources[-1] if source is not sources[-1] else sources[0])
        seems = f"; its clock seems to be {shift:+.1f} s off" if abs(shift) > SHIFT_S else ""
        if seems or len(bare) < len(sources):
            notes.append(
                f"stream {source.name!r} has no clock offsets: its times are on its sender's clock"
                + seems
            )


def _shift(one: Source, other: Source) -> float:
    """Seconds by which `one` starts and ends after `other`; 0 unless both are about equal."""
    starts = span_of(one.parts[0])[0] - span_of(other.parts[0])[0]
    ends = span_of(one.parts[-1])[1] - span_of(other.parts[-1])[1]
    return (starts + ends) / 2 if abs(starts - ends) < SHIFT_S else 0.0


def described(stream: Stream, outer: str, inner: str) -> list[dict[str, Any]]:
    """The elements `desc/outer/inner` of the stream's description."""
    desc = (stream["info"].get("desc") or [None])[0]
    group = (desc.get(outer) or [None])[0] if isinstance(desc, dict) else None
    return list(group.get(inner) or []) if isinstance(group, dict) else []


def channel_labels(stream: Stream) -> list[str]:
    """The label of each channel."""
    channels = described(stream, "channels", "channel")
    return [str((c.get("label") or [""])[0] or "") for c in channels if isinstance(c, dict)]


def channel_units(stream: Stream) -> list[str]:
    """The unit of each channel."""
    channels = described(stream, "channels", "channel")
    return [str((c.get("unit") or [""])[0] or "") for c in channels if isinstance(c, dict)]
