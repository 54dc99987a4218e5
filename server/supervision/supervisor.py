"""Keeps one decode daemon running: starts or adopts it, and restarts it when it dies.

The daemon is a separate process that writes to a log file. It survives the death of this server,
and the next server finds it on its control address. Two threads watch it: one checks that its
process is alive and restarts it, one asks for its status and kills it if it hangs.

What the daemon should do is decided in `server.supervision.daemon`.
"""

from __future__ import annotations

import abc
import contextlib
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec

from decoder.errors import VolitionError
from server.settings import ServerSettings, daemon_environment
from server.store.journal import Journal, JournalError
from server.store.registry import Registry
from server.supervision.connection import NEVER, DaemonConnection
from server.supervision.process import Own, Process
from server.supervision.timing import Timing
from streaming.daemon.settings import DaemonSettings
from streaming.logs import open_log, shorten
from streaming.wire import control
from streaming.wire import messages as wire
from streaming.wire.control import NoAnswerError

log = logging.getLogger("volition.server")

Start = Callable[[Path, DaemonSettings, BinaryIO], Process]


def start_daemon(bundle: Path, settings: DaemonSettings, output: BinaryIO) -> Process:
    """Start the daemon as a process that outlives this server."""
    return Own(
        subprocess.Popen(
            [sys.executable, "-m", "streaming.daemon", "decode", str(bundle.absolute())],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            env=daemon_environment(settings),
        )
    )  # fmt: skip


