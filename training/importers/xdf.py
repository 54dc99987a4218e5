"""Reads an XDF file: streams of spikes, kinematics and markers, as described in docs/STREAMS.md.

The streams of a restarted sender are joined. The units of several spike streams (one per array) are
combined. Streams that aren't imported are noted.
"""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

import numpy as np

from decoder.errors import ImportFailedError, SessionError
from streaming.recording.markers import trials_of
from streaming.sessions.session import Session
from training.conversion.assembly import Parts, assemble
from training.conversion.options import ImportOptions
from training.conversion.reader_warnings import as_notes, collect_warnings, first_line
from training.conversion.units import parse_length_unit
from training.importers.xdf_chunks import open_sound
from training.importers.xdf_clocks import put_clocks_right
from training.importers.xdf_kinematics import (
    kinematics_of,
    kinematics_streams,
    targets_of,
    track_of,
)
from training.importers.xdf_spikes import units_of
from training.importers.xdf_streams import (
    COUNTS,
    EVENTS,
    MARKERS,
    NOTES,
    SPIKES,
    Source,
    Stream,
    by_sender,
    compare_clocks,
    field_of,
    has_data,
    note_other_types,
    of_type,
    one_effector,
    stream_list,
)


def import_xdf(path: Path, options: ImportOptions | None = None) -> Session:
    """Read a LabRecorder file with streams of spikes and kinematics.

    options: its position and velocity are prefixes of channel labels (default `pos`, `vel`).
    """
    import pyxdf

    options = options or ImportOptions()
    if options.columns is not None or options.spike_unit is not None:
        raise ImportFailedError(
            f"{path}: XDF streams label their channels and have times in seconds; drop --columns "
            "and --spike-unit, and choose channels with --position and --velocity"
        )
    try:
        with collect_warnings(pyxdf.pyxdf.logger) as warned:
            file, damage = open_sound(path)
            with file:
                streams, header = pyxdf.load_xdf(file, dejitter_timestamps=False)
                stepped = put_clocks_right(streams, path)
    except Exception as error:  # pyxdf raises bare Exception, struct.error, ParseError, …
        raise ImportFailedError(
            f"{path}: not a readable XDF file ({first_line(error)}); it may be truncated. "
            "Expected a file that LabRecorder has closed"
        ) from error
    notes = [f"damaged (truncated?), skipped: {where}" for where in damage[:3]]
    if len(damage) > 3:
        notes.append(f"damaged, skipped: {len(damage) - 3} more chunks")
    notes += as_notes([line for line in warned if "clock-segments differ" not in line], "pyxdf")
    notes += stepped
    try:
        parts = _parts(streams, header, path, options, notes)
    except SessionError:
        raise
    except Exception as error:  # any shape of description and samples
        raise ImportFailedError(
            f"{path}: unexpected stream descriptions ({first_line(error)}); found "
            f"{stream_list(streams)}. Expected streams as described in docs/STREAMS.md"
        ) from error
    try:
        return assemble(parts, options)
    except SessionError as error:
        clocks = "".join(f". Note: {note}" for note in parts.notes if "no clock offsets" in note)
        raise ImportFailedError(f"{error}{clocks}") from error


def _parts(
    streams: list[Stream], header: Any, path: Path, options: ImportOptions, notes: list[str]
) -> Parts:
    if any("footer" not in stream for stream in streams):
        notes.append("the file is truncated; the samples before the end were imported")
    spikes = by_sender(of_type(streams, (SPIKES, EVENTS, COUNTS), path, notes), notes)
    kinematics = one_effector(
        by_sender(kinematics_streams(streams, path, options, notes), notes), notes
    )
    note_other_types(streams, [*spikes, kinematics], notes)
    unit_ids, unit_times = units_of(spikes, path, notes)
    times, columns, arbitrary = kinematics_of(kinematics, path, options, notes)
    compare_clocks([*spikes, kinematics], notes)
    _compare_markers(streams, kinematics, notes)
    metres = 1.0 if options.unit is None else parse_length_unit(options.unit)
    order = np.argsort(times, kind="stable")
    return Parts(
        path=path,
        session_id=path.stem,
        subject_id="unknown",
        recorded_at=_date(header, notes),
        source=f"XDF {path.name}",
        unit_ids=unit_ids,
        unit_times=unit_times,
        position=track_of(kinematics, times, columns.get("pos"), arbitrary),
        velocity=track_of(kinematics, times, columns.get("vel"), arbitrary),
        trials=trials_of(
            _markers(streams, notes),
            times[order],
            targets_of(times, columns)[order],
            metres=metres,
            notes=notes,
        ),
        notes=notes,
        arbitrary=arbitrary,
        written=_written(streams),
        cuts=tuple(gap for source in spikes for gap in source.gaps()),
    )


def _compare_markers(streams: list[Stream], kinematics: Source, notes: list[str]) -> None:
    """Note markers without clock offsets, as their clock may differ from the kinematics'."""
    if not all(part.get("clock_times") for part in kinematics.parts):
        return
    markers = [s for s in streams if field_of(s, "type") == MARKERS and has_data(s)]
    if bare := [s for s in markers if not s.get("clock_times")]:
        notes.append(f"markers without clock offsets, on their sender's clock: {stream_list(bare)}")


def _markers(streams: list[Stream], notes: list[str]) -> list[tuple[float, str]]:
    """Times and texts of all marker streams with trial markers; the others are noted."""
    markers: list[tuple[float, str]] = []
    silent = []
    for stream in streams:
        if field_of(stream, "type") != MARKERS or not has_data(stream):
            continue
        texts = [text for _, text in _texts(stream)]
        if not any(text.startswith("trial_") for text in texts):
            silent.append(stream)
            continue
        markers += [(at, text) for at, text in _texts(stream) if np.isfinite(at)]
    if silent:
        notes.append(f"marker streams without trials, not imported: {stream_list(silent)}")
    return markers


def _written(streams: list[Stream]) -> list[tuple[float, str]]:
    """Times and texts of the notes that people wrote."""
    written = [part for s in streams if field_of(s, "type") == NOTES for part in _texts(s)]
    return [(at, text) for at, text in written if np.isfinite(at)]


def _texts(stream: Stream) -> list[tuple[float, str]]:
    """Times and texts of a stream of strings."""
    stamps = np.asarray(stream["time_stamps"], dtype=np.float64)
    firsts = [np.atleast_1d(sample)[:1] for sample in stream["time_series"]]
    texts = [str(first[0]) if len(first) else "" for first in firsts]
    return [(float(at), text) for at, text in zip(stamps, texts, strict=True)]


def _date(header: Any, notes: list[str]) -> datetime.datetime | None:
    """Start of the recording, from the file's header."""
    info = header.get("info") if isinstance(header, dict) else None
    text = str(((info or {}).get("datetime") or [""])[0] or "")
    try:
        return datetime.datetime.fromisoformat(re.sub(r"([+-]\d\d)(\d\d)$", r"\1:\2", text))
    except ValueError:
        if text.strip():
            notes.append(f"the file's date {text[:80]!r} was not understood, and was left out")
        return None
