"""Spikes, kinematics and markers onto disk as they come, and back as a session.

    volition record -o sessions --seconds 60

A process of its own with inlets of its own, so that no disk touches a tick. While it runs:

    NAME.recording/
      about.json        session, subject, stream names, unit ids (again whenever units come)
      spikes.bin        float64 time (LSL clock, s), int64 unit, a record a spike
      kinematics.bin    float64 time, then `streaming.labels.COLUMNS`, a record a sample
      markers.jsonl     time and text, a line a marker

Files are only ever appended to, and flushed to the disk every half second: what is killed loses
no more. `read_recording` makes a session of it, whole or cut short.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pylsl

from decoder.errors import SessionError, StreamError
from streaming.labels import COLUMNS, POSITION, TARGET, VELOCITY, find_kinematics, find_markers
from streaming.lsl import RESOLVE_S, Floats, Ints, SpikeInlet, StreamQuery
from streaming.sessions import (
    Session,
    Trials,
    continuous_domain,
    position_of,
    sorted_spikes,
    velocity_of,
    with_domains,
    without_gaps,
)
from streaming.units import UNKNOWN

SUFFIX = ".recording"
ABOUT, SPIKES_FILE, KINEMATICS_FILE, MARKERS_FILE = (
    "about.json",
    "spikes.bin",
    "kinematics.bin",
    "markers.jsonl",
)
SPIKE = np.dtype([("time", "<f8"), ("unit", "<i8")])
SAMPLE = np.dtype([("time", "<f8"), ("values", "<f8", (len(COLUMNS),))])
FLUSH_EVERY_S = 0.5
POLL_S = 0.02
MARKERS_WAIT_S = 0.5  # a rig may have none
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
    Raises StreamError where there are no spikes or kinematics to record within `wait_s`, or
    where a sender went away; SessionError where the disk fails. What came before is kept.
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
        if Path(session_id).name != session_id:
            raise SessionError(f"session id {session_id!r} can't be a folder's name")
        self.path = folder / f"{session_id}{SUFFIX}"
        if self.path.exists() and not resume:
            raise SessionError(f"{self.path} exists; choose another name, or move it away")
        self.n_spikes = self.n_samples = self.n_markers = 0
        self.labelled_s = 0.0  # of kinematics
        self.should_stop = False
        self._settings, self._session_id, self._subject = settings, session_id, subject
        self._unit_ids: list[str] = []  # a spike's unit in the file is a position here
        self._row = np.empty(0, dtype=np.int64)  # of each of the stream's units there
        self._last_sample: float | None = None
        self._flushed_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def start(self) -> None:
        """Find and open the streams, make the folder."""
        deadline = time.monotonic() + self._settings.wait_s
        found = None
        while found is None and time.monotonic() < deadline:
            found = self._settings.spikes.resolve(RESOLVE_S)
        if found is None:
            raise StreamError(f"no spike stream of {self._settings.spikes}; is the rig sending?")
        kinematics = None
        while kinematics is None and time.monotonic() < deadline + RESOLVE_S:
            kinematics = find_kinematics(self._settings.kinematics, RESOLVE_S)
        if kinematics is None:
            which = self._settings.kinematics or "type 'Kinematics'"
            raise StreamError(f"no kinematics stream ({which}); nothing would label the spikes")
        self._spikes, self._kinematics = SpikeInlet(found), kinematics
        self._markers = find_markers(self._settings.markers, MARKERS_WAIT_S)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._go_on_from_what_is_there()
            names = (SPIKES_FILE, KINEMATICS_FILE, MARKERS_FILE)
            self._files = [(self.path / name).open("ab") for name in names]
        except OSError as error:
            raise SessionError(f"{self.path}: can't be written ({error})") from error
        self._note_units()

    def poll(self) -> None:
        """Write what waits on the streams."""
        spikes, kinematics, markers = self._files
        try:
            times, units = self._spikes.drain(pylsl.local_clock())
            usable = np.isfinite(times) & (units != UNKNOWN)
            if len(self._spikes.unit_ids) != len(self._row):
                self._note_units()
            spikes.write(_records(SPIKE, times[usable], self._row[units[usable]]))
            self.n_spikes += int(usable.sum())
            times, values = self._kinematics.drain()
            kinematics.write(_records(SAMPLE, times, values))
            self._count_samples(times)
            for at, text in self._markers.drain() if self._markers else ():
                markers.write((json.dumps({"time": at, "text": text}) + "\n").encode())
                self.n_markers += 1
            if time.monotonic() - self._flushed_at > FLUSH_EVERY_S:
                self._flush()
        except OSError as error:
            raise SessionError(
                f"{self.path}: can't be written ({error}); make room. What came before is kept"
            ) from error

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
                raise StreamError(
                    f"no {which} came for {SILENT_S:g} s; is the rig running? What came is kept"
                )
            time.sleep(POLL_S)

    def close(self) -> None:
        """Flush and close everything."""
        self._flush()
        for file in self._files:
            file.close()
        for inlet in (self._spikes, self._kinematics, self._markers):
            if inlet is not None:
                inlet.close()

    def _count_samples(self, times: Floats) -> None:
        self.n_samples += len(times)
        if len(times):
            self.labelled_s += _covered_s(times, self._last_sample)
            self._last_sample = float(times[-1])

    def _go_on_from_what_is_there(self) -> None:
        """Count what an earlier recorder left, cut off a last record that isn't whole."""
        if not (self.path / ABOUT).is_file():
            return
        self._unit_ids = list(_about(self.path)["unit_ids"])
        for name, kind in ((SPIKES_FILE, SPIKE), (KINEMATICS_FILE, SAMPLE)):
            size = (self.path / name).stat().st_size
            os.truncate(self.path / name, size // kind.itemsize * kind.itemsize)
        markers = self.path / MARKERS_FILE
        os.truncate(markers, markers.read_bytes().rfind(b"\n") + 1)
        self.n_spikes = len(_read(self.path / SPIKES_FILE, SPIKE))
        times = _read(self.path / KINEMATICS_FILE, SAMPLE)["time"]
        if len(times) and times[-1] > pylsl.local_clock():
            raise SessionError(
                f"{self.path} was recorded before this host started: its clock began anew; "
                "discard it, or keep it as it is"
            )
        self._count_samples(times)

    def _flush(self) -> None:
        self._flushed_at = time.monotonic()
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())

    def _note_units(self) -> None:
        known = {unit_id: row for row, unit_id in enumerate(self._unit_ids)}
        stream = self._spikes.unit_ids
        self._unit_ids += [unit_id for unit_id in stream if unit_id not in known]
        row = {unit_id: row for row, unit_id in enumerate(self._unit_ids)}
        self._row = np.array([row[unit_id] for unit_id in stream], dtype=np.int64)
        about = {
            "session_id": self._session_id,
            "subject_id": self._subject,
            "unit_ids": self._unit_ids,
            "spikes": self._spikes.name,
            "kinematics": self._kinematics.name,
            "markers": self._markers.name if self._markers else None,
        }
        partial = self.path / f".{ABOUT}.partial"
        partial.write_text(json.dumps(about, indent=2) + "\n")
        os.replace(partial, self.path / ABOUT)


