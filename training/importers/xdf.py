"""An XDF file as a session: streams of spikes, kinematics and markers as docs/STREAMS.md has them.

A sender that was started again is one stream in several parts: they are joined. Several arrays are
several streams of spikes: their units are put side by side. Whatever isn't taken is named.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from decoder.arrays import Floats, Ints
from decoder.errors import ImportFailedError, SessionError
from streaming.columns import COLUMNS, NO_UNIT, names_no_unit
from streaming.recording.markers import trials_of
from streaming.sessions.jumps import SPIKES_S, judge
from streaming.sessions.session import Session
from streaming.sessions.stamps import spikes_on_line
from streaming.units import repeated_units
from training.conversion.asked import NONE, Asked
from training.conversion.assemble import Parts, assemble
from training.conversion.complaints import as_notes, complaints, first_line
from training.conversion.units import factor_asked, factor_said, is_arbitrary
from training.importers.series import EFFECTORS, Track
from training.importers.xdf_chunks import open_sound
from training.importers.xdf_clocks import is_steady, on_one_clock

SPIKES, EVENTS, COUNTS = "Spikes", "SpikeEvents", "SpikeCounts"
KINEMATICS, MARKERS = "Kinematics", "Markers"
OVERLAP_S = 1.0  # by which parts of a restarted sender may overlap
SHIFT_S = 2.0  # spans that differ by so much at both ends are of clocks apart
MAX_RATE_HZ = 1000.0  # of a unit; a count above it is none
RATE_OFF = 0.1  # share by which stamps may differ from the rate of a stream of counts
MOST_LISTED = 10


def import_xdf(path: Path, asked: Asked | None = None) -> Session:
    """Read a LabRecorder file with streams of spikes and of kinematics.

    asked: position and velocity are label prefixes of the channels (default `pos`, `vel`).
    """
    import pyxdf

    asked = asked or Asked()
    if asked.columns is not None or asked.spike_unit is not None:
        raise ImportFailedError(
            f"{path}: streams name their channels and have times in seconds; leave --columns and "
            "--spike-unit out, and choose channels with --position and --velocity"
        )
    try:
        with complaints(pyxdf.pyxdf.logger) as said:
            file, damage = open_sound(path)
            with file:
                streams, header = pyxdf.load_xdf(file, dejitter_timestamps=False)
                stepped = _put_clocks_right(streams, path)
    except Exception as error:  # pyxdf raises bare Exception, struct.error, ParseError, …
        raise ImportFailedError(
            f"{path}: not a readable XDF file ({first_line(error)}); it may be truncated. "
            "Expected a file that LabRecorder has closed"
        ) from error
    notes = [f"damaged (truncated?), left out: {where}" for where in damage[:3]]
    if len(damage) > 3:
        notes.append(f"damaged, left out: {len(damage) - 3} more chunks")
    notes += as_notes([line for line in said if "clock-segments differ" not in line], "pyxdf")
    notes += stepped
    try:
        parts = _parts(streams, header, path, asked, notes)
    except SessionError:
        raise
    except Exception as error:  # descriptions and samples of any shape a stranger may record
        raise ImportFailedError(
            f"{path}: its streams aren't described as expected ({first_line(error)}); found "
            f"{_stream_list(streams)}. Expected streams as `volition replay` sends them"
        ) from error
    try:
        return assemble(parts, asked)
    except SessionError as error:
        clocks = "".join(f". Note: {note}" for note in parts.notes if "no clock offsets" in note)
        raise ImportFailedError(f"{error}{clocks}") from error


Stream = dict[str, Any]


def _put_clocks_right(streams: list[Stream], path: Path) -> list[str]:
    """Stamps of streams whose offsets pyxdf draws no right line through; notes of what was done."""
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
            notes.append(_about_clock(_text(stream, "name"), steps))
    return notes


def _about_clock(name: str, steps: list[tuple[float, float]]) -> str:
    if not steps:
        return f"clock offsets of {name!r} that disagree with those around them were not used"
    where = ", ".join(f"{start:.1f}" for start, _ in steps[:3])
    vague = sum(stop > start for start, stop in steps)
    return (
        f"the clock of {name!r} stepped {len(steps)} times (at {where} s); its stamps were put "
        "right by its clock offsets"
        + (f", {vague} times only to within a few seconds" if vague else "")
    )


@dataclass(frozen=True, kw_only=True)
class Source:
    """One sender: its streams in time order; more than one if it was started again."""

    name: str
    parts: list[Stream]

    def gaps(self) -> list[tuple[float, float]]:
        """Between the parts: when the sender was away."""
        spans = [_span(part) for part in self.parts]
        return [(a[1], b[0]) for a, b in pairwise(spans) if b[0] > a[1]]


def _parts(streams: list[Stream], header: Any, path: Path, asked: Asked, notes: list[str]) -> Parts:
    if any("footer" not in stream for stream in streams):
        notes.append("the file ends before its streams do (truncated); what is there was imported")
    spikes = _sources(_of_kind(streams, (SPIKES, EVENTS, COUNTS), path, notes), notes)
    kinematics = _one(_sources(_kinematics_streams(streams, path, asked, notes), notes), notes)
    _name_others(streams, [*spikes, kinematics], notes)
    unit_ids, unit_times = _units(spikes, path, notes)
    times, columns, arbitrary = _kinematics(kinematics, path, asked, notes)
    _compare_clocks([*spikes, kinematics], notes)
    _compare_markers(streams, kinematics, notes)
    metres = 1.0 if asked.unit is None else factor_asked(asked.unit)
    order = np.argsort(times, kind="stable")
    return Parts(
        path=path,
        session_id=path.stem,
        subject_id="unknown",
        recorded_at=_date(header, notes),
        source=f"XDF {path.name}",
        unit_ids=unit_ids,
        unit_times=unit_times,
        position=_track(kinematics, times, columns.get("pos"), arbitrary),
        velocity=_track(kinematics, times, columns.get("vel"), arbitrary),
        trials=trials_of(
            _markers(streams, notes),
            times[order],
            _targets(times, columns)[order],
            metres=metres,
            notes=notes,
        ),
        notes=notes,
        arbitrary=arbitrary,
        cuts=tuple(gap for source in spikes for gap in source.gaps()),
    )


def _text(stream: Stream, name: str) -> str:
    return str((stream["info"].get(name) or [""])[0] or "")


def _stream_list(streams: Sequence[Stream]) -> str:
    seen = [f"{_text(s, 'name')[:60]} ({_text(s, 'type')[:40]})" for s in streams]
    more = [f"{len(seen) - MOST_LISTED} more"] if len(seen) > MOST_LISTED else []
    return ", ".join(seen[:MOST_LISTED] + more) or "no streams"


def _of_kind(
    streams: list[Stream], kinds: tuple[str, ...], path: Path, notes: list[str]
) -> list[Stream]:
    """The streams with data of the first kind that there is."""
    for kind in kinds:
        if found := [s for s in streams if _text(s, "type") == kind and _has_data(s)]:
            others = [s for s in streams if _text(s, "type") in kinds and s not in found]
            if others:
                notes.append(f"not taken: {_stream_list(others)}")
            return found
    raise ImportFailedError(
        f"{path}: no stream of type {kinds[0]!r} with data; found {_stream_list(streams)}. "
        f"Record the {kinds[0]!r} stream too, and import that file"
    )


def _name_others(streams: list[Stream], taken: list[Source], notes: list[str]) -> None:
    """Name the streams of other types; those of a type that is read are named where they are
    chosen."""
    parts = [part for source in taken for part in source.parts]
    read = (SPIKES, EVENTS, COUNTS, KINEMATICS, MARKERS)
    others = [
        s for s in streams
        if _has_data(s) and _text(s, "type") not in read and all(s is not p for p in parts)
    ]  # fmt: skip
    if others:
        notes.append(f"streams of other types, not taken: {_stream_list(others)}")


def _has_data(stream: Stream) -> bool:
    return len(stream["time_stamps"]) > 0


def _kinematics_streams(
    streams: list[Stream], path: Path, asked: Asked, notes: list[str]
) -> list[Stream]:
    """Those of type `Kinematics`, else others whose channels are named as theirs."""
    found = [s for s in streams if _text(s, "type") == KINEMATICS and _has_data(s)]
    if found:
        return found
    wanted = (asked.position or "pos", asked.velocity or "vel")
    named = [s for s in streams if any(_axes_of(p, _labels(s)) for p in wanted) and _has_data(s)]
    if named:
        notes.append(f"no stream of type {KINEMATICS!r}; taken by its channels: "
                     f"{_stream_list(named)}")  # fmt: skip
        return named
    return _of_kind(streams, (KINEMATICS,), path, notes)


def _span(stream: Stream) -> tuple[float, float]:
    times = np.asarray(stream["time_stamps"], dtype=np.float64)
    times = times[~judge(times, tolerance_s=SPIKES_S).wild]
    if len(times) == 0:
        raise ImportFailedError(f"stream {_text(stream, 'name')!r} has no usable stamp")
    return float(times.min()), float(times.max())


def _sources(streams: list[Stream], notes: list[str]) -> list[Source]:
    """Streams by their sender. Those of one name are parts if they don't overlap."""
    sources: list[Source] = []
    for stream in sorted(streams, key=_span):
        name = _text(stream, "name")
        same = [s for s in sources if s.name == name]
        before = [s for s in same if _span(s.parts[-1])[1] <= _span(stream)[0] + OVERLAP_S]
        if before:
            before[0].parts.append(stream)
        else:
            sources.append(Source(name=name if not same else f"{name} {len(same) + 1}",
                                  parts=[stream]))  # fmt: skip
    for source in sources:
        if len(source.parts) > 1:
            away = ", ".join(f"{end - start:.1f} s" for start, end in source.gaps())
            notes.append(
                f"stream {source.name!r} is in {len(source.parts)} parts (its sender was started "
                f"again); joined, away for {away or '0 s'}"
            )
    at = {id(stream): place for place, stream in enumerate(streams)}
    return sorted(sources, key=lambda source: at[id(source.parts[0])])


