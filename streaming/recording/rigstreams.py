"""The streams of a rig: spikes, kinematics, markers, and notes that people write.

A rig may have no kinematics, if its user can't move. Senders may start late, go away and return,
even with other units. Reading goes on.
"""

from __future__ import annotations

import time
from typing import TypeVar

import numpy as np
import pylsl

from decoder.arrays import Floats, Ints
from decoder.errors import StreamError
from streaming.columns import COLUMNS
from streaming.inlets.connector import POLL_S, Source
from streaming.inlets.inlet import Inlet
from streaming.inlets.kinematics import KINEMATICS, NOTES, KinematicsInlet, Markers
from streaming.inlets.search import Query
from streaming.inlets.spikes import SpikeInlet, StreamQuery

LEAST_S = 4.0  # shortest timeout: searching and opening take a second or two
OPENING_S = 10.0  # extra time for a stream that has answered, on a busy machine
HOPELESS_S = 4.0  # give up on a stream whose problem lasts this long
MARKERS_WAIT_S = 4.0  # a rig may have no markers, or a stream of them that never opens
KINEMATICS_WAIT_S = 4.0  # if a rig may have no kinematics

AnInlet = TypeVar("AnInlet", bound=Inlet)


class RigStreams:
    """Reads the streams, from its construction to `close`.

    unit_ids: the unit ids of the spikes; a spike's unit is an index into them. names: of the open
        streams. Both change with the sender: compare `changes` to notice it.
    names_unit: whether the kinematics have always named their unit.
    clock_jumps: when a jump of a sender's clock was noticed; LSL clock, s.
    has_kinematics: false after `wait` if there are none, and none are needed.
    """

    def __init__(
        self,
        spikes: StreamQuery,
        kinematics: str | None,
        markers: str | None,
        *,
        needs_kinematics: bool = True,
    ) -> None:
        self._spikes = Source(spikes, SpikeInlet)
        self._kinematics = Source(Query(kind=KINEMATICS, name=kinematics), KinematicsInlet)
        self._needs_kinematics = needs_kinematics or kinematics is not None
        self.has_kinematics = True
        self._markers = Markers(markers)
        self._notes = Markers(kind=NOTES)
        self.unit_ids: list[str] = []
        self.names: dict[str, str | None] = {}
        self.names_unit = True
        self.clock_jumps: list[float] = []

    def wait(self, timeout_s: float) -> None:
        """Wait until spikes and kinematics are open.

        Kinematics that are not needed are left out if none answer within `KINEMATICS_WAIT_S`.
        Raises StreamError if they don't open within `timeout_s`. All streams are closed after an
        error or Ctrl-C.
        """
        deadline = time.monotonic() + max(timeout_s, LEAST_S)
        try:
            if not _opens(self._spikes, deadline):
                raise _unopened(
                    self._spikes,
                    f"no spike stream of {self._spikes.query}; is the rig sending?",
                )
            self._wait_for_kinematics(deadline)
            self._markers.wait(MARKERS_WAIT_S)
            self._notes.wait(MARKERS_WAIT_S)
        except BaseException:  # also Ctrl-C
            self.close()
            raise
        self._update()

    def _wait_for_kinematics(self, deadline: float) -> None:
        stream = self._kinematics
        if not self._needs_kinematics:
            deadline = min(deadline, time.monotonic() + KINEMATICS_WAIT_S)
        if _opens(stream, deadline):
            return
        if not self._needs_kinematics and stream.problem is None and not stream.is_opening:
            self.has_kinematics = False
            stream.close()
            return
        raise _unopened(
            stream,
            f"no kinematics stream ({stream.query}); nothing would label the spikes",
        )

    @property
    def changes(self) -> tuple[object, ...]:
        """A value that differs whenever the units, the streams or their clocks have changed."""
        opened = self._spikes.n_opened, self._kinematics.n_opened, len(self.clock_jumps)
        texts = *self._markers.names, *self._notes.names
        return *opened, len(self.unit_ids), *texts

    @property
    def problem(self) -> str | None:
        """Why spikes or kinematics aren't read, or None."""
        return self._spikes.problem or self._kinematics.problem

    def spikes(self) -> tuple[Floats, Ints]:
        """Times (n,) and units (n,) of the waiting spikes. Never blocks or raises."""
        times, units = np.empty(0), np.empty(0, dtype=np.int64)
        if (inlet := self._spikes.tend()) is not None:
            try:
                times, units = inlet.drain(pylsl.local_clock())
            except StreamError as error:
                self._spikes.lose(str(error))
        self._update()
        return times, units

    def kinematics(self) -> tuple[Floats, Floats]:
        """Times (n,) and values (n, 6) of the waiting samples. Never blocks or raises."""
        if self.has_kinematics and (inlet := self._kinematics.tend()) is not None:
            try:
                return inlet.drain()
            except StreamError as error:
                self._kinematics.lose(str(error))
        return np.empty(0), np.empty((0, len(COLUMNS)))

    def markers(self) -> list[tuple[float, str]]:
        """Times and texts of the waiting markers. Never blocks or raises."""
        return self._markers.drain()

    def notes(self) -> list[tuple[float, str]]:
        """Times and texts of the waiting notes. Never blocks or raises."""
        return self._notes.drain()

    def close(self) -> None:
        """Close all streams."""
        for stream in (self._spikes, self._kinematics, self._markers, self._notes):
            stream.close()  # a second time does nothing

    def _update(self) -> None:
        if (spikes := self._spikes.inlet) is not None:
            self.unit_ids = spikes.unit_ids
            self.names["spikes"] = spikes.name
        if (kinematics := self._kinematics.inlet) is not None:
            self.names["kinematics"] = kinematics.name
            self.names_unit &= kinematics.names_unit
        elif not self.has_kinematics:
            self.names["kinematics"] = None
        self.names["markers"] = ", ".join(self._markers.names) or None
        self.names["notes"] = ", ".join(self._notes.names) or None
        for inlet in (spikes, kinematics):
            if inlet is not None and inlet.take_offset_jump():
                self.clock_jumps.append(pylsl.local_clock())


def _opens(source: Source[AnInlet], deadline: float) -> bool:
    """Whether the stream opens by the deadline, and without a lasting problem.

    A stream that has answered by then has `OPENING_S` more.
    """
    hopeful_until = time.monotonic() + HOPELESS_S
    while True:
        is_opening = source.is_opening  # read first: `tend` resets it
        if source.tend() is not None:
            return True
        now = time.monotonic()
        if source.problem is None:
            hopeful_until = now + HOPELESS_S
        if now > hopeful_until or now > deadline + is_opening * OPENING_S:
            return False
        time.sleep(POLL_S)


def _unopened(source: Source[AnInlet], absent: str) -> StreamError:
    busy = f"a stream of {source.query} answers, but didn't open in time; is this machine busy?"
    return StreamError(source.problem or (busy if source.is_opening else absent))
