"""Kinematics and markers from LSL: what spikes are labelled with (docs/STREAMS.md).

Stamps are mapped to this host's clock with LSL's time correction, as spikes are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pylsl

from decoder.errors import StreamError
from streaming.lsl import CORRECTION_EVERY_S, MAX_SAMPLES, OPEN_TIMEOUT_S, Floats, only_stream

KINEMATICS, MARKERS = "Kinematics", "Markers"
COLUMNS = ("pos_x", "pos_y", "vel_x", "vel_y", "target_x", "target_y")
POSITION = slice(0, 2)
VELOCITY = slice(2, 4)
TARGET = slice(4, 6)
METRES = {"": 1.0, "m": 1.0, "m/s": 1.0, "cm": 1e-2, "cm/s": 1e-2, "mm": 1e-3, "mm/s": 1e-3}


class _Inlet:
    """An open stream and its clock offset. Opening blocks for about a second."""

    def __init__(self, found: pylsl.StreamInfo) -> None:
        self.name = found.name()
        self._inlet = pylsl.StreamInlet(found, recover=False)
        try:
            self._info = self._inlet.info(timeout=OPEN_TIMEOUT_S)
            self._inlet.open_stream(timeout=OPEN_TIMEOUT_S)
            self._offset_s = float(self._inlet.time_correction(timeout=OPEN_TIMEOUT_S))
        except (pylsl.util.TimeoutError, pylsl.util.LostError) as error:
            raise StreamError(f"stream {self.name!r} went away while it was opened") from error
        self._corrected_at = pylsl.local_clock()

    def close(self) -> None:
        """Close the stream."""
        self._inlet.close_stream()

    def _pull(self) -> tuple[list[list[Any]], Floats]:
        """All samples that wait, and their times on this host's clock; never blocks."""
        now = pylsl.local_clock()
        try:
            if now - self._corrected_at > CORRECTION_EVERY_S:
                self._corrected_at = now
                self._offset_s = float(self._inlet.time_correction(timeout=0.0))
        except (pylsl.util.TimeoutError, pylsl.util.LostError):
            pass  # going away; the pull says so
        samples: list[list[Any]] = []
        stamps: list[float] = []
        while True:
            try:
                more, at = self._inlet.pull_chunk(timeout=0.0, max_samples=MAX_SAMPLES)
            except pylsl.util.LostError as error:
                raise StreamError(f"the sender of {self.name!r} went away") from error
            samples += more
            stamps += at
            if len(at) < MAX_SAMPLES:
                return samples, np.array(stamps, dtype=np.float64) + self._offset_s


class KinematicsInlet(_Inlet):
    """A stream of positions or velocities, and targets where it has them, by its labels.

    labels: those of `COLUMNS` that it has. Raises StreamError where it has neither.
    """

    def __init__(self, found: pylsl.StreamInfo) -> None:
        super().__init__(found)
        labels = [str(label) for label in self._info.get_channel_labels() or ()]
        units = [str(unit or "").strip().lower() for unit in self._info.get_channel_units() or ()]
        self.labels = tuple(label for label in COLUMNS if label in labels)
        if not any(set(COLUMNS[part]) <= set(labels) for part in (POSITION, VELOCITY)):
            raise StreamError(
                f"stream {self.name!r} has channels {labels}; expected pos_x and pos_y, or vel_x "
                "and vel_y, among them"
            )
        self._columns = [labels.index(label) for label in self.labels]
        given = [units[column] if column < len(units) else "" for column in self._columns]
        if odd := sorted(set(given) - set(METRES)):
            raise StreamError(
                f"stream {self.name!r} is in {', '.join(odd)}; expected {', '.join(METRES)[2:]}"
            )
        self._metres = np.array([METRES[unit] for unit in given])

    def drain(self) -> tuple[Floats, Floats]:
        """Times (n,) and values (n, 6) in the order of `COLUMNS`, m and m/s; NaN where it has none.

        Never blocks. Raises StreamError where the sender went away.
        """
        samples, times = self._pull()
        values = np.full((len(times), len(COLUMNS)), np.nan)
        if len(times):
            into = [COLUMNS.index(label) for label in self.labels]
            rows = np.asarray(samples, dtype=np.float64)[:, self._columns]
            values[:, into] = rows * self._metres
        return times, values


class MarkerInlet(_Inlet):
    """A stream of strings."""

    def drain(self) -> list[tuple[float, str]]:
        """Times and texts. Never blocks; raises StreamError where the sender went away."""
        samples, times = self._pull()
        return [(float(t), str(s[0])) for t, s in zip(times, samples, strict=True)]


def find_kinematics(name: str | None, timeout_s: float) -> KinematicsInlet | None:
    """The one stream of this name (or of type `Kinematics`), opened; None where there is none."""
    found = only_stream(KINEMATICS, name, timeout_s)
    return KinematicsInlet(found) if found else None


def find_markers(name: str | None, timeout_s: float) -> MarkerInlet | None:
    """The one stream of this name (or of type `Markers`), opened; None where there is none."""
    found = only_stream(MARKERS, name, timeout_s)
    return MarkerInlet(found) if found else None
