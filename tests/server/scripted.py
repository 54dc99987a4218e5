"""A daemon and a server as small real processes that can die many times per second.

The daemon speaks the real control protocol over ZeroMQ but decodes nothing. It follows a script
(delays, deaths before or after a command is carried out) and writes down the state it starts in.
The server is the real supervisor, journal, registry and calibrations, with a socket in place of
HTTP. Both are forked, in milliseconds, from one process that has everything imported.

    python -m tests.server.scripted decode SOCKET    the process that forks
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from decoder.errors import VolitionError
from server.calibration.calibrations import Calibrations
from server.schemas import CalibrationRequest
from server.settings import ServerSettings
from server.store.journal import Journal
from server.store.registry import Registry
from server.supervision.children import Child
from server.supervision.daemon import SupervisedDaemon, known_bundle
from server.supervision.process import Adopted, Process
from server.supervision.timing import Timing
from streaming.daemon.settings import DaemonSettings
from streaming.inlets.spikes import StreamQuery
from streaming.wire import control
from streaming.wire import messages as wire
from streaming.wire.control import ControlSocket

PR_SET_PDEATHSIG = 1
PATIENCE = float(os.environ.get("VOLITION_TEST_PATIENCE", "1"))  # more on a busy machine
QUICK = Timing(
    look_every_s=0.003,
    beat_every_s=0.02,
    answer_s=0.7 * PATIENCE,
    order_s=0.8 * PATIENCE,
    fresh_s=1.0 * PATIENCE,
    hung_after_s=1.0 * PATIENCE,
    start_s=20.0 * PATIENCE,
    adopt_s=0.1 * PATIENCE,
    load_s=20.0 * PATIENCE,
    good_after_s=0.1,
    back_off_s=0.002,
    longest_back_off_s=0.02,
    stop_s=1.0 * PATIENCE,
    silent_s=1.0 * PATIENCE,
)


class Script:
    """What the daemon should do, in memory shared by the test and every daemon.

    before_ms, after_ms: delays before a command is carried out, and before it is answered.
    load_ms: time that a decoder takes to load; may be shortened while it is loading.
    armable: whether the daemon can be armed.
    die: 1 before the next command is carried out, 2 after it but before the answer, 0 not at all.
    """

    FORMAT = struct.Struct("=5d")

    def __init__(self, path: Path) -> None:
        is_new = not path.exists()
        if is_new:
            path.write_bytes(bytes(self.FORMAT.size))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), self.FORMAT.size)
        if is_new:
            self.set()

    def set(
        self, *, before_ms: float = 0, after_ms: float = 0, load_ms: float = 0,
        armable: bool = True, die: int = 0,
    ) -> None:  # fmt: skip
        self.FORMAT.pack_into(self._memory, 0, before_ms, after_ms, load_ms, armable, die)

    def get(self) -> tuple[float, float, float, bool, int]:
        before_ms, after_ms, load_ms, armable, die = self.FORMAT.unpack_from(self._memory)
        return before_ms, after_ms, load_ms, bool(armable), int(die)

    def has_died(self) -> None:
        before_ms, after_ms, load_ms, armable, _ = self.get()
        self.set(before_ms=before_ms, after_ms=after_ms, load_ms=load_ms, armable=armable)


def decoder_of(bundle: Path) -> str:
    return str(json.loads((bundle / "manifest.json").read_text())["decoder_id"])


class ScriptedDaemon:
    """Answers commands as `streaming.daemon.loop.Daemon` does."""

    def __init__(self, bundle: Path, settings: DaemonSettings, folder: Path) -> None:
        assert settings.control is not None
        self._script = Script(folder / "script")
        self._bundle, self._decoder = bundle, decoder_of(bundle)
        self._candidate: Path | None = None
        self._previous: Path | None = None
        self._load_began = 0.0
        self._load_problem: str | None = None
        self._filters, self._paused = settings.filters, settings.paused
        self._input = StreamQuery(kind=settings.stream_type, name=settings.stream_name)
        self._started, self._ticks = time.monotonic(), 0
        self._socket = ControlSocket(settings.control)
        birth = {"at": self._started, "pid": os.getpid(), **self.does()}
        with (folder / "births").open("a") as file:
            file.write(f"\n{json.dumps(birth)}\n")  # after the partial line of a killed one

    def does(self) -> dict[str, Any]:
        return {
            "decoder": self._decoder,
            "paused": self._paused,
            "gain": self._filters.gain,
            "input": self._input.name,
        }

    def serve(self) -> None:
        while True:
            self._socket._socket.poll(1000)
            command = self._socket.receive()
            if command is None:
                continue
            self._ticks += 1
            is_order = not isinstance(command, control.GetStatus)
            before_ms, after_ms, _, _, die = self._script.get()
            if is_order:
                time.sleep(before_ms / 1e3)
                self._die_if(die == 1)
            problem = command if isinstance(command, str) else self._handle(command)
            if is_order:
                self._die_if(die == 2)
                time.sleep(after_ms / 1e3)
            self._socket.answer(control.Reply(problem=problem, status=self.status()))
            if isinstance(command, control.Stop):
                self._socket.close()
                return

    def _die_if(self, it_shall: bool) -> None:
        if it_shall:
            self._script.has_died()
            os.kill(os.getpid(), signal.SIGKILL)

    def _handle(self, command: control.Command) -> str | None:
        armable = self._script.get()[3]
        match command:
            case control.Load(path=path):
                self._candidate, self._load_problem = None, None
                self._load_began = time.monotonic()
                if (Path(path) / "manifest.json").exists():
                    self._candidate = Path(path)
                else:
                    self._load_problem = f"{path} is no bundle"
            case control.Activate(decoder=decoder):
                candidate = None if self._loading else self._candidate
                if candidate is None or decoder_of(candidate) != decoder:
                    return f"decoder {decoder} is not the candidate; load it first"
                self._swap(candidate)
            case control.Rollback():
                if self._previous is None:
                    return "there is no decoder before this one"
                self._swap(self._previous)
            case control.SetInput(kind=kind, name=name):
                self._input = StreamQuery(kind=kind, name=name)
            case control.Pause(why=why):
                self._paused = why
            case control.Resume(paused_for=why):
                if why in (None, self._paused):
                    self._paused = None
            case control.Arm():
                if not armable:
                    return "not armed: nobody listens to cursor frames"
                self._paused = None
            case control.SetFilters(filters=filters):
                self._filters = filters
        return None

    @property
    def _loading(self) -> bool:
        return time.monotonic() < self._load_began + self._script.get()[2] / 1e3

    def _swap(self, bundle: Path) -> None:
        self._bundle, self._previous, self._candidate = bundle, self._bundle, None
        self._decoder = decoder_of(bundle)

    def status(self) -> wire.Status:
        loading = self._loading
        values = {field.name: _nothing(field.type) for field in msgspec.structs.fields(wire.Status)}
        return wire.Status(
            **values
            | {
                "schema": wire.SCHEMA_VERSION,
                "decoder": self._decoder,
                "state": "paused" if self._paused is not None else "decoding",
                "started": self._started,
                "ticks": self._ticks,
                "input_kind": self._input.kind,
                "input_name": self._input.name,
                "stream": self._input.name,
                "bundle": str(self._bundle),
                "previous": self._previous and decoder_of(self._previous),
                "candidate": decoder_of(self._candidate)
                if self._candidate and not loading
                else None,
                "loading": loading,
                "load_problem": None if loading else self._load_problem,
                "paused": self._paused,
                "filters": self._filters,
                "pid": os.getpid(),
            }
        )


def _nothing(kind: Any) -> Any:
    """A zero of a field's type, so that new fields of the status need no change here."""
    if kind in (str, int, float, bool):
        return kind()
    if "None" in str(kind):
        return None
    return (0.0, 0.0) if "tuple" in str(kind) else {}


