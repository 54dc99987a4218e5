"""Records spikes, kinematics, markers and notes to disk.

    volition record -o sessions --seconds 60

The recorder has its own process and its own inlets, so that disk access never delays a tick. It
writes a recording (`streaming.recording.raw`). Data are written at once and synced every half
second: a recorder that is killed loses no more than that.
"""

from __future__ import annotations

import datetime
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pylsl

from decoder.arrays import Floats, Ints
from decoder.errors import SessionError, StreamError, VolitionError
from decoder.files import write_text
from streaming.inlets.spikes import StreamQuery
from streaming.recording.raw import (
    ABOUT,
    KINEMATICS_FILE,
    MARKERS_FILE,
    MAX_PAUSE_S,
    NOTES_FILE,
    SAMPLE,
    SPIKE,
    SPIKES_FILE,
    SUFFIX,
    about_of,
    names_unit,
    read_records,
)
from streaming.recording.rigstreams import RigStreams
from streaming.sessions.format import path_of
from streaming.units import UNKNOWN

FLUSH_EVERY_S = 0.5
POLL_S = 0.02
SILENT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class RecordSettings:
    """The streams to record. Without a name, the only stream of the type is recorded.

    needs_kinematics: if false, and `kinematics` names none, spikes are recorded without them.
    """

    spikes: StreamQuery = field(default_factory=StreamQuery)
    kinematics: str | None = None
    markers: str | None = None
    needs_kinematics: bool = True
    wait_s: float = 10.0


