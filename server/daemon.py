"""The decode daemon's keeper: starts it or adopts it, watches it, starts it again when it dies.

The daemon is a process group of its own that writes into a log file, so it goes on when this server
dies, and the next server finds it on its control address. What it decodes, reads and filters
stands in the journal, and a daemon that is started again is given it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from decoder.errors import VolitionError
from decoder.filters import Filters
from server.journal import Journal, JournalError
from server.problems import ConflictError, DaemonError
from server.registry import Registry
from server.settings import ServerSettings, daemon_environment
from streaming import control, wire
from streaming.control import Command, ControlClient, NoAnswerError

log = logging.getLogger("volition.server")

LOOK_EVERY_S = 0.02  # whether the process lives
BEAT_EVERY_S = 0.25  # whether it answers
BEAT_TIMEOUT_S = 1.0
HUNG_AFTER_S = 5.0  # without an answer
ADOPT_TIMEOUT_S = 0.5
COMMAND_TIMEOUT_S = 3.0
LOAD_TIMEOUT_S = 60.0
GOOD_AFTER_S = 5.0  # a decoder that ran so long doesn't kill its daemon
BACK_OFF_S = (0.25, 30.0)  # first wait after a daemon that died young, and the longest
STOP_TIMEOUT_S = 5.0
SUPERVISOR = "supervisor"


class Supervisor:
    """Keeps one daemon running, once `start` was called, until `stop`."""

    def __init__(self, settings: ServerSettings, journal: Journal, registry: Registry) -> None:
        self._settings, self._journal, self._registry = settings, journal, registry
        self._process: subprocess.Popen[bytes] | None = None  # ours; an adopted one has only a pid
        self._pid: int | None = None
        self._status: wire.Status | None = None
        self._answered_at = 0.0
        self._started_at = 0.0
        self._deaths_in_a_row = 0
        self._start_not_before = 0.0
        self._beat = ControlClient(settings.control, timeout_s=BEAT_TIMEOUT_S)
        self._client = ControlClient(settings.control, timeout_s=COMMAND_TIMEOUT_S)
        self._asking = threading.Lock()
        self._changing = threading.RLock()  # a decoder, or what a new daemon is given
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self.restarts = 0

    # What others ask of it.

    def start(self) -> None:
        """Adopt the daemon that answers, or start one if there is a decoder to start it with."""
        if not self._adopt() and self._settings.daemon.paused is not None:
            self._journal.remember(paused=self._settings.daemon.paused)
        self._thread.start()

    def stop(self) -> None:
        """End the watch, and the daemon too unless the settings keep it."""
        self._stopping.set()
        self._thread.join(timeout=2 * BEAT_TIMEOUT_S)
        if self._settings.supervise and not self._settings.keep_daemon:
            self._stop_daemon()
        self._beat.close()
        self._client.close()

    @property
    def status(self) -> wire.Status | None:
        """What the daemon said last; None where none answers."""
        fresh = time.monotonic() - self._answered_at < BEAT_EVERY_S + 2 * BEAT_TIMEOUT_S
        return self._status if fresh else None

    @property
    def status_age_s(self) -> float:
        """Seconds since the daemon answered last."""
        return time.monotonic() - self._answered_at

    @property
    def restarting(self) -> bool:
        """Whether a daemon should run and none does."""
        return self._pid is None and self._wanted() is not None

    def ask(self, command: Command) -> wire.Status:
        """Have the daemon do something. Raises DaemonError where it refuses or none runs."""
        if self._pid is None:
            raise DaemonError("no daemon runs; activate a decoder first (GET /v1/decoders)")
        with self._asking:
            reply = self._client.ask(command)
        if reply.problem is not None:
            raise DaemonError(reply.problem)
        self._heard(reply.status)
        return reply.status

    def activate(self, decoder: str, *, who: str) -> wire.Status | None:
        """Decode with a decoder of the registry from the next tick on.

        None where no daemon ran: one is started with it.
        Raises NotFoundError, DaemonError.
        """
        path = self._registry.get(decoder).path
        with self._changing:
            if self._pid is None and self._settings.supervise:
                self._journal.remember(active=decoder, good=None)
                self._deaths_in_a_row, self._start_not_before = 0, 0.0
                self._journal.note(who, "activate", decoder=decoder, before=None)
                return None
            before = self.ask(control.GetStatus()).decoder
            if before == decoder:
                return self.ask(control.GetStatus())
            self._load(decoder, path)
            status = self.ask(control.Activate(decoder=decoder))
            self._decodes_with(status, before=before, who=who, what="activate")
        return status

    def rollback(self, *, who: str) -> wire.Status:
        """Decode with the decoder before again. Raises DaemonError where there was none."""
        with self._changing:
            now = self.ask(control.GetStatus())
            if now.previous is None and (before := self._journal.recall("previous")):
                self._load(before, self._registry.get(before).path)
                status = self.ask(control.Activate(decoder=before))
            else:
                status = self.ask(control.Rollback())
            self._decodes_with(status, before=now.decoder, who=who, what="rollback")
        return status

    def change(self, command: Command, *, who: str, **remembered: Any) -> None:
        """Do what a new daemon has to be told too, under these names of the journal's state.

        Where none runs, the next one is told.
        """
        with self._changing:
            if self._pid is not None or not self._settings.supervise:
                self.ask(command)
            self._journal.remember(**remembered)
            self._journal.note(who, type(command).__name__.lower(), **remembered)

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

    def _decodes_with(self, status: wire.Status, *, before: str, who: str, what: str) -> None:
        self._started_at = time.monotonic()  # of the decoder: whether it is good shows anew
        self._journal.remember(active=status.decoder, previous=before)
        self._journal.note(who, what, decoder=status.decoder, before=before)

    # The watch.

    def _watch(self) -> None:
        beat_due = 0.0
        while not self._stopping.wait(LOOK_EVERY_S):
            try:
                if self._pid is not None and not self._lives():
                    self._died("died")
                if self._pid is None:
                    self._start_again()
                elif time.monotonic() >= beat_due:
                    self._listen()
                    beat_due = time.monotonic() + BEAT_EVERY_S
            except VolitionError as error:
                log.error("%s", error)
                self._back_off()
            except Exception:
                log.exception("the supervisor goes on")
                self._back_off()

    def _adopt(self) -> bool:
        """Take a daemon that answers already as ours."""
        try:
            status = self._beat.ask(control.GetStatus(), timeout_s=ADOPT_TIMEOUT_S).status
        except NoAnswerError:
            return False
        self._pid, self._started_at = status.pid, time.monotonic()
        self._heard(status)
        if not self._settings.supervise and self._journal.recall("active") is not None:
            self._hand_over()
            return True
        entry = self._registry.add(Path(status.bundle))
        self._journal.remember(
            active=entry.manifest.decoder_id,
            paused=status.paused,
            filters=msgspec.to_builtins(status.filters),
        )
        self._note("adopted", decoder=status.decoder, pid=status.pid)
        log.info("adopted the daemon %d, which decodes with %s", status.pid, status.decoder)
        return True

    def _hand_over(self) -> None:
        """Give a daemon that somebody else starts again what the one before had been given."""
        paused, filters = self._journal.recall("paused"), self._journal.recall("filters")
        stream, active = self._journal.recall("input"), self._journal.recall("active")
        with self._changing:
            if paused is not None:
                self.ask(control.Pause(why=paused))
            if filters is not None:
                self.ask(control.SetFilters(filters=Filters(**filters)))
            if stream is not None:
                self.ask(control.SetInput(**stream))
            if self.ask(control.GetStatus()).decoder != active:
                self._load(active, self._registry.get(active).path)
                self.ask(control.Activate(decoder=active))
        self._note("handed over", decoder=active)

    def _start_again(self) -> None:
        if time.monotonic() < self._start_not_before:
            return
        if not self._settings.supervise:
            self._start_not_before = time.monotonic() + BEAT_EVERY_S
            self._adopt()
            return
        with self._changing:
            if (decoder := self._wanted()) is not None:
                self._launch(decoder)

    def _wanted(self) -> str | None:
        """The decoder to start with: the active one, unless daemons died young with it."""
        active, good = self._journal.recall("active"), self._journal.recall("good")
        wanted: str | None = good if good and self._deaths_in_a_row > 1 else active
        return wanted

    def _launch(self, decoder: str) -> None:
        path = self._registry.get(decoder).path
        self._settings.logs.mkdir(parents=True, exist_ok=True)
        with (self._settings.logs / "daemon.log").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "clients.cli", "decode", str(path.absolute())],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self._environment(),
                start_new_session=True,
            )  # fmt: skip
        self._pid, self._started_at = self._process.pid, time.monotonic()
        self._answered_at = 0.0
        self._note("started", decoder=decoder, pid=self._pid)
        log.info("started daemon %d with %s", self._pid, decoder)

    def _environment(self) -> dict[str, str]:
        """The settings and what the journal remembers, as variables."""
        update: dict[str, Any] = {
            "control": self._settings.control,
            "paused": self._journal.recall("paused"),
        }
        if (stream := self._journal.recall("input")) is not None:
            update |= {"stream_type": stream["kind"], "stream_name": stream["name"]}
        if (filters := self._journal.recall("filters")) is not None:
            update |= {"filters": Filters(**filters)}
        return daemon_environment(self._settings.daemon.model_copy(update=update))

    def _lives(self) -> bool:
        if self._process is not None:
            return self._process.poll() is None
        if not self._settings.supervise:  # its pid may be of another container
            return self.status_age_s < HUNG_AFTER_S
        try:
            os.kill(self._pid or 0, 0)
        except ProcessLookupError:
            return False
        return True

    def _listen(self) -> None:
        """Ask for the status; a daemon that doesn't answer for long hangs, and is ended."""
        uptime_s = self._status.uptime_s if self._status is not None else 0.0
        try:
            self._heard(self._beat.ask(control.GetStatus()).status)
            if not self._settings.supervise and self._status and self._status.uptime_s < uptime_s:
                self._hand_over()
        except NoAnswerError:
            silent_since = max(self._answered_at, self._started_at)
            if self._settings.supervise and time.monotonic() - silent_since > HUNG_AFTER_S:
                os.kill(self._pid or 0, signal.SIGKILL)
                self._died(f"did not answer for {HUNG_AFTER_S:g} s and was ended")
            return
        if time.monotonic() - self._started_at > GOOD_AFTER_S and self._status is not None:
            self._deaths_in_a_row = 0
            if self._journal.recall("good") != self._status.decoder:
                self._journal.remember(good=self._status.decoder)

    def _note(self, what: str, **detail: Any) -> None:
        """Into the journal; a full disk must not keep a daemon from being started."""
        try:
            self._journal.note(SUPERVISOR, what, **detail)
        except JournalError as error:
            log.error("%s", error)

    def _heard(self, status: wire.Status) -> None:
        self._status, self._answered_at = status, time.monotonic()

    def _died(self, how: str) -> None:
        young = time.monotonic() - self._started_at < GOOD_AFTER_S
        code = self._process.wait() if self._process is not None else None
        self._note("daemon died", how=how, pid=self._pid, exit_code=code)
        log.error("daemon %s %s (exit code %s)", self._pid, how, code)
        self._process = self._pid = self._status = None
        self._answered_at = 0.0
        self.restarts += 1
        self._deaths_in_a_row = self._deaths_in_a_row + 1 if young else 0
        if self._deaths_in_a_row:
            self._back_off()

    def _back_off(self) -> None:
        first, longest = BACK_OFF_S
        wait_s = min(longest, first * 2 ** min(max(self._deaths_in_a_row - 1, 0), 20))
        self._start_not_before = time.monotonic() + wait_s

    def _stop_daemon(self) -> None:
        if self._pid is None:
            return
        with contextlib.suppress(VolitionError):
            self._client.ask(control.Stop())
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self._lives() and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY_S)
        if self._lives():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)


def known_bundle(registry: Registry, journal: Journal, bundle: Path) -> None:
    """Register a bundle; activate it, unless it was given before (others may be active since)."""
    decoder = registry.add(bundle).manifest.decoder_id
    if journal.recall("given") != decoder:
        journal.remember(given=decoder, active=decoder)
