"""Kinematics and markers from LSL, the labels of the spikes (docs/STREAMS.md).

Time stamps are mapped to this host's clock with LSL's time correction, like those of spikes.
"""

from __future__ import annotations

import threading
import time
from collections import deque

import numpy as np
import pylsl

from decoder.arrays import Floats
from decoder.errors import StreamError
from streaming.columns import COLUMNS, POSITION, VELOCITY, names_no_unit
from streaming.inlets.connector import (
    LOOK_S,
    POLL_S,
    REOPEN_AT_MOST_S,
    RETRY_AT_MOST_S,
    SILENT_S,
    open_stream,
)
from streaming.inlets.inlet import Inlet
from streaming.inlets.search import Lookout, Query
from streaming.lengths import KNOWN, is_speed, metres_in, says_nothing

KINEMATICS, MARKERS, NOTES = "Kinematics", "Markers", "Notes"
MAX_MARKER_STREAMS = 16
REMEMBERED = 4096  # markers, to drop duplicates from two connections to one sender


class KinematicsInlet(Inlet):
    """A stream with positions or velocities, and optionally targets, identified by channel labels.

    labels: the labels of `COLUMNS` in the stream. names_unit: whether the channels name their
    unit; if not, they are in m and m/s.
    Raises StreamError if the stream has neither position nor velocity.
    """

    def check(self, info: pylsl.StreamInfo) -> None:
        """Read the labels and units of the channels."""
        if info.channel_format() == pylsl.cf_string:
            raise StreamError(f"stream {self.name!r} carries strings; expected numbers")
        labels = [str(label) for label in info.get_channel_labels() or ()]
        self.labels = tuple(label for label in COLUMNS if label in labels)
        if not any(set(COLUMNS[part]) <= set(labels) for part in (POSITION, VELOCITY)):
            raise StreamError(
                f"stream {self.name!r} has channels {labels}; expected pos_x and pos_y, or vel_x "
                "and vel_y, among them"
            )
        if twice := [label for label in self.labels if labels.count(label) > 1]:
            raise StreamError(f"stream {self.name!r} has several channels {twice[0]}; expected one")
        self._columns = [labels.index(label) for label in self.labels]
        units = [str(unit or "").strip() for unit in info.get_channel_units() or ()]
        units += [""] * (len(labels) - len(units))
        given = {label: units[labels.index(label)] for label in self.labels}
        self.names_unit = not names_no_unit(given.items())
        self._metres = np.array(
            list(_metres(self.name, given).values()) if self.names_unit else [1.0] * len(given)
        )

    def drain(self, now: float | None = None) -> tuple[Floats, Floats]:
        """Times (n,) and values (n, 6) in the order of `COLUMNS`, m and m/s; NaN for missing ones.

        Samples without a time are left out. Never blocks. Raises StreamError if the sender is gone.
        """
        samples, times = self._pull(pylsl.local_clock() if now is None else now)
        timed = np.isfinite(times)
        samples, times = samples[timed], times[timed]
        values = np.full((len(times), len(COLUMNS)), np.nan)
        if len(times):
            into = [COLUMNS.index(label) for label in self.labels]
            values[:, into] = samples[:, self._columns].astype(np.float64) * self._metres
        return times, values


def _metres(name: str, units: dict[str, str]) -> dict[str, float]:
    """Metres (or m/s) in one of each channel's unit, by label.

    Raises StreamError if a unit is not a length, or if only some of the channels name one.
    """
    odd = sorted({unit for unit in units.values() if metres_in(unit) is None})
    if any(not says_nothing(unit) for unit in odd):
        raise StreamError(f"stream {name!r} is in {', '.join(filter(None, odd))}; expected {KNOWN}")
    if odd:
        listed = ", ".join(f"{label}: {unit or 'none'}" for label, unit in units.items())
        raise StreamError(
            f"stream {name!r} lacks units ({listed}); expected one for every channel: {KNOWN}"
        )
    for label, unit in units.items():
        if is_speed(unit) and not label.startswith("vel"):
            raise StreamError(f"stream {name!r} has {label} in {unit}, a speed; expected a length")
    return {label: float(metres_in(unit) or 1.0) for label, unit in units.items()}


class MarkerInlet(Inlet):
    """A stream of markers: strings, or numbers converted to text."""

    def drain(self, now: float | None = None) -> list[tuple[float, str]]:
        """Times and texts. Never blocks. Raises StreamError if the sender is gone."""
        samples, times = self._pull(pylsl.local_clock() if now is None else now)
        return [(float(t), _text(s)) for t, s in zip(times, samples, strict=True) if np.isfinite(t)]


def _text(sample: object) -> str:
    first = np.asarray(sample).flat[0] if np.size(np.asarray(sample)) else ""
    return first.decode(errors="replace") if isinstance(first, bytes) else str(first)


