"""What the decode daemon does, by request: pause, filters, input, decoders.

What it should do (`server.wanted`) is compared with what it says at every heartbeat, so that a
daemon that others started again, or that missed a command, is told.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from pathlib import Path
from typing import Any

from decoder.bundle import open_bundle
from decoder.errors import VolitionError
from decoder.filters import Filters
from server.journal import Journal
from server.keeper import LOOK_EVERY_S, SUPERVISOR, Keeper
from server.problems import ConflictError, DaemonError
from server.registry import Registry
from server.settings import ServerSettings
from streaming import control, wire
from streaming.control import Command
from streaming.lsl import StreamQuery
from streaming.settings import RESTARTED

log = logging.getLogger("volition.server")

LOAD_TIMEOUT_S = 60.0


class Supervisor(Keeper):
    """Keeps one daemon running and tells it what to do, once `start` was called, until `stop`."""

    def __init__(self, settings: ServerSettings, journal: Journal, registry: Registry) -> None:
        super().__init__(settings, journal, registry)
        self._known: tuple[int, float] | None = None  # pid and start of the daemon told all
        self._telling = threading.RLock()  # pause, filters, input: asked and remembered together
        self._swapping = threading.RLock()  # one change of decoder at a time

    def start(self, given: str | None = None) -> None:
        """Adopt the daemon that answers, or start one if there is a decoder to start it with.

        given: decoder to decode with from now on, whatever an adopted daemon does.
        """
        if not self.begin():
            if self._settings.daemon.paused is not None:
                self.wanted.set(paused=self._settings.daemon.paused)
            if given is not None:
                self.wanted.set(active=given, previous=self.wanted.active)
        elif given is not None:
            try:
                self.activate(given, who=SUPERVISOR)
            except VolitionError as error:
                log.error("%s was given, but can't be activated: %s", given, error)
        self.watch()

    def pause(self, why: str, *, who: str) -> None:
        """Velocity zero from now on. It holds for the next daemon too, whatever fails here."""
        with self._starting:
            self.wanted.set(paused=why)
            runs = self._process is not None
        if runs:
            with self._telling:
                self.ask(control.Pause(why=why))
                problem = self.wanted.set(paused=why)
        else:
            problem = None
        self._note("pause", who, why=why)
        if problem is not None:
            raise problem

    def resume(self, *, who: str, command: Command | None = None) -> None:
        """Decode again; by `control.Arm` only if all is there that a cursor needs."""
        command = command or control.Resume()
        with self._telling:
            if self._process is not None or isinstance(command, control.Arm):
                self.ask(command)
            self._remember(paused=None)
        self._note(type(command).__name__.lower(), who)

    def filter(self, changes: dict[str, Any], *, who: str) -> Filters:
        """Change some settings of the output filters; returns all."""
        with self._telling:
            filters = dataclasses.replace(self.wanted.filters, **changes)
            if self._process is not None:
                self.ask(control.SetFilters(filters=filters))
            self._remember(filters=filters)
        self._note("filters", who, **changes)
        return filters

    def read_from(self, query: StreamQuery, *, who: str) -> None:
        """Read another spike stream."""
        with self._telling:
            if self._process is not None:
                self.ask(control.SetInput(kind=query.kind, name=query.name))
            self._remember(input=query)
        self._note("input", who, **dataclasses.asdict(query))

    def activate(self, decoder: str, *, who: str) -> wire.Status | None:
        """Decode with a decoder of the registry from the next tick on.

        None where no daemon runs: one is started with it.
        Raises NotFoundError, BundleError, DaemonError.
        """
        path = self._registry.get(decoder).path
        with self._swapping:
            if self._process is None and self._settings.supervise:
                open_bundle(path)
                self._deaths_in_a_row, self._start_not_before = 0, -float("inf")
                self._swapped(decoder, before=self.wanted.active, who=who, what="activate")
                return None
            now = self.ask(control.GetStatus())
            if now.decoder != decoder:
                self._load(decoder, path)
                status = self.ask(control.Activate(decoder=decoder))
                self._swapped(status.decoder, before=now.decoder, who=who, what="activate")
                return status
            if self.wanted.active != decoder:
                self._remember(active=decoder)
            return now

    def rollback(self, *, who: str) -> wire.Status:
        """Decode with the decoder before again. Raises DaemonError where there was none."""
        with self._swapping:
            now, before = self.ask(control.GetStatus()), self.wanted.previous
            if now.previous is None and before is not None:
                self._load(before, self._registry.get(before).path)
                status = self.ask(control.Activate(decoder=before))
            else:
                status = self.ask(control.Rollback())
            self._swapped(status.decoder, before=now.decoder, who=who, what="rollback")
        return status

    def _load(self, decoder: str, path: Path) -> None:
        status = self.ask(control.Load(path=str(path.absolute())))
        deadline = time.monotonic() + LOAD_TIMEOUT_S
        while status.loading:
            if time.monotonic() > deadline:
                raise DaemonError(f"{path} was not loaded within {LOAD_TIMEOUT_S:g} s")
            time.sleep(LOOK_EVERY_S)
            status = self.ask(control.GetStatus())
        if status.load_problem is not None:
            raise DaemonError(status.load_problem)
        if status.candidate != decoder:
            raise ConflictError(f"another decoder was loaded meanwhile: {status.candidate}")

    def _swapped(self, decoder: str, *, before: str | None, who: str, what: str) -> None:
        self._began_at = time.monotonic()  # of the decoder: whether it is good shows anew
        self._note(what, who, decoder=decoder, before=before)
        self._remember(active=decoder, previous=before)

    def _remember(self, **values: Any) -> None:
        if (problem := self.wanted.set(**values)) is not None:
            raise problem

    def _compare(self, status: wire.Status) -> None:
        """Have the daemon do what it should, where it was told otherwise or is another one."""
        is_new = self._known != (status.pid, status.started)
        if not (is_new or self._differs(status)):
            return
        for lock, compare in (
            (self._telling, self._compare_settings),
            (self._swapping, lambda now: self._compare_decoder(now, is_new=is_new)),
        ):
            if not lock.acquire(blocking=False):
                return  # somebody is changing it; the next beat looks again
            try:
                compare(self.ask(control.GetStatus()))
            finally:
                lock.release()
        if status.paused == RESTARTED and self.wanted.paused is None:
            self.ask(control.Resume())
        self._known = status.pid, status.started

    def _differs(self, status: wire.Status) -> bool:
        query = self.wanted.input
        return (
            status.decoder != self.wanted.active
            or status.paused != self.wanted.paused
            or status.filters != self.wanted.filters
            or (status.input_kind, status.input_name) != (query.kind, query.name)
        )

    def _compare_settings(self, status: wire.Status) -> None:
        if status.filters != self.wanted.filters:
            self.ask(control.SetFilters(filters=self.wanted.filters))
        query = self.wanted.input
        if (status.input_kind, status.input_name) != (query.kind, query.name):
            self.ask(control.SetInput(kind=query.kind, name=query.name))
        if self.wanted.paused is not None and status.paused is None:
            self.ask(control.Pause(why=self.wanted.paused))
        elif status.paused not in (None, RESTARTED) and self.wanted.paused is None:
            self.wanted.set(paused=status.paused)  # by whoever speaks to it directly

    def _compare_decoder(self, status: wire.Status, *, is_new: bool) -> None:
        wanted = self.wanted.active
        if status.decoder == wanted:
            return
        if wanted is not None and is_new and not self._settings.supervise:
            try:
                self._load(wanted, self._registry.get(wanted).path)
                self.ask(control.Activate(decoder=wanted))
                self._note("handed over", decoder=wanted)
                return
            except VolitionError as error:
                log.error("the daemon can't go on with %s: %s", wanted, error)
        self._register(status)
        self.wanted.set(active=status.decoder, previous=wanted)


def known_bundle(registry: Registry, journal: Journal, bundle: Path) -> str | None:
    """Register a bundle; its id, unless it was given before (others may be active since)."""
    decoder = registry.add(bundle).manifest.decoder_id
    if journal.recall("given") == decoder:
        return None
    journal.remember(given=decoder)
    return decoder
