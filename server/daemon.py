"""The decode daemon's keeper: starts it or adopts it, watches it, starts it again when it dies.

The daemon is a process of its own that writes into a log file, so it goes on when this server dies,
and the next server finds it on its control address. Two threads watch it: one looks whether its
process lives and starts it again, one asks for its status and ends a daemon that hangs. What it
should do (`server.wanted`) is compared with what it says at every answer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from decoder.bundle import open_bundle
from decoder.errors import VolitionError
from decoder.filters import Filters
from server.journal import Journal, JournalError
from server.problems import ConflictError, DaemonError
from server.process import Adopted, Foreign, Own, Process
from server.registry import Registry
from server.settings import ServerSettings, daemon_environment
from server.wanted import Wanted
from streaming import control, wire
from streaming.control import Command, ControlClient, NoAnswerError
from streaming.lsl import StreamQuery
from streaming.settings import RESTARTED

log = logging.getLogger("volition.server")

LOOK_EVERY_S = 0.02  # whether the process lives
BEAT_EVERY_S = 0.25  # whether it answers
ANSWER_TIMEOUT_S = 1.5  # the longest tick is 1 s, and a command waits for its end
FRESH_S = 2.0  # an answer older than this says nothing of now
HUNG_AFTER_S = 5.0  # without an answer, once it has answered
START_TIMEOUT_S = 60.0  # until the first answer: a GPU or a cold disk takes its time
ADOPT_TIMEOUT_S = 0.5
LOAD_TIMEOUT_S = 60.0
GOOD_AFTER_S = 5.0  # a decoder that ran so long doesn't kill its daemon
BACK_OFF_S = (0.25, 30.0)  # first wait after a daemon that died young, and the longest
STOP_TIMEOUT_S = 5.0
SUPERVISOR = "supervisor"


class Supervisor:
    """Keeps one daemon running, once `start` was called, until `stop`."""

    def __init__(self, settings: ServerSettings, journal: Journal, registry: Registry) -> None:
        self._settings, self._journal, self._registry = settings, journal, registry
        self.wanted = Wanted(journal, settings.daemon)
        self.restarts = 0
        self._process: Process | None = None
        self._status: wire.Status | None = None
        self._answered_at = self._began_at = -float("inf")  # monotonic, s
        self._known: tuple[int, float] | None = None  # pid and start of the daemon told all
        self._deaths_in_a_row = 0
        self._start_not_before = -float("inf")
        self._beat = ControlClient(settings.control, timeout_s=ANSWER_TIMEOUT_S)
        self._client = ControlClient(settings.control, timeout_s=2 * ANSWER_TIMEOUT_S)
        self._asking = threading.Lock()  # one command at a time
        self._starting = threading.Lock()  # between what a daemon is given and its pid
        self._telling = threading.RLock()  # pause, filters, input: asked and remembered together
        self._swapping = threading.RLock()  # one change of decoder at a time
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._keep, name="keeper", daemon=True),
            threading.Thread(target=self._listen, name="heartbeat", daemon=True),
        ]

    # What others ask of it.

    def start(self, given: str | None = None) -> None:
        """Adopt the daemon that answers, or start one if there is a decoder to start it with.

        given: decoder to decode with from now on, whatever an adopted daemon does.
        """
        if not self._adopt() and not self._adopt_the_last():
            if self._settings.daemon.paused is not None:
                self.wanted.set(paused=self._settings.daemon.paused)
            if given is not None:
                self.wanted.set(active=given, previous=self.wanted.active)
        elif given is not None:
            try:
                self.activate(given, who=SUPERVISOR)
            except VolitionError as error:
                log.error("%s was given, but can't be activated: %s", given, error)
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

    # Whether it answers, and does what it should.

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


def known_bundle(registry: Registry, journal: Journal, bundle: Path) -> str | None:
    """Register a bundle; its id, unless it was given before (others may be active since)."""
    decoder = registry.add(bundle).manifest.decoder_id
    if journal.recall("given") == decoder:
        return None
    journal.remember(given=decoder)
    return decoder