def _one(sources: list[Source], notes: list[str]) -> Source:
    """The kinematics of one effector: the cursor's before others', then the longest."""

    def rank(source: Source) -> tuple[int, int]:
        tokens = re.findall(r"[a-z]+", source.name.lower())
        at = next((i for i, e in enumerate(EFFECTORS) if e in tokens), len(EFFECTORS) - 1)
        return at, -sum(len(part["time_stamps"]) for part in source.parts)

    first, *others = sorted(sources, key=rank)
    if others:
        names = ", ".join(repr(source.name) for source in others)
        notes.append(f"kinematics of {first.name!r} taken; not taken: {names}")
    return first


def _compare_clocks(sources: list[Source], notes: list[str]) -> None:
    """Streams without clock offsets keep their sender's clock, which may be another.

    sources: of spikes, and the kinematics last.
    """
    bare = [s for s in sources if not all(part.get("clock_times") for part in s.parts)]
    for source in bare:
        shift = _shift(source, sources[-1] if source is not sources[-1] else sources[0])
        seems = f"; its clock seems {shift:+.1f} s off" if abs(shift) > SHIFT_S else ""
        if seems or len(bare) < len(sources):
            notes.append(
                f"stream {source.name!r} has no clock offsets: its times are its sender's own"
                + seems
            )


