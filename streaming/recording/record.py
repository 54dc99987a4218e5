"""Spikes, kinematics and markers onto disk as they come.

    volition record -o sessions --seconds 60

A process of its own with inlets of its own, so that no disk touches a tick. It writes a recording,
which `streaming.recording.raw` describes and makes a session of. Whatever comes is in the file at
once and on the disk every half second: what is killed loses no more.
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
MAX_PAUSE_S = 0.5  # of the kinematics; a longer one is a gap, which labels nothing


@dataclass(frozen=True, kw_only=True)
class RecordSettings:
    """Which streams to record; the only one of its kind where a name is left out."""

    spikes: StreamQuery = field(default_factory=StreamQuery)
    kinematics: str | None = None
    markers: str | None = None
    wait_s: float = 10.0


class Recorder:
    """Records into `folder/<session_id>.recording` from `start` until its `with` block ends.

    resume: go on with a recording that was cut short, on the same host since its last start.
    A sender that goes is waited for, and may come back with other units. Raises StreamError if
    there are no spikes or kinematics to record within `wait_s`; SessionError if the disk fails.
    What came before is kept, and the message says how to make a session of it.
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
            raise SessionError(f"{session} exists; choose another name, or move it away")
        if not resume and self.path.exists():
            raise SessionError(
                f"{self.path} exists; choose another name, or move it away. "
                f"`volition import {self.path}` makes a session of it"
            )
        self.n_spikes = self.n_samples = self.n_markers = 0
        self.labelled_s = 0.0  # of kinematics
        self.should_stop = False
        self._settings, self._session_id, self._subject = settings, session_id, subject
        self._unit_ids: list[str] = []  # a spike's unit in the file is a position here
        self._row = np.empty(0, dtype=np.int64)  # of each of the stream's units there
        self._recorded_at = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        self._names_unit = True  # of an earlier recorder's kinematics
        self._clock_jumps: list[float] = []  # and of its senders' clocks
        self._last_sample: float | None = None
        self._flushed_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        try:
            self.close()
        except VolitionError:
            if error is None:  # else that one says what happened
                raise

    def start(self) -> None:
        """Find and open the streams, make the folder."""
        asked = self._settings
        self._streams = RigStreams(asked.spikes, asked.kinematics, asked.markers)
        self._streams.wait(asked.wait_s)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._go_on_from_what_is_there()
            names = (SPIKES_FILE, KINEMATICS_FILE, MARKERS_FILE)
            self._files = [_Appended(self.path / name) for name in names]
            self._note_units()
        except (OSError, SessionError) as error:
            self._streams.close()
            if isinstance(error, SessionError):
                raise
            raise self._unwritten(error) from error

    def poll(self) -> None:
        """Write what waits on the streams."""
        spikes, kinematics, markers = self._files
        try:
            times, units = self._streams.spikes()
            usable = np.isfinite(times) & (units != UNKNOWN)
            if self._streams.n_changes != self._noted:
                self._note_units()
            spikes.write(_records(SPIKE, times[usable], self._row[units[usable]]))
            self.n_spikes += int(usable.sum())
            times, values = self._streams.kinematics()
            kinematics.write(_records(SAMPLE, times, values))
            self._count_samples(times)
            for at, text in self._streams.markers():
                markers.write((json.dumps({"time": at, "text": text}) + "\n").encode())
                self.n_markers += 1
            if time.monotonic() - self._flushed_at > FLUSH_EVERY_S:
                self._flush()
        except OSError as error:
            raise self._unwritten(error) from error

    def run(
        self, seconds: float | None, on_poll: Callable[[Recorder], None] = lambda recorder: None
    ) -> None:
        """Poll until so many seconds are labelled, or `should_stop`.

        Raises StreamError where seconds are asked for and a stream falls silent for long.
        """
        at, n_seen = time.monotonic(), (self.n_spikes, self.n_samples)
        while not self.should_stop and (seconds is None or self.labelled_s < seconds):
            self.poll()
            on_poll(self)
            if self.n_spikes > n_seen[0] and self.n_samples > n_seen[1]:
                at, n_seen = time.monotonic(), (self.n_spikes, self.n_samples)
            elif seconds is not None and time.monotonic() - at > SILENT_S:
                which = "spikes" if self.n_spikes == n_seen[0] else "kinematics"
                why = self._streams.problem or "is the rig running?"
                raise StreamError(f"no {which} came for {SILENT_S:g} s; {why} What came is kept")
            time.sleep(POLL_S)

    def close(self) -> None:
        """Close everything, what came on the disk."""
        self._streams.close()
        try:
            self._flush()
        except OSError as error:
            raise self._unwritten(error) from error
        finally:
            for file in self._files:
                file.close()

    def _unwritten(self, error: OSError) -> SessionError:
        return SessionError(
            f"{self.path}: can't be written ({error}); make room. What came before is kept"
        )

    def _count_samples(self, times: Floats) -> None:
        self.n_samples += len(times)
        if len(times):
            self.labelled_s += _covered_s(times, self._last_sample)
            self._last_sample = float(times[-1])

    def _go_on_from_what_is_there(self) -> None:
        """Count what an earlier recorder left, cut off a last record that isn't whole."""
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
        markers = self.path / MARKERS_FILE
        os.truncate(markers, markers.read_bytes().rfind(b"\n") + 1)
        self.n_spikes = len(read_records(self.path / SPIKES_FILE, SPIKE))
        times = read_records(self.path / KINEMATICS_FILE, SAMPLE)["time"]
        if len(times) and times[-1] > pylsl.local_clock():
            raise SessionError(
                f"{self.path} was recorded before this host started: its clock began anew; "
                "discard it, or keep it as it is"
            )
        self._count_samples(times)

    def _flush(self) -> None:
        self._flushed_at = time.monotonic()
        for file in self._files:
            file.sync()

    def _note_units(self) -> None:
        known = {unit_id: row for row, unit_id in enumerate(self._unit_ids)}
        self._noted = self._streams.n_changes
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
    """A file that is only appended to, and has at once what is written."""

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
    """Seconds that samples cover; a pause longer than `MAX_PAUSE_S` isn't counted."""
    steps = np.diff(times, prepend=times[0] if before is None else before)
    return float(steps[(steps > 0) & (steps <= MAX_PAUSE_S)].sum())


def _records(kind: np.dtype[np.void], times: Floats, values: Floats | Ints) -> bytes:
    records = np.empty(len(times), dtype=kind)
    first, second = kind.names or ()
    records[first], records[second] = times, values
    return records.tobytes()
