"""Keeps one decode daemon running: starts it or adopts it, and starts it again when it dies.

The daemon is a process of its own that writes into a log file, so it goes on when this server dies,
and the next server finds it on its control address. Two threads watch it: one looks whether its
process lives and starts it again, one asks for its status and ends a daemon that hangs.

It does not know what the daemon should do (`server.daemon`).
"""

from __future__ import annotations

import abc
import contextlib
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from decoder.errors import VolitionError
from server.journal import Journal, JournalError
from server.problems import DaemonError
from server.process import Adopted, Foreign, Own, Process
from server.registry import Registry
from server.settings import ServerSettings, daemon_environment
from server.wanted import Wanted
from streaming import control, wire
from streaming.control import Command, ControlClient, NoAnswerError
from streaming.settings import RESTARTED

log = logging.getLogger("volition.server")

LOOK_EVERY_S = 0.02  # whether the process lives
BEAT_EVERY_S = 0.25  # whether it answers
ANSWER_TIMEOUT_S = 1.5  # the longest tick is 1 s, and a command waits for its end
FRESH_S = 2.0  # an answer older than this says nothing of now
HUNG_AFTER_S = 5.0  # without an answer, once it has answered
START_TIMEOUT_S = 60.0  # until the first answer: a GPU or a cold disk takes its time
ADOPT_TIMEOUT_S = 0.5
GOOD_AFTER_S = 5.0  # a decoder that ran so long doesn't kill its daemon
BACK_OFF_S = (0.25, 30.0)  # first wait after a daemon that died young, and the longest
STOP_TIMEOUT_S = 5.0
SUPERVISOR = "supervisor"