class Recorder:
    """Records to `folder/<session_id>.recording` from `start` until its `with` block ends.

    If a sender goes away, the recorder waits for it; it may return with other units.

    resume: continue a recording that was cut short. This must be on the same host, without a
        restart of the host in between.
    Raises StreamError if spikes or kinematics don't open within `wait_s`, and SessionError if the
    disk fails. Earlier data are kept, and the error tells how to make a session from them.
    """

    def __init__(
        self,
        folder: Path,
        session_id: str,
        settings: RecordSettings,
        *,
        subject: str = "unknown",
        resume: bool = False,
    ) -> None:
        session = path_of(session_id, folder)
        self.path = folder / f"{session_id}{SUFFIX}"
        if not resume and session.exists():
            raise SessionError(f"{session} exists; choose another name, or move the file")
        if not resume and self.path.exists():
            raise SessionError(
                f"{self.path} exists; choose another name, or move the folder. "
                f"`volition import {self.path}` makes a session from it"
            )
        self.n_spikes = self.n_samples = self.n_markers = 0
        self.labelled_s = 0.0  # duration without gaps, of the kinematics or else of the spikes
        self.should_stop = False
        self._settings, self._session_id, self._subject = settings, session_id, subject
        self._unit_ids: list[str] = []  # a unit in the file is an index into these
        self._row = np.empty(0, dtype=np.int64)  # index in the file of each unit of the stream
        self._recorded_at = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        self._names_unit = True  # of the recording that is resumed
        self._clock_jumps: list[float] = []  # of the recording that is resumed
        self._last_sample: float | None = None  # or spike, if there are no kinematics
        self._flushed_at = 0.0
        self._has_streams = False
        self._files: list[_Appended] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        try:
            self.close()
        except VolitionError:
            if error is None:  # if not, the first error tells more
                raise

    def find_streams(self) -> None:
        """Open the streams. Nothing is on disk before `start`."""
        wanted = self._settings
        samples = self.path / KINEMATICS_FILE  # of the recording that is resumed
        is_labelled = samples.is_file() and samples.stat().st_size > 0
        self._streams = RigStreams(
            wanted.spikes, wanted.kinematics, wanted.markers,
            needs_kinematics=wanted.needs_kinematics or is_labelled,
        )  # fmt: skip
        self._streams.wait(wanted.wait_s)
        self._has_streams = True

    @property
    def has_kinematics(self) -> bool:
        """Whether kinematics are recorded, once the streams are open."""
        return self._streams.has_kinematics

    def start(self) -> None:
        """Open the streams if `find_streams` hasn't, and create the folder and its files."""
        if not self._has_streams:
            self.find_streams()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._resume()
            names = (SPIKES_FILE, KINEMATICS_FILE, MARKERS_FILE, NOTES_FILE)
            self._files = [_Appended(self.path / name) for name in names]
            self._write_about()
        except (OSError, SessionError) as error:
            self._streams.close()
            if isinstance(error, SessionError):
                raise
            raise self._write_error(error) from error

    def poll(self) -> None:
        """Write the data that wait on the streams."""
        spikes, kinematics, markers, notes = self._files
        try:
            times, units = self._streams.spikes()
            usable = np.isfinite(times) & (units != UNKNOWN)
            if self._streams.changes != self._noted:
                self._write_about()
            spikes.write(_records(SPIKE, times[usable], self._row[units[usable]]))
            self.n_spikes += int(usable.sum())
            if not self.has_kinematics:
                self._count_seconds(times[usable])
            times, values = self._streams.kinematics()
            kinematics.write(_records(SAMPLE, times, values))
            self.n_samples += len(times)
            self._count_seconds(times)
            for at, text in self._streams.markers():
                markers.write(_line(at, text))
                self.n_markers += 1
            for at, text in self._streams.notes():
                notes.write(_line(at, text))
            if time.monotonic() - self._flushed_at > FLUSH_EVERY_S:
                self._flush()
        except OSError as error:
            raise self._write_error(error) from error

    def run(
        self, seconds: float | None, on_poll: Callable[[Recorder], None] = lambda recorder: None
    ) -> None:
        """Poll until `seconds` are labelled, or `should_stop` is set.

        Raises StreamError if `seconds` are given and a stream is silent for `SILENT_S`.
        """
        at, n_seen = time.monotonic(), (self.n_spikes, self.n_samples)
        while not self.should_stop and (seconds is None or self.labelled_s < seconds):
            self.poll()
            on_poll(self)
            goes_on = self.n_samples > n_seen[1] or not self.has_kinematics
            if self.n_spikes > n_seen[0] and goes_on:
                at, n_seen = time.monotonic(), (self.n_spikes, self.n_samples)
            elif seconds is not None and time.monotonic() - at > SILENT_S:
                which = "spikes" if self.n_spikes == n_seen[0] else "kinematics"
                why = self._streams.problem or "is the rig running?"
                raise StreamError(f"no {which} for {SILENT_S:g} s; {why} The recording is kept")
            time.sleep(POLL_S)

    def close(self) -> None:
        """Close the streams, sync the files and close them."""
        if self._has_streams:
            self._streams.close()
        try:
            self._flush()
        except OSError as error:
            raise self._write_error(error) from error
        finally:
            for file in self._files:
                file.close()

    def _write_error(self, error: OSError) -> SessionError:
        return SessionError(
            f"{self.path}: can't be written ({error}); free some space. "
            "The recording so far is kept"
        )

    def _count_seconds(self, times: Floats) -> None:
        if not self.has_kinematics:  # spikes of different units may come out of order
            times = np.sort(times[times <= pylsl.local_clock()])
            times = times if self._last_sample is None else times[times > self._last_sample]
        if len(times):
            self.labelled_s += _covered_s(times, self._last_sample)
            self._last_sample = float(times[-1])

    def _resume(self) -> None:
        """Read the state of a recording to resume, and cut off an incomplete last record."""
        if not (self.path / ABOUT).is_file():
            return
        about = about_of(self.path)
        self._unit_ids = list(about["unit_ids"])
        self._recorded_at = str(about.get("recorded_at") or self._recorded_at)
        self._names_unit = names_unit(about)
        self._clock_jumps = list(about.get("clock_jumps") or ())
        for name, kind in ((SPIKES_FILE, SPIKE), (KINEMATICS_FILE, SAMPLE)):
            size = (self.path / name).stat().st_size
            os.truncate(self.path / name, size // kind.itemsize * kind.itemsize)
        for name in (MARKERS_FILE, NOTES_FILE):
            if (texts := self.path / name).is_file():  # recordings of 0.1 have no notes
                os.truncate(texts, texts.read_bytes().rfind(b"\n") + 1)
        spikes = read_records(self.path / SPIKES_FILE, SPIKE)["time"]
        self.n_spikes = len(spikes)
        times = read_records(self.path / KINEMATICS_FILE, SAMPLE)["time"]
        self.n_samples = len(times)
        times = times if self.has_kinematics else np.sort(spikes)
        if len(times) and times[-1] > pylsl.local_clock():
            raise SessionError(
                f"{self.path} was recorded before this host's last start: its times are on another "
                "clock. Record under another name"
            )
        self._count_seconds(times)

    def _flush(self) -> None:
        self._flushed_at = time.monotonic()
        for file in self._files:
            file.sync()

    def _write_about(self) -> None:
        known = {unit_id: row for row, unit_id in enumerate(self._unit_ids)}
        self._noted = self._streams.changes
        stream = self._streams.unit_ids
        self._unit_ids += [unit_id for unit_id in stream if unit_id not in known]
        row = {unit_id: row for row, unit_id in enumerate(self._unit_ids)}
        self._row = np.array([row[unit_id] for unit_id in stream], dtype=np.int64)
        about = {
            "session_id": self._session_id,
            "subject_id": self._subject,
            "recorded_at": self._recorded_at,
            "unit_ids": self._unit_ids,
            **self._streams.names,
            "names_unit": self._names_unit and self._streams.names_unit,
            "clock_jumps": self._clock_jumps + self._streams.clock_jumps,
        }
        write_text(self.path / ABOUT, json.dumps(about, indent=2) + "\n", SessionError)


class _Appended:
    """An unbuffered file that is only appended to."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)

    def write(self, content: bytes) -> None:
        left = memoryview(content)
        while left:
            left = left[self._file.write(left) :]

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _covered_s(times: Floats, before: float | None) -> float:
    """Duration of samples, without pauses longer than `MAX_PAUSE_S`. before: the previous time."""
    steps = np.diff(times, prepend=times[0] if before is None else before)
    return float(steps[(steps > 0) & (steps <= MAX_PAUSE_S)].sum())


def _line(at: float, text: str) -> bytes:
    return (json.dumps({"time": at, "text": text}) + "\n").encode()


def _records(kind: np.dtype[np.void], times: Floats, values: Floats | Ints) -> bytes:
    records = np.empty(len(times), dtype=kind)
    first, second = kind.names or ()
    records[first], records[second] = times, values
    return records.tobytes()