class ScriptedChild(Child):
    """A collector, trainer or shadow that does no work and takes milliseconds."""

    def _command(self, module: str, *arguments: str) -> list[str]:
        script = str(Path(__file__).with_name("scripted_child.py"))
        return [sys.executable, "-I", "-S", script, module, os.environ["SCRIPTED_FOLDER"]]


class ServerProcess:
    """The server without HTTP: it serves each connection in a thread of its own."""

    def __init__(self, folder: Path, port: int, forks: Path, *, keep_daemon: bool) -> None:
        os.environ["SCRIPTED_FOLDER"] = str(folder)
        self._folder, self._forks = folder, forks
        settings = ServerSettings(
            home=folder / "home",
            keep_daemon=keep_daemon,
            daemon=DaemonSettings(control=f"tcp://127.0.0.1:{port}"),
        )
        self.journal = Journal(settings.home / "journal.sqlite")
        registry = Registry(settings.decoders)
        self._given = known_bundle(registry, self.journal, folder / "bundles" / "a.bundle")
        self.supervisor = SupervisedDaemon(
            settings, self.journal, registry, timing=QUICK, start_daemon=self._start_daemon
        )
        self.calibrations = Calibrations(
            settings, self.journal, self.supervisor, registry, start_child=ScriptedChild
        )

    def _start_daemon(self, bundle: Path, settings: DaemonSettings, output: BinaryIO) -> Process:
        order = {
            "what": "daemon",
            "bundle": str(bundle),
            "settings": settings.model_dump(mode="json"),
            "folder": str(self._folder),
        }
        return Adopted(fork(self._forks, order))

    def serve(self, address: str) -> None:
        with Listener(address, family="AF_UNIX") as listener:
            self.supervisor.start(self._given)
            while True:
                connection = listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: Connection) -> None:
        while True:
            try:
                name, values = json.loads(connection.recv_bytes())
            except (EOFError, OSError):
                return
            try:
                answer = {"done": getattr(self, f"on_{name}")(**values)}
            except VolitionError as error:
                answer = {"problem": f"{type(error).__name__}: {error}"}
            except Exception:
                answer = {"fault": traceback.format_exc()}
            connection.send_bytes(json.dumps(answer).encode())
            if name == "stop":
                os._exit(0)

    def on_activate(self, decoder: str) -> None:
        self.supervisor.activate(decoder, who="test")

    def on_rollback(self) -> None:
        self.supervisor.rollback(who="test")

    def on_pause(self, why: str) -> None:
        self.supervisor.pause(why, who="test")

    def on_resume(self) -> None:
        self.supervisor.resume(who="test")

    def on_arm(self) -> None:
        self.supervisor.resume(who="test", command=control.Arm())

    def on_filters(self, gain: float) -> None:
        self.supervisor.filter({"gain": gain}, who="test")

    def on_input(self, name: str) -> None:
        self.supervisor.read_from(StreamQuery(name=name), who="test")

    def on_calibrate(self, **values: Any) -> str:
        request = CalibrationRequest(seconds=5.0, **values)
        return self.calibrations.start(request, key=None, who="test").id

    def on_cancel(self, identity: str) -> None:
        self.calibrations.cancel(identity, who="test")

    def on_delete(self, identity: str) -> None:
        self.calibrations.remove(identity, who="test")

    def on_calibration(self, identity: str) -> dict[str, Any]:
        calibration = self.calibrations.get(identity)
        problem = calibration.problem.detail if calibration.problem else None
        return {
            "state": calibration.state,
            "candidate": calibration.candidate,
            "problem": problem,
            "verdict": calibration.verdict,
        }

    def on_wanted(self) -> dict[str, Any]:
        wanted = self.supervisor.wanted
        return {
            "active": wanted.active,
            "does": {
                "decoder": wanted.active,
                "paused": wanted.paused,
                "gain": wanted.filters.gain,
                "input": wanted.input.name,
                "pid": wanted.pid,
            },
            "previous": wanted.previous,
        }

    def on_changes(self, after: int) -> list[dict[str, Any]]:
        """The changes in the journal with a number above `after`, oldest first."""
        return [c for c in reversed(self.journal.changes(50)) if c["number"] > after]

    def on_stop(self) -> None:
        self.calibrations.stop()
        self.supervisor.stop()
        self.journal.close()


