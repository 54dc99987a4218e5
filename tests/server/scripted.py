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
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, BinaryIO

from decoder.errors import VolitionError
from server.calibration.calibrations import Calibrations
from server.schemas import CalibrationRequest
from server.settings import ServerSettings
from server.store.journal import Journal
from server.store.registry import Registry
from server.supervision.daemon import SupervisedDaemon, known_bundle
from server.supervision.process import Adopted, Process
from server.supervision.timing import Timing
from server.unattended.bodies import Unattended
from server.unattended.unattended import UnattendedCalibrations
from streaming.daemon.settings import DaemonSettings
from streaming.inlets.spikes import StreamQuery
from streaming.units import mark_of
from streaming.wire import control
from streaming.wire.children import Child
from tests.server.scripted_daemon import ScriptedDaemon

PR_SET_PDEATHSIG = 1
HOLD_S, LOOK_EVERY_S = 0.2, 0.02  # of an alarm
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
        self.unattended = UnattendedCalibrations(
            settings, self.journal, self.supervisor, registry, self.calibrations,
            look_every_s=LOOK_EVERY_S, hold_s=HOLD_S,
        )  # fmt: skip

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
            self.unattended.start()
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

    def on_units(self, exclude: list[str], include: list[str]) -> None:
        self.supervisor.exclude(exclude, include, who="test")

    def on_calibrate(self, **values: Any) -> str:
        request = CalibrationRequest(seconds=5.0, **values)
        return self.calibrations.start(request, key=None, who="test").id

    def on_cancel(self, identity: str) -> None:
        self.calibrations.cancel(identity, who="test")

    def on_delete(self, identity: str) -> None:
        self.calibrations.remove(identity, who="test")

    def on_promote(self, identity: str) -> None:
        self.calibrations.promote(identity, who="test")

    def on_reject(self, identity: str) -> None:
        self.calibrations.reject(identity, who="test")

    def on_calibration(self, identity: str) -> dict[str, Any]:
        calibration = self.calibrations.get(identity)
        problem = calibration.problem.detail if calibration.problem else None
        return {
            "state": calibration.state,
            "candidate": calibration.candidate,
            "problem": problem,
            "verdict": calibration.verdict,
        }

    def on_unattended(self, **values: Any) -> dict[str, Any]:
        if values:
            self.unattended.set(Unattended(**values), who="test")
        return self.unattended.state().model_dump(mode="json")

    def on_freeze(self) -> dict[str, Any]:
        return self.unattended.freeze(who="test").model_dump(mode="json")

    def on_calibrations(self) -> list[dict[str, Any]]:
        return [calibration.model_dump(mode="json") for calibration in self.calibrations.all()]

    def on_wanted(self) -> dict[str, Any]:
        wanted = self.supervisor.wanted
        return {
            "active": wanted.active,
            "does": {
                "decoder": wanted.active,
                "paused": wanted.paused,
                "gain": wanted.filters.gain,
                "input": wanted.input.name,
                "excluded": mark_of(wanted.excluded),
                "pid": wanted.pid,
            },
            "previous": wanted.previous,
        }

    def on_changes(self, after: int) -> list[dict[str, Any]]:
        """The changes in the journal with a number above `after`, oldest first."""
        return [c for c in reversed(self.journal.changes(50)) if c["number"] > after]

    def on_stop(self) -> None:
        self.unattended.stop()
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