def _compare_markers(streams: list[Stream], kinematics: Source, notes: list[str]) -> None:
    """Markers without clock offsets beside kinematics that have some may be on another clock."""
    if not all(part.get("clock_times") for part in kinematics.parts):
        return
    markers = [s for s in streams if _text(s, "type") == MARKERS and _has_data(s)]
    if bare := [s for s in markers if not s.get("clock_times")]:
        notes.append(
            f"markers without clock offsets, on their sender's clock: {_stream_list(bare)}"
        )


def _shift(one: Source, other: Source) -> float:
    """Seconds by which one begins and ends after the other, if by about the same; else 0."""
    starts = _span(one.parts[0])[0] - _span(other.parts[0])[0]
    ends = _span(one.parts[-1])[1] - _span(other.parts[-1])[1]
    return (starts + ends) / 2 if abs(starts - ends) < SHIFT_S else 0.0


def _description(stream: Stream, outer: str, inner: str) -> list[dict[str, Any]]:
    desc = (stream["info"].get("desc") or [None])[0]
    group = (desc.get(outer) or [None])[0] if isinstance(desc, dict) else None
    return list(group.get(inner) or []) if isinstance(group, dict) else []


def _units(sources: list[Source], path: Path, notes: list[str]) -> tuple[list[str], list[Floats]]:
    """All units' ids, and each one's spike times."""
    found = [_units_of_source(source, path, notes) for source in sources]
    names = [unit_id for units in found for unit_id in units]
    if len(found) > 1:
        counts = ", ".join(f"{s.name!r} ({len(u)})" for s, u in zip(sources, found, strict=True))
        notes.append(f"units of {len(found)} streams side by side: {counts}")
    if repeated_units(names) is not None:
        found = [
            {f"{source.name}/{unit_id}": times for unit_id, times in units.items()}
            for source, units in zip(sources, found, strict=True)
        ]
        notes.append("several streams have the same unit ids; units are called STREAM/ID")
    units = {unit_id: times for units in found for unit_id, times in units.items()}
    return list(units), list(units.values())


