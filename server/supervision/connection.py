"""The connection to the running daemon: its process, its last answer, and commands to it.

A daemon that is already running is adopted if it answers on the control address.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from decoder.errors import VolitionError
from server.problems import DaemonError
from server.settings import ServerSettings
from server.store.journal import Journal, JournalError
from server.store.registry import Registry
from server.store.wanted import Wanted
from server.supervision.process import Adopted, Foreign, Process
from server.supervision.timing import Timing
from streaming.daemon.settings import RESTARTED
from streaming.inlets.spikes import StreamQuery
from streaming.units import mark_of
from streaming.wire import control
from streaming.wire import messages as wire
from streaming.wire.control import Command, ControlClient, NoAnswerError, Reply, Unit
from streaming.wire.states import State

log = logging.getLogger("volition.server")

NEVER = -float("inf")
SAME_AGAIN_S = 30.0  # interval at which the same problem is logged again
SUPERVISOR = "supervisor"


class DaemonConnection:
    """Holds one daemon at a time. Starting or adopting a daemon replaces the one before."""

    def __init__(
        self, settings: ServerSettings, journal: Journal, registry: Registry, *, timing: Timing
    ) -> None:
        self._settings, self._journal, self._registry = settings, journal, registry
        self.timing = timing
        self.wanted = Wanted(journal, settings.daemon)
        self._process: Process | None = None
        self._status: wire.Status | None = None
        self._answered_at = self._began_at = NEVER  # monotonic, s
        self._proving_since = NEVER  # since when the decoder has been on trial
        self._decoded = self._hung = False
        # Guards `wanted`, the process and the count of deaths, which change together. Held at most
        # while a process starts, and never while waiting for the disk or the daemon.
        self._state = threading.Lock()
        self._beat = ControlClient(settings.control, timeout_s=timing.answer_s)
        self._client = ControlClient(settings.control, timeout_s=timing.order_s)
        self._urgent = ControlClient(settings.control, timeout_s=timing.order_s)
        self._asking, self._asking_urgently = threading.Lock(), threading.Lock()
        self._stopping = threading.Event()
        self._logged_at: dict[str, float] = {}

    @property
    def status(self) -> wire.Status | None:
        """The daemon's last status; None if no daemon answers."""
        fresh = time.monotonic() - self._answered_at < self.timing.fresh_s
        return self._status if fresh else None

    def ask(self, command: Command) -> wire.Status:
        """Send a command. Raises DaemonError if the daemon refuses it or none is running."""
        return self._ask(self._client, self._asking, command).status

    def units(self) -> tuple[str | None, list[Unit]]:
        """The open stream's name and its units; None and none if no stream or no daemon is there.

        Raises NoAnswerError if the daemon hangs, DaemonError if it is of an older version.
        """
        process = self._process
        if process is None or self.status is None:
            return None, []
        try:
            reply = self._ask(self._client, self._asking, control.GetUnits())
        except VolitionError:
            if self._is_gone(process):
                return None, []
            raise
        return reply.status.stream, reply.units or []

    def ask_at_once(self, command: Command) -> wire.Status:
        """Send a command without waiting for other commands. Raises as `ask` does."""
        return self._ask(self._urgent, self._asking_urgently, command).status

    def _compare_excluded(self, status: wire.Status) -> None:
        """Correct the daemon's excluded units. If none were ever wanted, take over the daemon's."""
        if status.excluded_mark == mark_of(self.wanted.excluded):
            return
        there = self._ask(self._client, self._asking, control.GetUnits()).excluded or ()
        self.wanted.set_missing(excluded=frozenset(there))
        self.wanted.try_to_keep()
        if status.excluded_mark != mark_of(excluded := self.wanted.excluded):
            self.ask(control.SetExcluded(unit_ids=sorted(excluded)))

    def _ask(self, client: ControlClient, turn: threading.Lock, command: Command) -> Reply:
        process = self._process
        if process is None:
            raise DaemonError("no daemon is running; activate a decoder first (GET /v1/decoders)")
        with turn:
            if self._stopping.is_set():
                raise DaemonError("the server is stopping")
            reply = client.ask(command, while_it_lives=process.lives)
        if reply.problem is not None:
            raise DaemonError(reply.problem)
        self._remember_answer(reply.status)
        return reply

    def _is_gone(self, process: Process) -> bool:
        """Whether a process that a command was sent to has ended or been replaced."""
        return self._process is not process or not process.lives()

    def _take(self, process: Process) -> None:
        """Make this process the current daemon. Call it with `_state` held."""
        self._status, self._answered_at = None, NEVER
        self._began_at = self._proving_since = time.monotonic()
        self._decoded = self._hung = False
        self._process = process
        self.wanted.set(pid=process.pid)

    def _remember_answer(self, status: wire.Status) -> None:
        """Keep an answer if it is the newest one of the current daemon."""
        with self._state:
            now = self._status
            if self._process is None or self._process.pid != status.pid:
                return  # from a daemon that has been replaced
            if now is None or now.started != status.started or now.ticks <= status.ticks:
                begins_to_decode = status.state == State.DECODING and not self._decoded
                if begins_to_decode or (now is not None and _which(now) != _which(status)):
                    self._proving_since = time.monotonic()
                    self._decoded = status.state == State.DECODING
                self._status = status
            self._answered_at = time.monotonic()

    def _adopt(self) -> bool:
        """Adopt the daemon that answers on the control address; returns whether there is one."""
        client = ControlClient(self._settings.control, timeout_s=self.timing.adopt_s)
        try:
            return self._adopt_as(client.ask(control.GetStatus()).status)
        except (NoAnswerError, ProcessLookupError):
            return False
        except msgspec.DecodeError as error:
            self._log_problem(
                f"a daemon of another version is running on {self._settings.control}: {error}"
            )
            return False
        finally:
            client.close()

    def _adopt_as(self, status: wire.Status) -> bool:
        """Adopt the daemon that sent this status.

        Values in the journal take precedence over the daemon's; missing values are taken from the
        daemon. A pause stays in effect, whether the journal or the daemon has it.
        """
        supervise = self._settings.supervise
        process = Adopted(status.pid) if supervise else Foreign(status.pid)
        if self.wanted.active is None:
            self._register(status)
        with self._state:
            self._take(process)
            self.wanted.set_missing(
                active=status.decoder,
                filters=status.filters,
                paused=None if status.paused == RESTARTED else status.paused,
                input=msgspec.convert(
                    {"kind": status.input_kind, "name": status.input_name}, StreamQuery
                ),
            )
        self.wanted.try_to_keep()
        self._remember_answer(status)
        self._note("adopted", decoder=status.decoder, pid=status.pid)
        log.info("adopted daemon %d with decoder %s", status.pid, status.decoder)
        return True

    def _adopt_the_last(self) -> bool:
        """Adopt the daemon of the earlier server if it answers in time; otherwise kill it."""
        pid = self.wanted.pid
        if not self._settings.supervise or pid is None or not is_daemon(pid):
            return False
        deadline = time.monotonic() + self.timing.hung_after_s
        while time.monotonic() < deadline:
            if self._adopt():
                return True
        log.error("daemon %d is running but does not answer; killing it", pid)
        with contextlib.suppress(ProcessLookupError):
            Adopted(pid).kill()
        return False

    def _register(self, status: wire.Status) -> None:
        try:
            self._registry.add(Path(status.bundle))
        except VolitionError as error:
            log.error("can't register the daemon's bundle: %s", error)

    def _note(self, what: str, who: str = SUPERVISOR, **detail: Any) -> None:
        """Add a journal entry. A failure is only logged: a full disk must not prevent a pause."""
        try:
            self._journal.note(who, what, **detail)
        except JournalError as error:
            log.error("%s", error)

    def _log_problem(self, problem: str, error: BaseException | None = None) -> bool:
        """Log a problem at most once per `SAME_AGAIN_S`; returns whether it was logged."""
        now = time.monotonic()
        if now - self._logged_at.get(problem, NEVER) < SAME_AGAIN_S:
            return False
        self._logged_at = {p: at for p, at in self._logged_at.items() if now - at < SAME_AGAIN_S}
        self._logged_at[problem] = now
        log.error("%s", problem, exc_info=error)
        return True


def _which(status: wire.Status) -> tuple[float, str]:
    """What identifies a run of the daemon with one decoder."""
    return status.started, status.decoder


def is_daemon(pid: int) -> bool:
    """Whether a process is a decode daemon; the pid may have been reused."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"decode" in command
