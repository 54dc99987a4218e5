"""The connection to the one daemon that runs: its process, its last answer, commands to it.

A daemon is taken when it was started, or adopted when it ran already: one that answers on the
control address, or the one that an earlier server started.
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
from streaming.wire import control
from streaming.wire import messages as wire
from streaming.wire.control import Command, ControlClient, NoAnswerError
from streaming.wire.states import State

log = logging.getLogger("volition.server")

NEVER = -float("inf")
SAME_AGAIN_S = 30.0  # a problem that stays is logged so often
SUPERVISOR = "supervisor"


class DaemonConnection:
    """One daemon at a time; another takes its place when it was started or adopted."""

    def __init__(
        self, settings: ServerSettings, journal: Journal, registry: Registry, *, timing: Timing
    ) -> None:
        self._settings, self._journal, self._registry = settings, journal, registry
        self.timing = timing
        self.wanted = Wanted(journal, settings.daemon)
        self._process: Process | None = None
        self._status: wire.Status | None = None
        self._answered_at = self._began_at = NEVER  # of the process, monotonic, s
        self._proving_since = NEVER  # of its decoder
        self._decoded = self._hung = False
        # What a daemon is given, which one runs, and how often it died: changed together. Held for
        # no longer than it takes to start a process, and never while disk or daemon are waited for.
        self._state = threading.Lock()
        self._beat = ControlClient(settings.control, timeout_s=timing.answer_s)
        self._client = ControlClient(settings.control, timeout_s=timing.order_s)
        self._urgent = ControlClient(settings.control, timeout_s=timing.order_s)
        self._asking, self._asking_urgently = threading.Lock(), threading.Lock()
        self._stopping = threading.Event()
        self._logged_at: dict[str, float] = {}

    @property
    def status(self) -> wire.Status | None:
        """What the daemon said last; None if none answers."""
        fresh = time.monotonic() - self._answered_at < self.timing.fresh_s
        return self._status if fresh else None

    def ask(self, command: Command) -> wire.Status:
        """Have the daemon do something. Raises DaemonError if it refuses or none runs."""
        return self._ask(self._client, self._asking, command)

    def ask_at_once(self, command: Command) -> wire.Status:
        """The same without a wait for other commands."""
        return self._ask(self._urgent, self._asking_urgently, command)

    def _ask(self, client: ControlClient, turn: threading.Lock, command: Command) -> wire.Status:
        process = self._process
        if process is None:
            raise DaemonError("no daemon runs; activate a decoder first (GET /v1/decoders)")
        with turn:
            if self._stopping.is_set():
                raise DaemonError("the server is being stopped")
            reply = client.ask(command, while_it_lives=process.lives)
        if reply.problem is not None:
            raise DaemonError(reply.problem)
        self._remember_answer(reply.status)
        return reply.status

    def _is_gone(self, process: Process) -> bool:
        """Whether the daemon that a command was sent to runs no more."""
        return self._process is not process or not process.lives()

    def _take(self, process: Process) -> None:
        """From now on this is the daemon; with `_state` held."""
        self._status, self._answered_at = None, NEVER
        self._began_at = self._proving_since = time.monotonic()
        self._decoded = self._hung = False
        self._process = process
        self.wanted.set(pid=process.pid)

    def _remember_answer(self, status: wire.Status) -> None:
        """Keep the newest answer of the daemon that runs."""
        with self._state:
            now = self._status
            if self._process is None or self._process.pid != status.pid:
                return  # of one that died meanwhile
            if now is None or now.started != status.started or now.ticks <= status.ticks:
                begins_to_decode = status.state == State.DECODING and not self._decoded
                if begins_to_decode or (now is not None and _which(now) != _which(status)):
                    self._proving_since = time.monotonic()
                    self._decoded = status.state == State.DECODING
                self._status = status
            self._answered_at = time.monotonic()

    def _adopt(self) -> bool:
        """Take a daemon that answers already as ours."""
        client = ControlClient(self._settings.control, timeout_s=self.timing.adopt_s)
        try:
            return self._adopt_as(client.ask(control.GetStatus()).status)
        except (NoAnswerError, ProcessLookupError):
            return False
        except msgspec.DecodeError as error:
            self._log_problem(
                f"a daemon of another version runs on {self._settings.control}: {error}"
            )
            return False
        finally:
            client.close()

    def _adopt_as(self, status: wire.Status) -> bool:
        """What the journal says holds for this daemon too; what it doesn't say is taken from it.

        A pause is kept, whoever asked for it.
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
        log.info("adopted daemon %d, which decodes with %s", status.pid, status.decoder)
        return True

    def _adopt_the_last(self) -> bool:
        """The daemon of the server before, if it lives but is slow to answer; or its end."""
        pid = self.wanted.pid
        if not self._settings.supervise or pid is None or not _is_daemon(pid):
            return False
        deadline = time.monotonic() + self.timing.hung_after_s
        while time.monotonic() < deadline:
            if self._adopt():
                return True
        log.error("daemon %d lives and does not answer; it is ended", pid)
        with contextlib.suppress(ProcessLookupError):
            Adopted(pid).kill()
        return False

    def _register(self, status: wire.Status) -> None:
        try:
            self._registry.add(Path(status.bundle))
        except VolitionError as error:
            log.error("the daemon's bundle can't be registered: %s", error)

    def _note(self, what: str, who: str = SUPERVISOR, **detail: Any) -> None:
        """Into the journal; a full disk must keep neither a pause nor a start from happening."""
        try:
            self._journal.note(who, what, **detail)
        except JournalError as error:
            log.error("%s", error)

    def _log_problem(self, problem: str, error: BaseException | None = None) -> bool:
        """Log a problem, but not again and again; returns whether it was logged."""
        now = time.monotonic()
        if now - self._logged_at.get(problem, NEVER) < SAME_AGAIN_S:
            return False
        self._logged_at = {p: at for p, at in self._logged_at.items() if now - at < SAME_AGAIN_S}
        self._logged_at[problem] = now
        log.error("%s", problem, exc_info=error)
        return True


def _which(status: wire.Status) -> tuple[float, str]:
    """The daemon's run and its decoder."""
    return status.started, status.decoder


def _is_daemon(pid: int) -> bool:
    """Whether a process is a decode daemon; a pid alone may be anybody's by now."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"decode" in command