def _covered_s(times: Floats, before: float | None) -> float:
    """Seconds that samples cover; a pause longer than `MAX_PAUSE_S` isn't counted."""
    steps = np.diff(times, prepend=times[0] if before is None else before)
    return float(steps[(steps > 0) & (steps <= MAX_PAUSE_S)].sum())


def _records(kind: np.dtype[np.void], times: Floats, values: Floats | Ints) -> bytes:
    records = np.empty(len(times), dtype=kind)
    first, second = kind.names or ()
    records[first], records[second] = times, values
    return records.tobytes()


def read_recording(path: Path | str, *, cut: bool = True) -> Session:
    """A recording as a session; SessionError where too little is there.

    cut: its domains 70/10/20; else each of them is the whole, as of a calibration.

    A last record that was cut short is left out. Units without a spike stay. Where only velocity
    was sent, position is its integral from (0, 0), so that no target can be placed beside it.
    """
    path = Path(path)
    about = _about(path)
    spikes, samples = _read(path / SPIKES_FILE, SPIKE), _read(path / KINEMATICS_FILE, SAMPLE)
    times, first = np.unique(samples["time"], return_index=True)
    values = samples["values"][first]
    has_position = bool(np.isfinite(values[:, POSITION]).any())
    given = values[:, POSITION if has_position else VELOCITY]
    finite = np.isfinite(times) & np.isfinite(given).all(axis=1)
    times, values = times[finite], values[finite]
    if len(times) < 2:
        raise SessionError(f"{path}: {len(times)} samples of kinematics; expected many more")
    pos, vel = values[:, POSITION], values[:, VELOCITY]
    targets = values[:, TARGET]
    if not has_position:
        pos, targets = position_of(vel, times), np.full_like(targets, np.nan)
    elif not np.isfinite(vel).all():
        vel = velocity_of(pos, times)
    spike_times, spike_units, _ = sorted_spikes(spikes["time"], spikes["unit"])
    inside = (spike_times >= times[0]) & (spike_times < times[-1])
    domain = without_gaps(continuous_domain(times), times)
    whole = Session(
        session_id=about["session_id"],
        subject_id=about["subject_id"],
        unit_ids=tuple(about["unit_ids"]),
        spike_times=spike_times[inside],
        spike_units=spike_units[inside],
        cursor_times=times,
        cursor_pos=pos,
        cursor_vel=vel,
        domain=domain,
        train_domain=domain,
        valid_domain=domain,
        test_domain=domain,
        trials=_trials(path / MARKERS_FILE, times, targets),
        source=f"recorded from {about['spikes']} and {about['kinematics']}",
    )
    return with_domains(whole) if cut else whole


def _about(path: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((path / ABOUT).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise SessionError(f"{path}: not a recording ({error}); expected {ABOUT} in it") from error
    return about


def _read(path: Path, kind: np.dtype[np.void]) -> np.ndarray[Any, np.dtype[np.void]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SessionError(f"{path}: can't be read ({error})") from error
    return np.frombuffer(content[: len(content) // kind.itemsize * kind.itemsize], dtype=kind)


def _trials(path: Path, times: Floats, targets: Floats) -> Trials | None:
    """Trials from `trial_start i` and `trial_end i`, those that lie inside the kinematics.

    A trial's target is where it last stood, of `targets` (n, 2) at `times`; NaN where none was.
    """
    begun: dict[str, float] = {}
    intervals, at_end = [], []
    for line in path.read_text().splitlines():
        try:
            marker = json.loads(line)
        except json.JSONDecodeError:
            break  # cut short
        if match := re.fullmatch(r"trial_(start|end) (\S+)", marker["text"]):
            if match[1] == "start":
                begun[match[2]] = marker["time"]
            elif (start := begun.pop(match[2], None)) is not None and start >= times[0]:
                intervals.append((start, marker["time"]))
                first, last = np.searchsorted(times, intervals[-1])
                at_end.append(targets[last - 1] if last > first else np.full(2, np.nan))
    if not intervals:
        return None
    has_targets = bool(np.isfinite(at_end).all(axis=1).any())
    return Trials(
        intervals=np.array(intervals), target_pos=np.array(at_end) if has_targets else None
    )