class Keeper(abc.ABC):
    """Watches one daemon from `watch` until `stop`; `begin` finds or forgets the one before."""

    def __init__(self, settings: ServerSettings, journal: Journal, registry: Registry) -> None:
        self._settings, self._journal, self._registry = settings, journal, registry
        self.wanted = Wanted(journal, settings.daemon)
        self.restarts = 0
        self._process: Process | None = None
        self._status: wire.Status | None = None
        self._answered_at = self._began_at = -float("inf")  # monotonic, s
        self._deaths_in_a_row = 0
        self._start_not_before = -float("inf")
        self._beat = ControlClient(settings.control, timeout_s=ANSWER_TIMEOUT_S)
        self._client = ControlClient(settings.control, timeout_s=2 * ANSWER_TIMEOUT_S)
        self._asking = threading.Lock()  # one command at a time
        self._starting = threading.Lock()  # between what a daemon is given and its pid
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._keep, name="keeper", daemon=True),
            threading.Thread(target=self._listen, name="heartbeat", daemon=True),
        ]

    def begin(self) -> bool:
        """Adopt the daemon that answers, or that of the server before; whether there is one."""
        return self._adopt() or self._adopt_the_last()

    def watch(self) -> None:
        """From now on there is a daemon whenever there is a decoder to run it with."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the watch, and the daemon too unless the settings keep it."""
        self._stopping.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout=2 * ANSWER_TIMEOUT_S)
        if self._settings.supervise and not self._settings.keep_daemon:
            self._stop_daemon()
        self._beat.close()
        self._client.close()

    @property
    def status(self) -> wire.Status | None:
        """What the daemon said last; None where none answers."""
        fresh = time.monotonic() - self._answered_at < FRESH_S
        return self._status if fresh else None

    @property
    def restarting(self) -> bool:
        """Whether a daemon should run, and the one that is to do so doesn't answer yet."""
        return self._settings.supervise and self.wanted.active is not None and self.status is None

    def ask(self, command: Command) -> wire.Status:
        """Have the daemon do something. Raises DaemonError where it refuses or none runs."""
        if self._process is None:
            raise DaemonError("no daemon runs; activate a decoder first (GET /v1/decoders)")
        with self._asking:
            reply = self._client.ask(command)
        if reply.problem is not None:
            raise DaemonError(reply.problem)
        self._heard(reply.status)
        return reply.status

    @abc.abstractmethod
    def _compare(self, status: wire.Status) -> None:
        """Have the daemon do what it should, if it says that it doesn't."""

    def _note(self, what: str, who: str = SUPERVISOR, **detail: Any) -> None:
        """Into the journal; a full disk must keep neither a pause nor a start from happening."""
        try:
            self._journal.note(who, what, **detail)
        except JournalError as error:
            log.error("%s", error)

    # Whether the process lives.

    def _keep(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            try:
                if self._process is not None and not self._process.lives():
                    self._died()
                if self._process is None and time.monotonic() >= self._start_not_before:
                    self._start_again()
            except Exception as error:
                log.exception("the keeper goes on: %s", error)
                self._back_off()

    def _start_again(self) -> None:
        if not self._settings.supervise:
            self._start_not_before = time.monotonic() + BEAT_EVERY_S
            self._adopt()
            return
        if self._deaths_in_a_row and self._adopt():  # it died because another one runs
            return
        self._fall_back()
        if (decoder := self.wanted.active) is not None:
            self._launch(decoder)

    def _fall_back(self) -> None:
        """After two daemons that died young: back to the last good decoder."""
        good, active = self.wanted.good, self.wanted.active
        if self._deaths_in_a_row > 1 and good is not None and good != active:
            self.wanted.set(active=good, previous=active)
            self._note("fell back", decoder=good, before=active)

    def _launch(self, decoder: str) -> None:
        path = self._registry.get(decoder).path
        self._settings.logs.mkdir(parents=True, exist_ok=True)
        with self._starting, (self._settings.logs / "daemon.log").open("ab") as output:
            if self._stopping.is_set():
                return
            popen = subprocess.Popen(
                [sys.executable, "-m", "clients.cli", "decode", str(path.absolute())],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                env=daemon_environment(self.wanted.daemon(self._settings.control)),
            )  # fmt: skip
            self._take(Own(popen))
        self._note("started", decoder=decoder, pid=popen.pid)
        log.info("started daemon %d with %s", popen.pid, decoder)

    def _take(self, process: Process) -> None:
        self._status, self._answered_at = None, -float("inf")
        self._began_at = time.monotonic()
        self._process = process
        self.wanted.set(pid=process.pid)

    def _died(self) -> None:
        assert self._process is not None
        young = (
            self._answered_at == -float("inf") or time.monotonic() - self._began_at < GOOD_AFTER_S
        )
        pid, self._process, self._status = self._process.pid, None, None
        self._answered_at = -float("inf")
        self.restarts += 1
        self._deaths_in_a_row = self._deaths_in_a_row + 1 if young else 0
        if young:
            self._back_off()
        log.error("daemon %d died", pid)
        self._note("daemon died", pid=pid, young=young)

    def _back_off(self) -> None:
        first, longest = BACK_OFF_S
        wait_s = min(longest, first * 2 ** min(max(self._deaths_in_a_row - 1, 0), 20))
        self._start_not_before = time.monotonic() + wait_s

    def _stop_daemon(self) -> None:
        if self._process is None:
            return
        try:
            self._client.ask(control.Stop())
            deadline = time.monotonic() + STOP_TIMEOUT_S
            while self._process.lives() and time.monotonic() < deadline:
                time.sleep(LOOK_EVERY_S)
        except VolitionError as error:
            log.error("%s", error)
        if self._process.lives():
            self._process.kill()

    # Whether it answers.

    def _listen(self) -> None:
        while not self._stopping.wait(BEAT_EVERY_S):
            process = self._process
            if process is None:
                continue
            try:
                self._hear(process)
            except NoAnswerError:
                self._end_if_hung(process)
            except Exception as error:
                log.exception("the heartbeat goes on: %s", error)

    def _hear(self, process: Process) -> None:
        status = self._beat.ask(control.GetStatus()).status
        if self._settings.supervise and status.pid != process.pid:
            log.error("daemon %d answers, not %d; it is adopted", status.pid, process.pid)
            process.kill()
            self._adopt()
            return
        self._heard(status)
        self._compare(status)
        if time.monotonic() - self._began_at > GOOD_AFTER_S:
            self._deaths_in_a_row = 0
            if self.wanted.good != status.decoder:
                self.wanted.set(good=status.decoder)

    def _heard(self, status: wire.Status) -> None:
        """Keep the newest answer of the daemon that runs."""
        now = self._status
        if now is None or now.started != status.started or now.ticks <= status.ticks:
            self._status = status
        self._answered_at = time.monotonic()

    def _end_if_hung(self, process: Process) -> None:
        if not self._settings.supervise:
            if time.monotonic() - max(self._answered_at, self._began_at) > HUNG_AFTER_S:
                self._process = None  # whoever starts it will start it again
            return
        answered = self._answered_at != -float("inf")
        silent_s = time.monotonic() - max(self._answered_at, self._began_at)
        if silent_s > (HUNG_AFTER_S if answered else START_TIMEOUT_S):
            log.error("daemon %d has not answered for %.0f s and is ended", process.pid, silent_s)
            self._note("hung", pid=process.pid, silent_s=round(silent_s, 1))
            process.kill()

    # Who was here before.

    def _adopt(self) -> bool:
        """Take a daemon that answers already as ours."""
        client = ControlClient(self._settings.control, timeout_s=ADOPT_TIMEOUT_S)
        try:
            return self._adopt_as(client.ask(control.GetStatus()).status)
        except (NoAnswerError, ProcessLookupError):
            return False
        except msgspec.ValidationError as error:
            log.error("a daemon of another version runs on %s: %s", self._settings.control, error)
            return False
        finally:
            client.close()

    def _adopt_as(self, status: wire.Status) -> bool:
        with self._starting:
            supervise = self._settings.supervise
            self._take(Adopted(status.pid) if supervise else Foreign(status.pid))
        is_as_it_should_be = supervise or self.wanted.active is None
        if is_as_it_should_be:
            self._register(status)
            self.wanted.set(
                active=status.decoder,
                filters=status.filters,
                paused=None if status.paused == RESTARTED else status.paused,
                input={"kind": status.input_kind, "name": status.input_name},
            )
        self._heard(status)
        self._note("adopted", decoder=status.decoder, pid=status.pid)
        log.info("adopted daemon %d, which decodes with %s", status.pid, status.decoder)
        return True

    def _adopt_the_last(self) -> bool:
        """The daemon of the server before, where it lives but was slow to answer; or its end."""
        pid = self._journal.recall("pid")
        if not self._settings.supervise or pid is None or not _is_daemon(pid):
            return False
        deadline = time.monotonic() + HUNG_AFTER_S
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


def _is_daemon(pid: int) -> bool:
    """Whether a process is a decode daemon; a pid alone may be anybody's by now."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"decode" in command