class Supervisor(DaemonConnection, abc.ABC):
    """Watches one daemon from `watch` until `stop`; `begin` adopts one that is already running.

    start_daemon: starts a daemon from a bundle, settings and an output file.
    """

    def __init__(
        self,
        settings: ServerSettings,
        journal: Journal,
        registry: Registry,
        *,
        timing: Timing = Timing(),  # noqa: B008
        start_daemon: Start = start_daemon,
    ) -> None:
        super().__init__(settings, journal, registry, timing=timing)
        self._start_daemon = start_daemon
        self.restarts = 0
        self._deaths_in_a_row = 0
        self._start_not_before = NEVER
        self._threads = [
            threading.Thread(target=self._watch_process, name="supervisor", daemon=True),
            threading.Thread(target=self._watch_answers, name="heartbeat", daemon=True),
        ]

    def begin(self) -> bool:
        """Adopt the running daemon, if any; returns whether there is one."""
        return self._adopt() or self._adopt_the_last()

    def watch(self) -> None:
        """Start the threads that keep a daemon running as long as a decoder is active."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop watching, and stop the daemon unless `keep_daemon` is set.

        Orders in progress are completed first; later ones are refused.
        """
        with self._state:
            self._stopping.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        with self._asking, self._asking_urgently:
            if self._settings.supervise and not self._settings.keep_daemon:
                self._stop_daemon()
            for client in (self._beat, self._client, self._urgent):
                client.close()

    @property
    def restarting(self) -> bool:
        """Whether a daemon should be running but does not answer yet."""
        return self._settings.supervise and self.wanted.active is not None and self.status is None

    @abc.abstractmethod
    def _compare(self, status: wire.Status) -> None:
        """Correct the daemon if its status differs from what is wanted."""

    # Liveness of the process.

    def _watch_process(self) -> None:
        while not self._stopping.wait(self.timing.look_every_s):
            try:
                if self._process is not None and not self._process.lives():
                    self._died(self._process)
                if self._process is None and time.monotonic() >= self._start_not_before:
                    self._start_again()
            except Exception as error:
                self._log_problem(f"the supervisor continues after: {error!r}", error)
                self._back_off()

    def _start_again(self) -> None:
        if not self._settings.supervise:
            self._start_not_before = time.monotonic() + self.timing.beat_every_s
            self._adopt()
            return
        if self._deaths_in_a_row and self._adopt():  # another daemon holds its sockets
            return
        self._fall_back()
        if (decoder := self.wanted.active) is not None:
            self._launch(decoder)

    def _fall_back(self) -> None:
        """After two deaths in a row, go back to the last good decoder or else the previous one.

        Only a decoder with intact files is chosen. An active decoder that is good and intact stays:
        the cause of the deaths must be something else.
        """
        active = self.wanted.active
        if self._deaths_in_a_row < 2 or active is None:
            return
        if active == self.wanted.good and self._registry.is_usable(active):
            return
        others = (d for d in (self.wanted.good, self.wanted.previous) if d != active)
        if (other := next(filter(self._registry.is_usable, others), None)) is None:
            return
        with self._state:
            if self._deaths_in_a_row < 2 or self.wanted.active != active:
                return  # another decoder has been activated
            self.wanted.set(active=other, previous=active)
        self._note("fell back", decoder=other, before=active)
        self.wanted.try_to_keep()

    def _launch(self, decoder: str) -> None:
        try:
            path = self._registry.get(decoder).path
        except VolitionError as error:
            self._could_not_start(decoder, str(error))
            return
        with self._log_file() as output, self._state:
            if self._stopping.is_set() or self.wanted.active != decoder:
                return
            process = self._start_daemon(path, self.wanted.daemon(self._settings.control), output)
            self._take(process)
        self.wanted.try_to_keep()
        self._note("started", decoder=decoder, pid=process.pid)
        log.info("started daemon %d with %s", process.pid, decoder)

    def _log_file(self) -> contextlib.AbstractContextManager[BinaryIO]:
        try:
            return open_log(self._settings.logs / "daemon.log")
        except OSError as error:  # better a daemon without a log than no daemon
            self._log_problem(f"can't open the daemon's log, so it runs without one: {error}")
            return open("/dev/null", "wb")

    def _could_not_start(self, decoder: str, why: str) -> None:
        """Count a failed start as a death."""
        with self._state:
            if self.wanted.active != decoder:
                return
            self._deaths_in_a_row += 1
            self._back_off()
        if self._log_problem(f"can't start a daemon with {decoder}: {why}"):
            self._note("not started", decoder=decoder, why=why)

    def _died(self, process: Process) -> None:
        with self._state:
            if self._process is not process:
                return
            timing, died = self.timing, time.monotonic()
            lived_s = (self._answered_at if self._hung else died) - self._proving_since
            grown_s = timing.good_after_s + (timing.hung_after_s if self._hung else 0.0)
            young = self._answered_at == NEVER or lived_s < grown_s
            self._process = self._status = None
            self._answered_at = NEVER
            self.restarts += 1
            self._deaths_in_a_row = (self._deaths_in_a_row if young else 0) + (young or self._hung)
            if young or self._hung:
                self._back_off()
        log.error("daemon %d died", process.pid)
        self._note("daemon died", pid=process.pid, young=young)

    def _back_off(self) -> None:
        timing = self.timing
        doublings = min(max(self._deaths_in_a_row - 1, 0), 20)
        wait_s = min(timing.longest_back_off_s, timing.back_off_s * 2**doublings)
        self._start_not_before = time.monotonic() + wait_s

    def _stop_daemon(self) -> None:
        process = self._process
        if process is None:
            return
        try:
            self._client.ask(control.Stop(), while_it_lives=process.lives)
            deadline = time.monotonic() + self.timing.stop_s
            while process.lives() and time.monotonic() < deadline:
                time.sleep(self.timing.look_every_s)
        except (VolitionError, msgspec.DecodeError) as error:
            log.error("%s", error)
        if process.lives():
            process.kill()

    # Heartbeat.

    def _watch_answers(self) -> None:
        while not self._stopping.wait(self.timing.beat_every_s):
            process = self._process
            try:
                self.wanted.keep()  # retry writes that failed on a full disk
            except JournalError as error:
                self._log_problem(str(error))
            if process is None:
                continue
            try:
                self._beat_once(process)
            except NoAnswerError:
                self._end_if_hung(process)
            except Exception as error:
                if not self._stopping.is_set():
                    self._log_problem(f"the heartbeat continues after: {error!r}", error)

    def _beat_once(self, process: Process) -> None:
        status = self._beat.ask(control.GetStatus(), while_it_lives=process.lives).status
        if self._process is not process:
            return
        if status.pid != process.pid:
            log.error("daemon %d answers instead of %d; adopting it", status.pid, process.pid)
            process.kill()
            self._adopt_as(status)
            return
        self._remember_answer(status)
        self._compare(status)
        self._trust(process, status)
        shorten(self._settings.logs / "daemon.log")

    def _trust(self, process: Process, status: wire.Status) -> None:
        """Mark the decoder as good after `good_after_s` of decoding; waiting does not count."""
        with self._state:
            is_proven = time.monotonic() - self._proving_since > self.timing.good_after_s
            if self._process is not process or not (self._decoded and is_proven):
                return
            self._deaths_in_a_row = 0
            if self.wanted.good == status.decoder or self.wanted.active != status.decoder:
                return
            self.wanted.set(good=status.decoder)
        self.wanted.try_to_keep()

    def _end_if_hung(self, process: Process) -> None:
        silent_s = time.monotonic() - max(self._answered_at, self._began_at)
        if not self._settings.supervise:
            if silent_s > self.timing.hung_after_s:
                with self._state:
                    if self._process is process:
                        self._process = None  # its own supervisor restarts it
            return
        answered = self._answered_at != NEVER
        if silent_s > (self.timing.hung_after_s if answered else self.timing.start_s):
            log.error("daemon %d has not answered for %.1f s; killing it", process.pid, silent_s)
            self._note("hung", pid=process.pid, silent_s=round(silent_s, 1))
            self._end(process)

    def _end(self, process: Process) -> None:
        """Kill a hung daemon. It counts as a death, and its decoder is no longer good."""
        with self._state:
            if self._process is process:
                self._hung = True
                if self.wanted.good == self.wanted.active:
                    self.wanted.set(good=None)
        process.kill()
