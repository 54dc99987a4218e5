"""The process of a simulated participant: reads the task's streams and sends spikes.

    volition participant --prefix rig --units 96 --subject 9 --seed 1 --delay-ms 150

LSL streams (docs/RIG.md): it reads `PREFIX-kinematics` and `PREFIX-markers`, which may come and
go, and sends `PREFIX-spikes`. The cursor is read from the task's stream, because only the task
knows its position. Standard input takes lines of JSON:

    {"drift": {"replaced": 0.5, "turned_deg": 60, "rate_factor": 0.8, "noise_units": 5,
               "ramp_s": 0}}                     see clients.participant.drift

Standard output reports `ready`, `sees` (a stream was found), `drifted` and `problem`. The process
ends with its standard input, on SIGTERM and on Ctrl-C. The participant itself is in
clients.participant.simulated.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Generic

import msgspec
import numpy as np
import pylsl

from clients.participant.drift import Drift
from clients.participant.policy import TICK_S
from clients.participant.screen import NOTHING_NEW, Seen
from clients.participant.simulated import Participant, ParticipantSettings
from decoder.arrays import Floats, Ints
from decoder.errors import SettingsError, StreamError
from streaming.inlets.connector import AnInlet, Source
from streaming.inlets.kinematics import KINEMATICS, MARKERS, KinematicsInlet, MarkerInlet
from streaming.inlets.search import Query
from streaming.recording.outlets import chunks, sleep_until, spikes_info
from streaming.signals import stop_on_signal
from streaming.wire.lines import Message, parent_messages, send, send_problem

LOOK_EVERY_S = 0.02  # short against the visual delay
MAX_BEHIND_S = 0.25  # after a longer stall, the missed time is skipped


class _Eye(Generic[AnInlet]):
    """A stream that may appear and vanish, read without blocking; both are reported."""

    def __init__(self, name: str, source: Source[AnInlet]) -> None:
        self._name, self._source = name, source
        self._sees = False
        self._problem: str | None = None

    def open(self) -> AnInlet | None:
        """The inlet, once the stream is found."""
        inlet = self._source.tend()
        if inlet is not None and not self._sees:
            self._sees = True
            send(sees=self._name)
        if inlet is None and self._source.problem != self._problem:
            self._problem = self._source.problem
            if self._problem:
                send_problem(StreamError(self._problem))
        return inlet

    def lost(self) -> None:
        """The sender has gone: search for it again."""
        send(lost=self._name)
        self._sees = False
        self._source.lose("")


class Process:
    """A participant in real time."""

    def __init__(self, settings: ParticipantSettings) -> None:
        self.should_stop = False
        name = f"{settings.prefix}-spikes"
        self.participant = Participant(settings, pylsl.local_clock())
        source_id = f"volition-participant-{name}-{settings.subject}-{settings.seed}"
        info = spikes_info(name, source_id, self.participant.unit_ids)
        info.desc().append_child_value("source", "simulated by volition participant")
        self._outlet = pylsl.StreamOutlet(info)
        hand, events = f"{settings.prefix}-kinematics", f"{settings.prefix}-markers"
        self._kinematics = _Eye(hand, Source(Query(kind=KINEMATICS, name=hand), KinematicsInlet))
        self._markers = _Eye(events, Source(Query(kind=MARKERS, name=events), MarkerInlet))
        self._drifts: list[Drift] = []
        self._look_at = 0.0
        send(ready={"stream": name, "source_id": source_id, "units": settings.n_units})

    def listen(self, messages: Iterator[Message]) -> None:
        """Carry out orders until standard input ends."""
        try:
            for message in messages:
                self._order(message)
        except ValueError as error:
            send_problem(SettingsError(f"a line on standard input is not JSON ({error})"))
        self.should_stop = True

    def run(self) -> None:
        """Send spikes until `should_stop`."""
        while not self.should_stop:
            sleep_until(self.participant.now + TICK_S)
            now = pylsl.local_clock()
            if now - self.participant.now > MAX_BEHIND_S:
                self.participant.skip(now)
            self._take_drifts()
            self._send(*self.participant.step(now, self._look(now)))

    def _order(self, message: Message) -> None:
        try:
            drift = msgspec.convert(message, _Order).drift
            drift.check(self.participant.settings.n_units)
        except msgspec.ValidationError as error:
            send_problem(SettingsError(f"{message}: {error}; expected {{'drift': {{…}}}}"))
        except SettingsError as error:
            send_problem(error)
        else:
            self._drifts.append(drift)

    def _take_drifts(self) -> None:
        while self._drifts:
            drift = self._drifts.pop(0)
            self.participant.drift(drift)
            send(drifted={"at": self.participant.now, **msgspec.to_builtins(drift)})

    def _look(self, now: float) -> Seen:
        if now < self._look_at:
            return NOTHING_NEW
        self._look_at = now + LOOK_EVERY_S
        seen = NOTHING_NEW
        if kinematics := self._kinematics.open():
            try:
                times, values = kinematics.drain()
                seen = replace(seen, times=times, values=values)
            except StreamError:
                self._kinematics.lost()
        if markers := self._markers.open():
            try:
                seen = replace(seen, markers=markers.drain())
            except StreamError:
                self._markers.lost()
        return seen

    def _send(self, times: Floats, units: Ints) -> None:
        events = np.zeros((len(units), 2), dtype=np.int32)
        events[:, 0] = units
        for part in chunks(times, 0, len(times)):
            self._outlet.push_chunk(events[part], times[part].tolist())


class _Order(msgspec.Struct, forbid_unknown_fields=True):
    drift: Drift


def participate(settings: ParticipantSettings) -> None:
    """Run a participant until its standard input ends or a signal comes."""
    process = Process(settings)
    threading.Thread(target=process.listen, args=(parent_messages(),), daemon=True).start()
    with stop_on_signal(process):
        process.run()
    send(done=settings.prefix)