def fork(forks: Path, order: dict[str, Any]) -> int:
    """Ask for a forked process; returns its pid."""
    with Client(str(forks), family="AF_UNIX") as connection:
        connection.send_bytes(json.dumps(order).encode())
        return int(json.loads(connection.recv_bytes()))


def _be(order: dict[str, Any], forks: Path) -> None:
    """Run in the forked process, which ends with the one that forked it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    folder = Path(order["folder"])
    log = os.open(folder / f"{order['what']}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if order["what"] == "daemon":
        settings = DaemonSettings.model_validate(order["settings"])
        ScriptedDaemon(Path(order["bundle"]), settings, folder).serve()
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    server = ServerProcess(folder, order["port"], forks, keep_daemon=order["keep_daemon"])
    server.serve(order["address"])


def main(address: str) -> None:
    """Fork processes on request until the parent is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are not waited for
    parent = os.getppid()
    gc.collect()
    gc.freeze()  # garbage collection in the forks must not touch, and so copy, these pages
    with Listener(address, family="AF_UNIX", backlog=64) as listener:
        raw: socket.socket = listener._listener._socket  # type: ignore[attr-defined]
        raw.settimeout(1.0)
        print("ready", flush=True)
        while os.getppid() == parent:
            try:
                connection = listener.accept()
            except TimeoutError:
                continue
            with connection, suppress(EOFError, OSError):  # a server may die during its request
                order = json.loads(connection.recv_bytes())
                if (pid := os.fork()) == 0:
                    raw.close()
                    connection.close()
                    try:
                        _be(order, Path(address))
                    except BaseException:
                        traceback.print_exc()
                    finally:
                        os._exit(1)
                connection.send_bytes(json.dumps(pid).encode())


@contextmanager
def forking(folder: Path) -> Iterator[Path]:
    """Run the process that forks; yields the address of its socket."""
    address = folder / "forks"
    with subprocess.Popen(
        [sys.executable, "-m", "tests.server.scripted", "decode", str(address)],
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield address
        finally:
            process.kill()


if __name__ == "__main__":
    main(sys.argv[2])