def find_kinematics(name: str | None, timeout_s: float) -> KinematicsInlet | None:
    """Opens the one stream of this name (or of type `Kinematics`); None if there is none."""
    return open_stream(Query(kind=KINEMATICS, name=name), KinematicsInlet, timeout_s)


def find_markers(name: str | None, timeout_s: float) -> MarkerInlet | None:
    """Opens the one stream of this name (or of type `Markers`); None if there is none."""
    return open_stream(Query(kind=MARKERS, name=name), MarkerInlet, timeout_s)


class Markers:
    """Reads all marker streams, or those of one name, as they come and go.

    kind: the type of the streams; `NOTES` for the notes of people.

    Markers are optional, and devices send some of their own. So nothing is raised, and a failing
    stream doesn't affect the others. A sender whose link was cut is opened again.
    """

    def __init__(self, name: str | None = None, *, kind: str = MARKERS) -> None:
        self._query = Query(kind=kind, name=name)
        self._open: dict[str, list[MarkerInlet]] = {}  # by uid, the newest connection last
        self._left: list[MarkerInlet] = []
        self._delivered: deque[tuple[str, float, str]] = deque(maxlen=REMEMBERED)
        self._again_at: dict[str, float] = {}  # by uid, time of the next attempt to open it
        self._reopen_s: dict[str, float] = {}  # by uid, silence after which it is opened again
        self._looked = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lsl-markers", daemon=True)
        self._thread.start()

    @property
    def names(self) -> list[str]:
        """Names of the open streams."""
        return sorted({inlets[-1].name for inlets in list(self._open.values()) if inlets})

    def wait(self, timeout_s: float) -> None:
        """Wait until the streams that answer are open, among them one of the given name, if any.

        Returns after `timeout_s` at the latest, because markers are optional.
        """
        deadline = time.monotonic() + timeout_s
        self._looked.wait(timeout_s)
        while self._query.name is not None and not self._open and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def drain(self) -> list[tuple[float, str]]:
        """Times and texts of the waiting markers of all streams. Never blocks or raises."""
        came = []
        for uid, inlets in list(self._open.items()):
            for inlet in list(inlets):
                try:
                    markers = inlet.drain()
                except StreamError:
                    inlets.remove(inlet)
                    self._left.append(inlet)
                    continue
                offset_s = inlet.clock_offset_s
                for at, text in markers:
                    marker = (uid, round(at - offset_s, 6), text)
                    if len(inlets) == 1 or marker not in self._delivered:
                        came.append((at, text))
                    self._delivered.append(marker)
        return sorted(came)

    def close(self) -> None:
        """Close all streams."""
        self._stop.set()
        self._thread.join(timeout=RETRY_AT_MOST_S)
        for inlets in self._open.values():
            self._left += inlets
        self._close_left()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._watch()
            except RuntimeError:  # liblsl couldn't search; try again
                self._stop.wait(RETRY_AT_MOST_S)

    def _watch(self) -> None:
        with Lookout(self._query) as lookout:
            lookout.wait(LOOK_S, self._stop)
            while not self._stop.is_set():
                seen = self._query.best(lookout.seen())
                for uid in {*self._reopen_s} - {info.uid() for info in seen}:
                    del self._reopen_s[uid]  # gone: opened at once when it is back
                for info in seen:
                    if self._is_due(info.uid()):
                        self._open_one(info)
                self._looked.set()
                self._close_left()
                self._stop.wait(POLL_S)

    def _is_due(self, uid: str) -> bool:
        """Whether to open a stream: it is new, or so silent that its connection may be cut."""
        now = pylsl.local_clock()
        if not (inlets := self._open.get(uid)):
            return bool(now > self._again_at.get(uid, 0.0))
        inlet = inlets[-1]
        if inlet.heard_at > inlet.opened_at:
            self._reopen_s[uid] = SILENT_S
        return bool(now - inlet.heard_at > self._reopen_s.get(uid, SILENT_S))

    def _open_one(self, info: pylsl.StreamInfo) -> None:
        uid, before = info.uid(), self._open.get(info.uid(), [])
        self._again_at[uid] = pylsl.local_clock() + RETRY_AT_MOST_S
        if before:
            self._reopen_s[uid] = min(2 * self._reopen_s.get(uid, SILENT_S), REOPEN_AT_MOST_S)
        elif sum(map(bool, self._open.values())) >= MAX_MARKER_STREAMS:
            return
        try:
            inlet = MarkerInlet(info)
        except StreamError:
            return
        self._left += before[:-1]  # the previous connection may still deliver markers
        self._open[uid] = [*before[-1:], inlet]

    def _close_left(self) -> None:
        while self._left:
            self._left.pop().close()
