"""Orders to the decode daemon: pause, filters, input, units, decoders.

`server.store.wanted` holds what the daemon should do. Every heartbeat compares it with the daemon's
status, so a daemon that was adopted, restarted by others, or missed a command is corrected.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from decoder.bundles.bundle import open_bundle
from decoder.errors import SettingsError, VolitionError
from decoder.filters import Filters
from server.problems import ConflictError, DaemonError
from server.store.journal import Journal
from server.store.registry import Registry
from server.supervision.connection import NEVER
from server.supervision.process import Process
from server.supervision.supervisor import Supervisor
from streaming.daemon.settings import RESTARTED
from streaming.inlets.spikes import StreamQuery
from streaming.units import mark_of, too_many_excluded
from streaming.wire import control
from streaming.wire import messages as wire
from streaming.wire.control import Command, NoAnswerError

log = logging.getLogger("volition.server")


class SupervisedDaemon(Supervisor):
    """Keeps one daemon running and gives it orders, from `start` until `stop`.

    An order is first recorded in `wanted`, then written to the journal, then sent, then confirmed
    to the caller. So it holds whichever process dies in between. An order that the daemon refuses
    is undone. Only a pause is sent before it is written to the journal.
    """

    _settings_lock: threading.RLock  # filters, input, units, resume: sent and recorded together
    _decoder_lock: threading.RLock  # one change of decoder at a time

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._settings_lock, self._decoder_lock = threading.RLock(), threading.RLock()
        self._pauses = 0  # a resume sent before the latest pause is void
        self._hand_over_not_before, self._hand_over_wait_s = NEVER, 0.0

    @property
    def decoder_lock(self) -> threading.RLock:
        """Held while the decoder changes, or while one is deleted."""
        return self._decoder_lock

    def start(self, given: str | None = None) -> None:
        """Adopt the running daemon, or start one if there is an active decoder.

        given: decoder to activate, even if an adopted daemon decodes with another one.
        """
        adopted = self.begin()
        if not adopted and self._settings.daemon.paused is not None:
            self.wanted.set(paused=self._settings.daemon.paused)
        if given not in (None, self.wanted.active):
            self.wanted.set(active=given, previous=self.wanted.active)
            self._note("activate", decoder=given, before=self.wanted.previous)
        self.wanted.try_to_keep()
        self.watch()

    def pause(self, why: str, *, who: str) -> None:
        """Publish zero velocity from now on; the next daemon starts paused even if this fails.

        Waits neither for the disk nor for other orders.
        """
        with self._state:
            self._pauses += 1
            self.wanted.set(paused=why)
            process = self._process
        problem: VolitionError | None = None
        if process is not None:
            problem = self._pause(process)
        not_kept = self.wanted.try_to_keep()
        self._note("pause", who, why=why)
        if (problem := problem or not_kept) is not None:
            raise problem

    def _pause(self, process: Process) -> VolitionError | None:
        """Send the pause; returns the error if the daemon is still running but did not take it."""
        try:
            self.ask_at_once(control.Pause(why=self.wanted.paused or ""))
        except VolitionError as error:
            return None if self._is_gone(process) else error  # the next one starts paused
        return None

    def resume(self, *, who: str, command: Command | None = None) -> None:
        """Resume decoding. command: `control.Arm` to resume only if the rig is ready."""
        command = command or control.Resume()
        with self._settings_lock:
            with self._state:
                pauses, process = self._pauses, self._process
                if process is None and isinstance(command, control.Resume):
                    self.wanted.set(paused=None)
            if process is not None or isinstance(command, control.Arm):
                self.ask(command)
                with self._state:
                    is_newest = self._pauses == pauses
                    if is_newest and self._process in (process, None):
                        self.wanted.set(paused=None)
                    elif is_newest:
                        raise DaemonError("the daemon died before it resumed; resume again")
                if not is_newest:
                    self.ask_at_once(control.Pause(why=self.wanted.paused or ""))
                    raise ConflictError("another request paused decoding again; resume again")
            self.wanted.keep()
        self._note(type(command).__name__.lower(), who)

    def filter(self, changes: dict[str, Any], *, who: str) -> Filters:
        """Change some settings of the output filters; returns all settings."""
        with self._settings_lock:
            filters = dataclasses.replace(self.wanted.filters, **changes)
            self._order(control.SetFilters(filters=filters), filters=filters)
        self._note("filters", who, **changes)
        return filters

    def read_from(self, query: StreamQuery, *, who: str) -> None:
        """Make the daemon read another spike stream."""
        with self._settings_lock:
            self._order(control.SetInput(kind=query.kind, name=query.name), input=query)
        self._note("input", who, **dataclasses.asdict(query))

    def exclude(self, exclude: Collection[str], include: Collection[str], *, who: str) -> None:
        """Decode without the units `exclude` from now on, and with the units `include` again."""
        with self._settings_lock:
            excluded = (self.wanted.excluded | {*exclude}) - {*include}
            if problem := too_many_excluded(excluded):
                raise SettingsError(problem)
            self._order(control.SetExcluded(unit_ids=sorted(excluded)), excluded=excluded)
        self._note("units", who, exclude=list(exclude), include=list(include))

    def _order(self, command: Command, **wanted: Any) -> None:
        """Give an order to this daemon and all later ones, or to none if the daemon refuses.

        Raises JournalError if the order was carried out but could not be written to the journal.
        """
        with self._state:
            before = self.wanted.set(**wanted)
            process = self._process
        not_kept = self.wanted.try_to_keep()
        if process is not None:
            try:
                self._send(process, command)
            except VolitionError:
                self.wanted.set(**before)
                self.wanted.try_to_keep()
                raise
        if not_kept is not None:
            raise not_kept

    def _send(self, process: Process, command: Command) -> None:
        """Send an order that is already in `wanted`.

        A daemon that dies in the meantime is not an error: the next one starts from `wanted`.
        """
        try:
            self.ask(command)
        except VolitionError:
            if not self._is_gone(process):
                raise

    def activate(self, decoder: str, *, who: str) -> None:
        """Decode with a registered decoder from the next tick on.

        If no daemon is running, one is started with it.
        Raises NotFoundError, BundleError or DaemonError.
        """
        path = self._registry.get(decoder).path
        with self._decoder_lock:
            while True:
                if self._waits_for_the_next():
                    open_bundle(path)
                    if self._next_begins_with(decoder, who=who, what="activate"):
                        return
                process = self._process
                try:
                    self._activate(decoder, path, who=who)
                except NoAnswerError:
                    if process is None or not self._is_gone(process):
                        raise
                else:
                    return

    def load(self, decoder: str) -> None:
        """Load a registered decoder into the running daemon, so that its activation takes one tick.

        Raises NotFoundError, BundleError or DaemonError.
        """
        path = self._registry.get(decoder).path
        with self._decoder_lock:
            process, now = self._running()
            if decoder not in (now.decoder, now.candidate):
                self._load(process, decoder, path)

    def _activate(self, decoder: str, path: Path, *, who: str) -> None:
        """Activate in the running daemon. Raises NoAnswerError if it died."""
        process, now = self._running()
        if now.decoder != decoder:
            if now.candidate != decoder:
                self._load(process, decoder, path)
            self._swap(control.Activate(decoder=decoder), decoder, now, who=who, what="activate")
        elif self.wanted.active != decoder:
            self._swap(control.GetStatus(), decoder, now, who=who, what="activate")

    def rollback(self, *, who: str) -> None:
        """Go back to the previous decoder. Raises DaemonError if there is none.

        A daemon that does not answer is killed, and the next one starts with the previous decoder.
        """
        with self._decoder_lock:
            instead_of, before = self._process, self.wanted.previous
            try:
                if not self._waits_for_the_next():
                    self._rollback(who=who)
                    return
            except NoAnswerError:
                if before is None or not self._settings.supervise:
                    raise
            if before is None:
                raise DaemonError("there is no previous decoder; activate one (GET /v1/decoders)")
            open_bundle(self._registry.get(before).path)
            done = self._next_begins_with(before, who=who, what="rollback", instead_of=instead_of)
            if not done:
                self._rollback(who=who)

    def _rollback(self, *, who: str) -> None:
        process, now = self._running()
        before = self.wanted.previous or now.previous
        if before is None:
            raise DaemonError("there is no previous decoder; activate one (GET /v1/decoders)")
        command: Command = control.Rollback()
        if now.decoder == before:
            command = control.GetStatus()
        elif now.previous != before:
            self._load(process, before, self._registry.get(before).path)
            command = control.Activate(decoder=before)
        self._swap(command, before, now, who=who, what="rollback")

    def _waits_for_the_next(self) -> bool:
        """Whether no daemon is running and this server will start one."""
        return self._settings.supervise and self._process is None

    def _next_begins_with(
        self, decoder: str, *, who: str, what: str, instead_of: Process | None = None
    ) -> bool:
        """Make the next daemon start at once with a decoder; False if another daemon is running.

        instead_of: the running daemon, which is killed.
        """
        with self._state:
            if self._process not in (instead_of, None):
                return False
            if (before := self.wanted.active) != decoder:
                self.wanted.set(active=decoder, previous=before)
            self._deaths_in_a_row, self._start_not_before = 0, NEVER
        if instead_of is not None:
            instead_of.kill()
        not_kept = self.wanted.try_to_keep()
        self._note(what, who, decoder=decoder, before=before)
        if not_kept is not None:
            raise not_kept
        return True

    def _running(self) -> tuple[Process, wire.Status]:
        """The running daemon and its status. Raises DaemonError or NoAnswerError."""
        process = self._process
        status = self.ask(control.GetStatus())
        if process is None or self._is_gone(process):
            raise NoAnswerError("the daemon died before it answered; send the request again")
        return process, status

    def _load(self, process: Process, decoder: str, path: Path) -> None:
        """Make the daemon load a decoder, and wait until it is warm."""
        status = self.ask(control.Load(path=str(path.absolute())))
        deadline = time.monotonic() + self.timing.load_s
        while status.loading:
            if time.monotonic() > deadline:
                raise DaemonError(
                    f"{path} was not loaded within {self.timing.load_s:g} s; try again"
                )
            time.sleep(self.timing.look_every_s)
            status = self.ask(control.GetStatus())
        if self._is_gone(process):
            raise NoAnswerError(f"the daemon died while it loaded {path}; activate it again")
        if status.load_problem is not None:
            raise DaemonError(status.load_problem)
        if status.candidate != decoder:
            raise ConflictError(f"another request loaded decoder {status.candidate}; try again")

    def _swap(
        self, command: Command, decoder: str, now: wire.Status, *, who: str, what: str
    ) -> None:
        """Make this daemon and all later ones decode with a warm decoder, and note it."""
        before = now.decoder if now.decoder != decoder else self.wanted.active
        try:
            self._order(command, active=decoder, previous=before)
        finally:
            done = self.wanted.active == decoder
            self._note(what if done else f"{what} refused", who, decoder=decoder, before=before)

    def _compare(self, status: wire.Status) -> None:
        """Correct a daemon whose status differs from `wanted`.

        A daemon that restarted without its server stays paused until all of it is corrected.
        """
        if not self._differs(status):
            return
        for lock, compare in (
            (self._settings_lock, self._compare_settings),
            (self._decoder_lock, self._compare_decoder),
        ):
            if not lock.acquire(blocking=False):
                return  # a request is changing it; the next heartbeat compares again
            try:
                if not compare(self.ask(control.GetStatus())):
                    return
            finally:
                lock.release()
        if status.paused == RESTARTED and self.wanted.paused is None:
            self.ask(control.Resume(paused_for=RESTARTED))

    def _differs(self, status: wire.Status) -> bool:
        query = self.wanted.input
        return (
            status.decoder != self.wanted.active
            or status.paused != self.wanted.paused
            or status.filters != self.wanted.filters
            or (status.input_kind, status.input_name) != (query.kind, query.name)
            or status.excluded_mark != mark_of(self.wanted.excluded)
        )

    def _compare_settings(self, status: wire.Status) -> bool:
        if status.filters != self.wanted.filters:
            self.ask(control.SetFilters(filters=self.wanted.filters))
        query = self.wanted.input
        if (status.input_kind, status.input_name) != (query.kind, query.name):
            self.ask(control.SetInput(kind=query.kind, name=query.name))
        if (paused := self.wanted.paused) is not None and status.paused != paused:
            self.ask(control.Pause(why=paused))
        elif status.paused not in (None, RESTARTED) and paused is None:
            # Another client of the control socket has paused it.
            self.wanted.set_missing(paused=status.paused)
            self.wanted.try_to_keep()
        self._compare_excluded(status)
        return True

    def _compare_decoder(self, status: wire.Status) -> bool:
        """Hand over the wanted decoder; returns whether the daemon has it. Failures back off."""
        wanted, process = self.wanted.active, self._process
        if status.decoder == wanted:
            return True
        if wanted is None or process is None:
            self._register(status)
            self.wanted.set_missing(active=status.decoder)
            self.wanted.try_to_keep()
            return True
        if time.monotonic() < self._hand_over_not_before:
            return False
        try:
            self._load(process, wanted, self._registry.get(wanted).path)
            self.ask(control.Activate(decoder=wanted))
        except NoAnswerError:
            raise
        except VolitionError as error:
            timing = self.timing
            wait_s = 2 * self._hand_over_wait_s or timing.beat_every_s
            self._hand_over_wait_s = min(wait_s, timing.longest_back_off_s)
            self._hand_over_not_before = time.monotonic() + self._hand_over_wait_s
            self._log_problem(f"can't hand decoder {wanted} over to the daemon: {error}")
            return False
        self._hand_over_wait_s = 0.0
        self._note("handed over", decoder=wanted, before=status.decoder)
        return True


def known_bundle(registry: Registry, journal: Journal, bundle: Path) -> str | None:
    """Register a bundle; returns its id, or None if the last start was given the same bundle."""
    decoder = registry.add(bundle).manifest.decoder_id
    if journal.recall("given") == decoder:
        return None
    journal.remember(given=decoder)
    return decoder
