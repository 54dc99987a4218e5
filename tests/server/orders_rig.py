"""A server and its scripted daemons, with the states that the answers to orders allow."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from clients.harness.daemon import BUNDLES, free_port
from decoder.bundles import bundle
from decoder.bundles.bundle import open_bundle
from decoder.bundles.families import RidgeSizes, RidgeTables
from streaming.wire.control import ControlClient, GetStatus, NoAnswerError
from tests.server.scripted import PATIENCE, fork, forking
from tests.server.scripted_daemon import Script
from training.baselines.linear import ridge_graph

QUIET_S = 90.0 * PATIENCE  # limit until the daemon does what was confirmed; a busy machine is slow
BASE = BUNDLES / "possm.bundle"  # the base of the scripted calibrations
DECODERS = ("a", "b", "c")
CANDIDATES = ("d", "e")
SPENT: Counter[str] = Counter()


BASE_ID = open_bundle(BASE).manifest.decoder_id


def tiny_bundle(path: Path, decoder: str, *, base: str | None = BASE_ID) -> None:
    """Write a decoder of two units."""
    path.parent.mkdir(parents=True, exist_ok=True)
    manifest = bundle.Manifest(
        decoder_id=decoder,
        family="ridge",
        preset="50 ms",
        sizes=RidgeSizes(bin_s=0.05, n_lags=10, dim_out=2),
        outputs=tuple(
            bundle.Output(name=name, unit="m/s", scale=1.0, offset=0.0)
            for name in ("vel_x", "vel_y")
        ),
        session_id="session",
        unit_ids=("1", "2"),
        provenance={} if base is None else {"base": base},
        metrics={},
        checksums={},
    )
    graph = path.with_name("graph.onnx")
    onnx.save(ridge_graph(), str(graph))
    tables = RidgeTables(tokens=np.zeros((2, 10, 2), dtype=np.float32))
    bundle.write(path, manifest=manifest, graph=graph, tables=tables, weights={"w": np.zeros(1)})
    graph.unlink()


class World:
    """The process that forks, and the bundles; both are made once."""

    def __init__(self, folder: Path, forks: Path) -> None:
        self.folder, self.forks = folder, forks
        for place, decoders in (("bundles", DECODERS), ("candidates", CANDIDATES)):
            (folder / place).mkdir()
            for decoder in decoders:
                tiny_bundle(folder / place / f"{decoder}.bundle", decoder)
        shutil.copytree(BASE, folder / "bundles" / BASE.name)

    def home(self) -> Path:
        home = Path(tempfile.mkdtemp(prefix="run-", dir=self.folder))
        for place, copy in (("bundles", "bundles"), ("bundles", "home/decoders"),
                            ("candidates", "candidates")):  # fmt: skip
            shutil.copytree(self.folder / place, home / copy, copy_function=os.link)
        return home


@contextmanager
def a_world() -> Iterator[World]:
    memory = Path("/dev/shm")  # a disk would be the slowest part
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder,
        forking(Path(folder)) as forks,
    ):
        yield World(Path(folder), forks)


class RefusedError(Exception):
    """The server answered with a problem."""


class GoneError(Exception):
    """The server died before it answered."""


class Rig:
    """One server with its daemons, and the states that the answers allow."""

    def __init__(self, world: World) -> None:
        self.world, self.folder = world, world.home()
        self.port = free_port()
        self.script = Script(self.folder / "script")
        self.server_pid: int | None = None
        self.connection: Connection | None = None
        self.daemon = ControlClient(f"tcp://127.0.0.1:{self.port}", timeout_s=1.0 * PATIENCE)
        # Allowed values: one each, or several after an order without an answer.
        self.decoders: set[tuple[str, str | None]] = {("a", None)}
        self.paused: set[str | None] = {None}
        self.gain: set[float] = {1.0}
        self.input: set[str | None] = {None}
        self.births = 0
        self.due: dict[str, set[Any]] = {}  # values that must hold once all is quiet
        self.starts = self.seen = self.deaths = 0
        self.fell_back: list[tuple[str, str]] = []  # since the start of the last order: to, from

    # Both sides.

    def start_server(self, *, keep_daemon: bool = True) -> None:
        self.starts += 1
        address = self.folder / f"server-{self.starts}"
        self.server_pid = fork(
            self.world.forks,
            {
                "what": "server", "folder": str(self.folder), "port": self.port,
                "address": str(address), "keep_daemon": keep_daemon,
            },
        )  # fmt: skip
        self.connection = self.connect()

    def connect(self) -> Connection:
        address = str(self.folder / f"server-{self.starts}")
        deadline = time.monotonic() + QUIET_S
        while True:
            try:
                return Client(address, family="AF_UNIX")
            except (FileNotFoundError, ConnectionRefusedError):
                assert time.monotonic() < deadline, self.log("server")
                time.sleep(0.001)

    def kill_server(self) -> None:
        if self.server_pid is not None:
            kill(self.server_pid)
            wait_until_gone(self.server_pid)
        if self.connection is not None:
            self.connection.close()
        self.server_pid = self.connection = None

    def daemon_pid(self) -> int | None:
        births = self.all_births()
        return int(births[-1]["pid"]) if births else None

    def kill_daemon(self, number: int = signal.SIGKILL) -> None:
        if (pid := self.daemon_pid()) is not None:
            kill(pid, number)

    def log(self, what: str) -> str:
        path = self.folder / f"{what}.log"
        return path.read_text()[-6000:] if path.exists() else ""

    # Orders.

    def send(self, name: str, connection: Connection | None = None, /, **values: Any) -> None:
        connection = connection or self.connection
        assert connection is not None
        try:
            connection.send_bytes(json.dumps([name, values]).encode())
        except OSError:
            raise GoneError from None

    def answer(self, connection: Connection | None = None) -> Any:
        connection = connection or self.connection
        assert connection is not None
        try:
            answered = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            raise GoneError from None
        assert "fault" not in answered, answered["fault"]
        if "problem" in answered:
            raise RefusedError(answered["problem"])
        return answered["done"]

    def ask(self, name: str, /, **values: Any) -> Any:
        self.send(name, **values)
        return self.answer()

    # What the daemon does.

    def all_births(self) -> list[dict[str, Any]]:
        path, births = self.folder / "births", []
        for line in path.read_text().splitlines() if path.exists() else []:
            with suppress(
                json.JSONDecodeError
            ):  # a partial line: its daemon is writing it, or has died
                births.append(json.loads(line))
        return births

    def is_allowed(self, does: dict[str, Any], *fields: str) -> bool:
        return all(
            does["decoder"] in {active for active, _ in self.decoders}
            if field == "decoders"
            else does[field] in getattr(self, field)
            for field in fields or ("decoders", "paused", "gain", "input")
        )

    def allowed(self) -> str:
        return f"{self.decoders=} {self.paused=} {self.gain=} {self.input=}"

    def check_births(self) -> None:
        """Check that every daemon since the last call has started in an allowed state."""
        births = self.all_births()
        for birth in births[self.births :]:
            self.take_fallbacks()
            assert self.is_allowed(birth), (birth, self.allowed(), self.log("server"))
        self.births = len(births)

    def take_fallbacks(self) -> None:
        """After two early deaths the last good decoder is allowed, which is not a lost order."""
        if self.server_pid is None:
            return
        for change in self.ask("changes", after=self.seen):
            self.seen = change["number"]
            if change["what"] in ("daemon died", "not started"):
                self.deaths += 1
            elif change["what"] == "fell back":
                assert self.deaths >= 2, change
                self.fell_back.append((change["detail"]["decoder"], change["detail"]["before"]))
                self.allow(self.decoders)
                SPENT["fell back"] += 1

    def allow(self, decoders: set[tuple[str, str | None]]) -> None:
        """Allow these decoders, and those that the server fell back to from one of them."""
        self.decoders = set(decoders)
        for pair in self.fell_back:
            if pair[1] in {active for active, _ in self.decoders}:
                self.decoders.add(pair)

    def does(self) -> dict[str, Any] | None:
        try:
            pid = self.daemon_pid()
            lives = Path(f"/proc/{pid}/stat").exists
            status = self.daemon.ask(GetStatus(), while_it_lives=lives).status
        except NoAnswerError:
            return None
        return {
            "decoder": status.decoder, "paused": status.paused, "gain": status.filters.gain,
            "input": status.input_name, "excluded": status.excluded_mark, "pid": status.pid,
        }  # fmt: skip

    def become_quiet(self) -> None:
        """Wait until the daemon is in an allowed state, and allow only that state from then on."""
        if self.server_pid is None:
            return
        deadline = time.monotonic() + QUIET_S
        while True:
            does = self.does()
            if does is not None and all(does[field] in due for field, due in self.due.items()):
                self.take_fallbacks()
                if self.is_allowed(does) and self.is_settled(does):
                    break
            changes = time.monotonic() > deadline and self.ask("changes", after=0)[-12:]
            assert not changes, (does, self.allowed(), changes, self.log("server"))
            time.sleep(0.004)
        self.check_births()
        self.due.clear()
        wanted = self.ask("wanted")
        pairs = {p for p in self.decoders if p == (wanted["active"], wanted["previous"])}
        assert pairs, (wanted, self.allowed(), self.ask("changes", after=0)[-8:])
        self.decoders = pairs
        self.paused, self.gain, self.input = {does["paused"]}, {does["gain"]}, {does["input"]}

    def is_settled(self, does: dict[str, Any]) -> bool:
        """Whether the server wants this state, so that it stays."""
        return bool(self.ask("wanted")["does"] == does)

    def end(self) -> None:
        self.kill_server()
        for birth in self.all_births():
            kill(birth["pid"])
        self.daemon.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def wait_until_gone(pid: int) -> None:
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.0005)
