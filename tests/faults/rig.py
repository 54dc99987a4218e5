"""The processes of one fault: a sender, a daemon or a server, and the checker of their frames.

A rig is reused for several tries as long as they hold. `problems` must be empty after each try.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Self, TypeVar

import numpy as np
from pylsl import local_clock

from clients.control import ControlClient
from clients.harness.daemon import BUNDLES, free_port
from clients.harness.server import Server
from clients.subscriber import StatusSubscriber
from decoder.bundles.bundle import open_bundle
from decoder.errors import VolitionError
from server.schemas import FiltersPatch
from streaming.wire import control
from streaming.wire import messages as wire
from tests.faults.checker import Checker, broken_rules, longest_silence, undeliverable
from tests.faults.fault import Seconds
from tests.faults.network import Link
from tests.faults.orders import Orders
from tests.faults.sender import SENT, Sender, read_log
from tests.rig import DEADLINE_S, Process, wait_for

T = TypeVar("T")
POSSM, POYO = BUNDLES / "possm.bundle", BUNDLES / "poyo.bundle"
CRASHES = (b"Traceback", b"terminate called", b"Segmentation fault")


class Rig:
    """A sender and a checker; subclasses add a daemon or server. Use it in a `with` block."""

    bundle = POSSM

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.stream = f"faults-{uuid.uuid4().hex[:8]}"
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.rng = Random(0)
        self.orders = Orders()
        self.programs: list[Process] = []
        self.senders: list[Sender] = []
        self.cuts: list[tuple[float, float]] = []
        self.windows = {
            bundle.decoder_id: bundle.sizes.window_s
            for bundle in (open_bundle(path).manifest for path in (POSSM, POYO))
        }
        self._judged = 0
        self._read: dict[Path, int] = {}

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the checker and the sender."""
        self.checker = Checker(self.address)
        self.start_sender()

    def close(self) -> None:
        """End every process."""
        for sender in self.senders:
            sender.kill()
        for program in self.programs:
            program.popen.kill()
            program.popen.wait()
        if hasattr(self, "checker"):
            self.checker.close()

    # Processes.

    @property
    def sender(self) -> Sender:
        """The sender that was started last."""
        return self.senders[-1]

    def start_sender(self, name: str | None = None, **more: str) -> Sender:
        """Start another sender, by default of the decoded stream. more: command-line options."""
        self.senders.append(
            Sender(name or self.stream, self.bundle, self.folder, **self._sender_runs_in(), **more)
        )
        return self.sender

    def _sender_runs_in(self) -> dict[str, object]:
        return {}

    def program(self, *arguments: str, prefix: tuple[str, ...] = ()) -> Process:
        """Start a `volition` command."""
        log = self.folder / f"{arguments[0]}-{len(self.programs)}.log"
        self.programs.append(Process(log, *arguments, prefix=prefix))
        return self.programs[-1]

    # Waiting and measuring.

    def moment(self, longest_s: float = 0.5) -> None:
        """Wait for a random time, so that the fault comes at a random moment."""
        time.sleep(self.rng.uniform(0.0, longest_s))

    def until(
        self, what: str, condition: Callable[[], T | None], within_s: float = DEADLINE_S
    ) -> T:
        """The first true result of `condition`. Raises AssertionError if there is none in time."""
        return wait_for(what, condition, within_s)

    def until_valid(self, since: float | None = None, within_s: float = DEADLINE_S) -> Seconds:
        """Wait for a valid frame published after `since` (LSL clock, s; by default now)."""
        return self._until(True, since, within_s)

    def until_not_valid(self, since: float | None = None, within_s: float = DEADLINE_S) -> Seconds:
        """Wait for a frame that is not valid."""
        return self._until(False, since, within_s)

    def _until(self, valid: bool, since: float | None, within_s: float) -> Seconds:
        start = local_clock() if since is None else since
        what = "valid" if valid else "not valid"
        frame = self.until(
            f"a frame that is {what} (last: {self.last_state()})",
            lambda: next((f for f in self.checker.since(start) if f.valid == valid), None),
            within_s,
        )
        return {f"to {what}": frame.published - start}

    def last_state(self) -> str:
        """The state of the newest frame."""
        return self.checker.frames[-1][1].state if self.checker.frames else "no frame yet"

    def never_valid(self, seconds: float, since: float | None = None) -> None:
        """Assert that frames arrive for `seconds` and none of them is valid."""
        start = local_clock() if since is None else since
        self.until("frames", lambda: self.checker.since(start + seconds))
        valid = sum(frame.valid for frame in self.checker.since(start))
        assert not valid, f"{valid} valid frames within {seconds:g} s"

    def frames_for(self, seconds: float) -> Seconds:
        """The longest time between frames during the next `seconds`."""
        start = local_clock()
        self.until("frames", lambda: self.checker.since(start + seconds))
        return {"longest without a frame": longest_silence(self.checker.since(start))}

    def settle(self) -> None:
        """Wait for valid frames before a fault."""
        if self.sender.popen.poll() is not None:
            self.start_sender()
        self.until_valid(within_s=DEADLINE_S)

    # Checks after a try.

    def problems(self) -> list[str]:
        """The rules broken by frames, and tracebacks in logs, since the last call."""
        frames = [frame for _, frame in self.checker.frames[max(0, self._judged - 1) :]]
        self._judged = len(self.checker.frames)
        found = broken_rules(frames, self.sent(), self.windows, self.orders.paused)
        if self.checker.unreadable:
            found.append(f"{self.checker.unreadable} frames can't be read")
        return found + self._crashes()

    def sent(self) -> np.ndarray:
        """The logs of all senders."""
        logs = [read_log(sender.log) for sender in self.senders]
        return undeliverable(np.concatenate([np.empty(0, dtype=SENT), *logs]), self.cuts)

    def _crashes(self) -> list[str]:
        found = []
        for path in sorted(self.folder.rglob("*.log*")):
            if not path.is_file():
                continue
            content = path.read_bytes()
            new = content[self._read.get(path, 0) :]
            self._read[path] = len(content)
            for word in CRASHES:
                if word in new:
                    last = new[new.index(word) :].decode(errors="replace").splitlines()[-1]
                    found.append(f"{word.decode()} in {path.name}: …{last[:200]}")
        return found