def _units_of_source(source: Source, path: Path, notes: list[str]) -> dict[str, Floats]:
    """Spike times by unit id; a unit of several parts has all of them."""
    units: dict[str, list[Floats]] = {}
    for part in source.parts:
        unit_ids, times, rows = _spikes(part, path, notes)
        for row, unit_id in enumerate(unit_ids):
            units.setdefault(unit_id, []).append(times[rows == row])
    return {unit_id: np.concatenate(times) for unit_id, times in units.items()}


def _spikes(stream: Stream, path: Path, notes: list[str]) -> tuple[list[str], Floats, Ints]:
    """Unit ids of one stream; times (n,) and positions there (n,) of its spikes."""
    samples = np.asarray(stream["time_series"])
    stamps = np.asarray(stream["time_stamps"], dtype=np.float64)
    name = _text(stream, "name")
    if samples.dtype == object or samples.ndim != 2:
        raise ImportFailedError(f"{path}: stream {name!r} holds no numbers; expected spikes")
    on_time = spikes_on_line(stamps, name, notes)
    samples, stamps = samples[on_time], stamps[on_time]
    if _text(stream, "type") == COUNTS:
        return _counted(stream, samples, stamps, path, notes)
    if samples.shape[1] < 2:
        raise ImportFailedError(
            f"{path}: the spike stream has samples of shape {samples.shape[1:]}; "
            "expected the two fields channel and unit"
        )
    pairs, inverse = np.unique(samples[:, :2].astype(np.int64), axis=0, return_inverse=True)
    unit_of = _described(stream, path)
    if not unit_of and _text(stream, "type") == EVENTS:
        unit_of = {(int(c), int(u)): f"{c}/{u}" for c, u in pairs}
    if not unit_of:
        raise ImportFailedError(
            f"{path}: the spike stream's desc/units is empty; expected one unit each, with id, "
            "channel and unit"
        )
    unit_ids = list(unit_of.values())
    row_of = {key: row for row, key in enumerate(unit_of)}
    rows = np.array([row_of.get((int(c), int(u)), -1) for c, u in pairs])[inverse.ravel()]
    if n_unknown := int((rows < 0).sum()):
        notes.append(f"{n_unknown} events of units that desc/units doesn't name were left out")
    return unit_ids, stamps, rows


def _described(stream: Stream, path: Path) -> dict[tuple[int, int], str]:
    described = _description(stream, "units", "unit")
    unit_of = {(int(u["channel"][0]), int(u["unit"][0])): str(u["id"][0]) for u in described}
    if problem := repeated_units(list(unit_of.values())):
        raise ImportFailedError(f"{path}: stream {_text(stream, 'name')!r}: {problem}")
    return unit_of