class DaemonRig(Rig):
    """`volition decode` with a control socket."""

    def start(self) -> None:
        self.control = f"tcp://127.0.0.1:{free_port()}"
        super().start()
        self.start_daemon()

    def start_daemon(self, *more: str) -> None:
        """Start the daemon."""
        self.daemon = self.program(
            "decode", str(self.bundle), "--stream-name", self.stream, "--address", self.address,
            "--control", self.control, *more,
        )  # fmt: skip

    def ask(self, command: control.Command, timeout_s: float = 10.0) -> control.Reply:
        """Send a command on a new socket."""
        client = control.ControlClient(self.control, timeout_s=timeout_s)
        try:
            return client.ask(command)
        finally:
            client.close()

    def status(self) -> wire.Status:
        """The daemon's current status."""
        return self.ask(control.GetStatus()).status

    def settle(self) -> None:
        if self.daemon.popen.poll() is not None:
            self.start_daemon()
        super().settle()

    def problems(self) -> list[str]:
        ended = self.daemon.popen.poll()
        died = [] if ended is None else [f"the daemon ended with exit code {ended}"]
        return died + super().problems()


class CountsRig(DaemonRig):
    """A daemon on a stream of binned counts."""

    def start_sender(self, name: str | None = None, **more: str) -> Sender:
        return super().start_sender(name, **({"kind": "SpikeCounts"} | more))

    def start_daemon(self, *more: str) -> None:
        super().start_daemon("--stream-type", "SpikeCounts", *more)


class LinkRig(Rig):
    """A sender and a daemon on two hosts: two network namespaces with a cable between them."""

    def start(self) -> None:
        self.link = Link()
        self.cuts = self.link.cuts
        self.address = f"ipc:///tmp/{self.stream}"
        super().start()
        self.daemon = self.program(
            "decode", str(self.bundle), "--stream-name", self.stream, "--address", self.address,
            prefix=self.link.inside(self.link.near),
        )  # fmt: skip

    def _sender_runs_in(self) -> dict[str, object]:
        return {"prefix": self.link.inside(self.link.far)}

    def status(self) -> wire.Status:
        """The next published status."""
        feed = StatusSubscriber(self.address)
        try:
            return self.until("a status", lambda: feed.receive(timeout_s=0.5))
        finally:
            feed.close()

    def close(self) -> None:
        super().close()
        if hasattr(self, "link"):
            self.link.close()
        Path(self.address.removeprefix("ipc://")).unlink(missing_ok=True)