def _counted(
    stream: Stream, counts: np.ndarray[Any, Any], ends: Floats, path: Path, notes: list[str]
) -> tuple[list[str], Floats, Ints]:
    """Spikes of counts (n_bins, n_units), spread evenly in their bins, as the daemon does."""
    unit_ids, rate_hz = _labels(stream), float(_text(stream, "nominal_srate") or 0.0)
    if len(unit_ids) != counts.shape[1] or not (np.isfinite(rate_hz) and rate_hz > 0):
        raise ImportFailedError(
            f"{path}: counts of {counts.shape[1]} channels have {len(unit_ids)} labels and a rate "
            f"of {rate_hz:g} Hz; expected a label (the unit's id) for each, and a regular rate"
        )
    if problem := repeated_units(unit_ids):
        raise ImportFailedError(f"{path}: stream {_text(stream, 'name')!r}: {problem}")
    bin_s = _bin_s(rate_hz, ends, _text(stream, "name"), notes)
    most = np.ceil(MAX_RATE_HZ * bin_s)
    finite = np.nan_to_num(counts.astype(np.float64), nan=0.0, posinf=0.0)
    flat = np.clip(finite, 0, most).round().astype(np.int64).ravel()
    cell = np.repeat(np.arange(len(flat)), flat)
    rank = np.arange(len(cell)) - np.repeat(np.cumsum(flat) - flat, flat)
    times = ends[cell // counts.shape[1]] - bin_s + (rank + 0.5) / flat[cell] * bin_s
    return unit_ids, times, cell % counts.shape[1]


def _bin_s(rate_hz: float, ends: Floats, name: str, notes: list[str]) -> float:
    """Seconds of a bin: between stamps, if they are regular and say other than the rate."""
    steps = np.diff(ends)
    usual = float(np.median(steps)) if len(steps) else 0.0
    regular = usual > 0 and float((np.abs(steps / usual - 1) < RATE_OFF).mean()) > 0.9
    if not regular or abs(usual * rate_hz - 1) < RATE_OFF:
        return 1.0 / rate_hz
    notes.append(
        f"stream {name!r} says {rate_hz:g} Hz, but its stamps are {usual:.3g} s apart; its bins "
        "were taken to be that long"
    )
    return usual


def _labels(stream: Stream) -> list[str]:
    channels = _description(stream, "channels", "channel")
    return [str((c.get("label") or [""])[0] or "") for c in channels if isinstance(c, dict)]


def _unit_words(stream: Stream) -> list[str]:
    channels = _description(stream, "channels", "channel")
    return [str((c.get("unit") or [""])[0] or "") for c in channels if isinstance(c, dict)]


def _kinematics(
    source: Source, path: Path, asked: Asked, notes: list[str]
) -> tuple[Floats, dict[str, Floats], bool]:
    """Times (n,), columns (n, 2) in SI units by `pos`, `vel` and `target`, NaN where a part has
    none; and whether they are in arbitrary units."""
    prefixes = {"pos": asked.position or "pos", "vel": asked.velocity or "vel", "target": "target"}
    here: list[str] = []
    read = [_columns(part, prefixes, path, asked, here) for part in source.parts]
    notes += dict.fromkeys(here)
    times = np.concatenate([np.asarray(p["time_stamps"], dtype=np.float64) for p in source.parts])
    columns: dict[str, Floats] = {}
    for kind, prefix in prefixes.items():
        if all(kind not in columns_of for columns_of in read):
            if kind != "target" and prefix not in (kind, NONE):
                raise _no_channels(path, prefix, source)
            continue
        empty = [np.full((len(p["time_stamps"]), 2), np.nan) for p in source.parts]
        columns[kind] = np.concatenate([c.get(kind, e) for c, e in zip(read, empty, strict=True)])
    if not {"pos", "vel"} & set(columns):
        raise _no_channels(path, prefixes["pos"], source)
    arbitrary = any(is_arbitrary(w) for part in source.parts for w in _unit_words(part))
    return times, columns, arbitrary


def _no_channels(path: Path, prefix: str, source: Source) -> ImportFailedError:
    labels = _labels(source.parts[0])
    return ImportFailedError(
        f"{path}: no kinematics channels {prefix}_x and {prefix}_y; found "
        f"{labels[:20] or 'no labels'}. Name yours with --position or --velocity"
    )


def _axes_of(prefix: str, labels: Sequence[str]) -> list[str] | None:
    """The labels of x and y, such as `pos_x`; `Right` also finds `Right_X`, `right.x`, `RightX`."""
    exact = [f"{prefix}_{axis}" for axis in "xy"]
    if set(exact) <= set(labels):
        return exact
    found = [
        [label for label in labels if re.fullmatch(rf"{re.escape(prefix)}[ _.-]?{axis}", label,
                                                    re.IGNORECASE)]
        for axis in "xy"
    ]  # fmt: skip
    return [matches[0] for matches in found] if all(len(m) == 1 for m in found) else None


def _columns(
    stream: Stream, prefixes: dict[str, str], path: Path, asked: Asked, notes: list[str]
) -> dict[str, Floats]:
    labels, words = _labels(stream), _unit_words(stream)
    unnamed = names_no_unit(zip(labels, words, strict=True))
    samples = np.asarray(stream["time_series"])
    if samples.dtype == object or samples.ndim != 2:
        raise ImportFailedError(
            f"{path}: stream {_text(stream, 'name')!r} holds no numbers; expected kinematics"
        )
    found = {}
    for kind, prefix in prefixes.items():
        wanted = _axes_of(prefix, labels)
        if prefix == NONE or wanted is None:
            continue
        if twice := [label for label in wanted if labels.count(label) > 1]:
            raise ImportFailedError(
                f"{path}: stream {_text(stream, 'name')!r} has several channels {twice[0]}; "
                "expected one. Choose others with --position or --velocity"
            )
        at = [labels.index(label) for label in wanted]
        if max(at) >= samples.shape[1]:
            raise ImportFailedError(
                f"{path}: {len(labels)} channels are described, but samples have "
                f"{samples.shape[1]} values; expected as many"
            )
        if set(wanted) <= set(COLUMNS) and asked.unit is None and unnamed:
            notes.append(NO_UNIT)
            found[kind] = samples[:, at].astype(np.float64)
            continue
        metres = [
            factor_said(words[i], 1.0, speed=kind == "vel", asked=asked.unit, what=what,
                        notes=notes)
            for i, what in zip(at, wanted, strict=True)
        ]  # fmt: skip
        found[kind] = samples[:, at].astype(np.float64) * np.array(metres)
    return found


def _track(source: Source, times: Floats, values: Floats | None, arbitrary: bool) -> Track | None:
    if values is None:
        return None
    return Track(
        name=source.name, times=times, values=values, conversion=1.0, offset=0.0, metres=1.0,
        arbitrary=arbitrary,
    )  # fmt: skip


def _targets(times: Floats, columns: dict[str, Floats]) -> Floats:
    """Where a target is shown at the kinematics' times; targets need a position beside them."""
    nowhere = np.full((len(times), 2), np.nan)
    return columns.get("target", nowhere) if "pos" in columns else nowhere


def _markers(streams: list[Stream], notes: list[str]) -> list[tuple[float, str]]:
    """Times and texts of all streams of markers; those that tell of no trial are named."""
    markers: list[tuple[float, str]] = []
    silent = []
    for stream in streams:
        if _text(stream, "type") != MARKERS or not _has_data(stream):
            continue
        texts = [str(np.atleast_1d(sample)[0]) if len(np.atleast_1d(sample)) else ""
                 for sample in stream["time_series"]]  # fmt: skip
        if not any(text.startswith("trial_") for text in texts):
            silent.append(stream)
            continue
        stamps = np.asarray(stream["time_stamps"], dtype=np.float64)
        markers += [(float(t), text) for t, text in zip(stamps, texts, strict=True)
                    if np.isfinite(t)]  # fmt: skip
    if silent:
        notes.append(f"markers that tell of no trial, not taken: {_stream_list(silent)}")
    return markers


def _date(header: Any, notes: list[str]) -> datetime.datetime | None:
    """When the recorder began, as the file's header says."""
    info = header.get("info") if isinstance(header, dict) else None
    text = str(((info or {}).get("datetime") or [""])[0] or "")
    try:
        return datetime.datetime.fromisoformat(re.sub(r"([+-]\d\d)(\d\d)$", r"\1:\2", text))
    except ValueError:
        if text.strip():
            notes.append(f"the file's date {text[:80]!r} was not understood, and is left out")
        return None