class WatchdogRig(DaemonRig):
    """A watchdog between the daemon and the checker."""

    def start(self) -> None:
        self.publishes, self.address = self.address, f"tcp://127.0.0.1:{free_port()}"
        self.watchdog = self.program("watchdog", "--address", self.publishes,
                                     "--publish", self.address)  # fmt: skip
        super().start()

    def start_daemon(self, *more: str) -> None:
        self.daemon = self.program(
            "decode", str(self.bundle), "--stream-name", self.stream, "--address", self.publishes,
            *more,
        )  # fmt: skip

    def problems(self) -> list[str]:
        ended = self.watchdog.popen.poll()
        died = [] if ended is None else [f"the watchdog ended with exit code {ended}"]
        return died + super().problems()


class ServerRig(Rig):
    """`volition serve` and its daemon, with both shipped bundles registered."""

    settings: tuple[tuple[str, str], ...] = ()

    def start(self) -> None:
        self.server = Server(self.bundle, self.folder / "home", self.stream, **dict(self.settings))
        self.address = self.server.address
        super().start()
        self.server.start()
        with self.client() as client:
            self.decoders = [client.status().daemon.decoder, client.add_decoder(str(POYO)).id]
        self.daemon_pid = self.pid()
        self.orders.allowed = {"decoder": [self.decoders[0]], "paused": [None], "gain": [1.0]}

    def client(self) -> ControlClient:
        """A client of the REST API."""
        return self.server.client()

    def pid(self) -> int:
        """The pid of the daemon that answers."""
        with self.client() as client:
            answered = self.until("a daemon", lambda: (s := client.status()).answered and s)
        self.daemon_pid = int(answered.daemon.pid)
        return self.daemon_pid

    def kill_daemon(self) -> float:
        """Kill the daemon; returns the time (LSL clock, s)."""
        os.kill(self.pid(), signal.SIGKILL)
        return local_clock()

    def restart_server(self) -> None:
        """Kill the server and start another one with the same home."""
        self.server.stop(signal.SIGKILL)
        self.server.start()

    def other_decoder(self) -> str:
        """The registered decoder that is not in use."""
        with self.client() as client:
            status = self.until("an answer", lambda: (s := client.status()).answered and s)
        return next(decoder for decoder in self.decoders if decoder != status.daemon.decoder)

    def activate(self, decoder: str) -> Callable[[], object]:
        return lambda: self._with(lambda client: client.activate(decoder))

    def pause(self, why: str) -> Callable[[], object]:
        return lambda: self._with(lambda client: client.pause(why))

    def resume(self) -> Callable[[], object]:
        return lambda: self._with(lambda client: client.resume())

    def set_gain(self, gain: float) -> Callable[[], object]:
        return lambda: self._with(lambda client: client.set_filters(FiltersPatch(gain=gain)))

    def _with(self, call: Callable[[ControlClient], object]) -> object:
        with self.client() as client:
            return call(client)

    def orders_hold(self) -> Seconds:
        """Wait until the accepted orders hold, and check that they still do a second later."""
        start = local_clock()
        lost = ["no answer"]

        def holds() -> bool:
            with contextlib.suppress(VolitionError), self.client() as client:
                status = client.status()
                if not status.answered:
                    return False
                daemon = status.daemon
                does = {"decoder": daemon.decoder, "paused": daemon.paused,
                        "gain": daemon.filters.gain}  # fmt: skip
                lost[:] = self.orders.lost(does)
                return not lost
            return False

        self._wait_for_orders(holds, lost)
        took_s = local_clock() - start
        self.until("a second", lambda: local_clock() > start + took_s + 1.0)
        self._wait_for_orders(holds, lost)
        return {"to order": took_s}

    def _wait_for_orders(self, holds: Callable[[], bool], lost: list[str]) -> None:
        try:
            self.until("accepted orders", holds)
        except AssertionError:
            raise AssertionError(f"an accepted order was lost: {'; '.join(lost)}") from None

    def settle(self) -> None:
        if self.server.process.poll() is not None:
            self.server.start()
        self.orders_hold()
        if self.orders.allowed["paused"] != [None]:
            self.until("a resume", lambda: self.orders.give("paused", None, self.resume()))
        self.pid()
        super().settle()

    def problems(self) -> list[str]:
        ended = self.server.process.poll()
        died = [] if ended is None else [f"the server ended with exit code {ended}"]
        return died + super().problems()

    def close(self) -> None:
        if hasattr(self, "server") and hasattr(self.server, "process"):
            with contextlib.suppress(VolitionError, AssertionError):
                self.pid() if self.server.process.poll() is None else None
            self.server.stop()
            if hasattr(self, "daemon_pid") and _is_daemon(self.daemon_pid):
                os.kill(self.daemon_pid, signal.SIGKILL)
        super().close()


def _is_daemon(pid: int) -> bool:
    try:
        return b"decode" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
