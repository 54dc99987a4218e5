"""Whichever process dies: the next daemon does what was confirmed to the caller.

A random state machine gives orders to the real supervisor, journal and registry, whose daemon is a
small process that can be made to die, hang or delay. It kills either side before, during and after
the orders. The state in which each daemon starts, and its state once all is quiet, are compared
with the answers.

    python -m tests.server.test_model STEPS [SEED]    run steps, and print how they were spent
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from clients.harness.daemon import BUNDLES, free_port
from decoder.bundles import bundle
from decoder.bundles.bundle import open_bundle
from decoder.bundles.families import RidgeSizes, RidgeTables
from streaming.wire.control import ControlClient, GetStatus, NoAnswerError
from tests.server.scripted import PATIENCE, Script, fork, forking
from training.baselines.linear import ridge_graph

STEPS_PER_RUN = 50
EACH_TIME = 500  # steps between lines of progress
QUIET_S = 90.0 * PATIENCE  # limit until the daemon does what was confirmed; a busy machine is slow
BASE = BUNDLES / "possm.bundle"  # the base of the scripted calibrations
DECODERS = ("a", "b", "c")
CANDIDATES = ("d", "e")
SPENT: Counter[str] = Counter()
FAULTS = (
    *("none",) * 20, *("kill daemon",) * 10, *("kill daemon before",) * 10, *("kill server",) * 10,
    *("die before",) * 10, *("die after",) * 10, *("delay",) * 10, "stop daemon",
)  # fmt: skip
ANY_FAULT: dict[str, Any] = {
    "fault": st.sampled_from(FAULTS),
    "delay_ms": st.floats(0, 12),
    "quiet": st.sampled_from((True, True, False)),
}


def tiny_bundle(path: Path, decoder: str) -> None:
    """Write a decoder of two units."""
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
        provenance={"base": open_bundle(BASE).manifest.decoder_id},
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
        """After two early deaths the last good decoder is allowed, which is no lost order."""
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
            "input": status.input_name, "pid": status.pid,
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


def after(decoder: str) -> set[tuple[str, str | None]]:
    """An active decoder, with any previous one: there may have been a fallback in between."""
    return {(decoder, other) for other in (*DECODERS, *CANDIDATES, None) if other != decoder}


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def wait_until_gone(pid: int) -> None:
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.0005)


class Machine(RuleBasedStateMachine):
    """Orders, deaths, delays and restarts in random sequence."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(self.world)
        self.rig.start_server()
        self.rig.become_quiet()

    def teardown(self) -> None:
        kind, _, _ = sys.exc_info()
        if kind is not None and issubclass(kind, AssertionError | OSError | GoneError):
            traceback.print_exc()  # hypothesis tries again, and may not reproduce it
        self.rig.end()

    def order(
        self, name: str, fault: str, delay_ms: float, quiet: bool, /,
        *, then: dict[str, Any], holds_if_refused: bool = False, **values: Any,
    ) -> None:  # fmt: skip
        """Give an order while something dies. then: the values allowed once it is confirmed."""
        rig = self.rig
        self.begin(name, fault)
        before = {field: getattr(rig, field) for field in then}
        for field, allowed in then.items():
            setattr(rig, field, before[field] | allowed)
        if fault == "kill daemon before":
            rig.kill_daemon()
        elif fault == "stop daemon":
            rig.kill_daemon(signal.SIGSTOP)
        elif fault in ("die before", "die after"):
            rig.script.set(die=1 if fault == "die before" else 2)
        elif fault == "delay":
            rig.script.set(before_ms=delay_ms, after_ms=delay_ms, load_ms=3 * delay_ms)
        rig.send(name, **values)
        if fault in ("kill daemon", "kill server"):
            time.sleep(delay_ms / 1e3)
            if fault == "kill daemon":
                rig.kill_daemon()
            elif rig.server_pid is not None:
                kill(rig.server_pid)
        try:
            rig.answer()
            outcome = "answered"
        except RefusedError as refused:
            outcome = "refused"
            SPENT[f"refused: {str(refused)[:60]}"] += 1
        except GoneError:
            outcome = "server died"
        if fault == "kill server":
            rig.kill_server()
            rig.start_server()
        self.end(outcome, before, then, holds_if_refused=holds_if_refused)
        rig.script.set()
        if outcome == "answered" and fault == "none":
            does = rig.does()
            rig.take_fallbacks()
            held = [rig.is_allowed(does, field) for field in then] if does is not None else []
            assert all(held), (name, does, rig.allowed(), rig.log("server"))
        if quiet:
            rig.become_quiet()

    def begin(self, name: str, fault: str) -> None:
        SPENT["steps"] += 1
        SPENT[name] += 1
        SPENT[f"fault: {fault}"] += 1
        self.rig.fell_back.clear()
        if self.rig.server_pid is None:
            self.rig.start_server()

    def end(
        self, outcome: str, before: dict[str, Any], then: dict[str, Any], *, holds_if_refused: bool
    ) -> None:
        """Set the allowed values after an order; daemons started during it may have had either."""
        rig = self.rig
        SPENT[outcome] += 1
        rig.check_births()
        if outcome == "server died":
            rig.due.clear()
            return
        if outcome == "refused" and holds_if_refused:  # it holds for a daemon that is starting, too
            rig.due |= then
            return
        for field, allowed in (then if outcome == "answered" else before).items():
            if field == "decoders":
                rig.allow(allowed)
            else:
                setattr(rig, field, allowed)
            rig.due.pop(field, None)

    @rule(decoder=st.sampled_from((*DECODERS, "nobody")), **ANY_FAULT)
    def activate(self, decoder: str, fault: str, delay_ms: float, quiet: bool) -> None:
        then = {"decoders": after(decoder) if decoder in DECODERS else set()}
        self.order("activate", fault, delay_ms, quiet, then=then, decoder=decoder)
        assert self.rig.decoders, "a decoder that is not registered was activated"

    @rule(**ANY_FAULT)
    def rollback(self, fault: str, delay_ms: float, quiet: bool) -> None:
        then = {(before, active) for active, before in self.rig.decoders if before is not None}
        if not then:
            then = self.rig.decoders
        self.order("rollback", fault, delay_ms, quiet, then={"decoders": then})

    @rule(why=st.sampled_from(("lunch", "fire")), **ANY_FAULT)
    def pause(self, why: str, fault: str, delay_ms: float, quiet: bool) -> None:
        then = {"paused": {why}}
        self.order("pause", fault, delay_ms, quiet, then=then, why=why, holds_if_refused=True)

    @rule(**ANY_FAULT)
    def resume(self, fault: str, delay_ms: float, quiet: bool) -> None:
        self.order("resume", fault, delay_ms, quiet, then={"paused": {None}})

    @rule(**ANY_FAULT)
    def arm(self, fault: str, delay_ms: float, quiet: bool) -> None:
        self.order("arm", fault, delay_ms, quiet, then={"paused": {None}})

    @rule(gain=st.sampled_from((0.5, 1.0, 2.0)), **ANY_FAULT)
    def filters(self, gain: float, fault: str, delay_ms: float, quiet: bool) -> None:
        self.order("filters", fault, delay_ms, quiet, then={"gain": {gain}}, gain=gain)

    @rule(name=st.sampled_from(("left", "right")), **ANY_FAULT)
    def input(self, name: str, fault: str, delay_ms: float, quiet: bool) -> None:
        self.order("input", fault, delay_ms, quiet, then={"input": {name}}, name=name)

    @rule(
        ending=st.sampled_from(("wait", "wait", "cancel", "delete")),
        fault=st.sampled_from(("none",) * 3 + ("kill daemon",) * 2 + ("kill server",) * 2),
        delay_ms=st.floats(0, 120),
    )
    def calibrate(self, ending: str, fault: str, delay_ms: float) -> None:
        rig = self.rig
        self.begin(f"calibrate, {ending}", fault)
        before = {"decoders": rig.decoders}
        promoted = {pair for made in CANDIDATES for pair in after(made)}
        rig.decoders = rig.decoders | promoted
        identity = rig.ask("calibrate")
        time.sleep(delay_ms / 1e3)
        if fault == "kill daemon":
            rig.kill_daemon()
        elif fault == "kill server":
            rig.kill_server()
            rig.start_server()
        cancelled = False
        if ending != "wait":
            try:
                rig.ask(ending, identity=identity)
                cancelled = True
            except RefusedError as refused:
                SPENT[f"refused: {str(refused)[:8]} {str(refused)[-40:]}"] += 1
        ended = self.ended(identity)
        if ended["state"] == "cancelled":
            rig.check_births()
            rig.allow(before["decoders"] | (rig.decoders - promoted))
        elif ended["state"] == "promoted":
            rig.check_births()
            assert not cancelled
            rig.allow({pair for pair in promoted if pair[0] == ended["candidate"]})
        elif ended["state"] in ("failed", "rejected", "ready"):
            rig.check_births()
            rig.allow(before["decoders"] | (rig.decoders - promoted))
        SPENT[f"calibration {ended['state']}"] += 1
        rig.become_quiet()

    def ended(self, identity: str) -> dict[str, Any]:
        """A calibration once it has ended; `discarded` if it had ended before it was deleted."""
        deadline = time.monotonic() + QUIET_S
        while True:
            try:
                calibration: dict[str, Any] = self.rig.ask("calibration", identity=identity)
            except RefusedError:
                return {"state": "discarded"}
            if calibration["state"] not in ("collecting", "training", "shadowing", "promoting"):
                return calibration
            assert time.monotonic() < deadline, (calibration, self.rig.log("server"))
            time.sleep(0.003)

    @rule(why=st.sampled_from(("lunch", "fire")), decoder=st.sampled_from(DECODERS))
    def pause_while_a_decoder_is_loaded(self, why: str, decoder: str) -> None:
        rig = self.rig
        self.begin("pause while loading", "none")
        rig.become_quiet()
        before = {"decoders": rig.decoders, "paused": rig.paused}
        rig.decoders, rig.paused = rig.decoders | after(decoder), rig.paused | {why}
        rig.script.set(load_ms=25)
        rig.send("activate", decoder=decoder)
        other = rig.connect()
        try:
            rig.send("pause", other, why=why)
            rig.answer(other)
            does = rig.does()
            assert does is None or does["paused"] == why  # while the decoder is still loading
            rig.answer()
            outcome = "answered"
        except RefusedError:  # on a slow machine the daemon counted as hung
            outcome = "refused"
        finally:
            other.close()
            rig.script.set()
        then = {"decoders": after(decoder), "paused": {why}}
        if outcome == "refused":
            then = {"decoders": rig.decoders, "paused": {why} | before["paused"]}
        self.end("answered", before, then, holds_if_refused=False)
        rig.become_quiet()

    @rule(number=st.sampled_from((signal.SIGKILL,) * 20 + (signal.SIGSTOP,)), quiet=st.booleans())
    def daemon_dies(self, number: int, quiet: bool) -> None:
        self.begin("daemon dies", "none")
        self.rig.kill_daemon(number)
        if quiet:
            self.rig.become_quiet()

    @rule(both=st.booleans(), delay_ms=st.sampled_from((0.0, 0.0, 5.0)))
    def server_dies(self, both: bool, delay_ms: float) -> None:
        self.begin("server dies", "none")
        self.rig.kill_server()
        if both:
            self.rig.kill_daemon()
        time.sleep(delay_ms / 1e3)
        self.rig.start_server()
        self.rig.become_quiet()

    @rule(keep=st.booleans())
    def server_stops(self, keep: bool) -> None:
        """Stop it as by Ctrl-C, with or without its daemon."""
        rig = self.rig
        self.begin("server stops", "none")
        rig.ask("stop")
        rig.kill_server()
        rig.start_server(keep_daemon=keep)
        rig.become_quiet()


def run(world: World, steps: int, *, seed: int | None) -> None:
    """Run `steps` steps; each run of them has its own server and home."""

    class Here(Machine):
        pass

    Here.world = world
    SPENT.clear()
    runs = -(-steps // STEPS_PER_RUN)
    machine = Here if seed is None else hypothesis.seed(seed)(Here)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=runs,
            stateful_step_count=STEPS_PER_RUN,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        ),
    )


@pytest.mark.parametrize(
    ("n_machines", "steps"), [(2, 200), pytest.param(5, 1000, marks=pytest.mark.slow)]
)
@pytest.mark.timeout(1800)
def test_the_next_daemon_does_what_was_confirmed(
    tmp_path: Path, n_machines: int, steps: int
) -> None:
    """Run several machines at once, because each mostly waits. steps: of each machine."""
    logs = [tmp_path / f"{seed}.log" for seed in range(n_machines)]
    with ExitStack() as running:
        machines = []
        for seed, log in enumerate(logs, start=steps):
            arguments = str(steps), str(seed)
            command = [sys.executable, "-m", "tests.server.test_model", *arguments]
            with log.open("w") as output:
                machine = subprocess.Popen(command, stdout=output, stderr=output)
            running.callback(machine.wait)
            running.callback(machine.kill)
            machines.append(machine)
        for machine, log in zip(machines, logs, strict=True):
            assert machine.wait() == 0, log.read_text()[-20_000:]
    spent = sum((Counter(json.loads(log.read_text().splitlines()[-1])) for log in logs), Counter())
    print(dict(sorted(spent.items())))
    assert spent["steps"] >= n_machines * steps


def main(steps: int, seed: int | None = None) -> None:
    """Run steps and print how they were spent. seed: None for a random one."""
    done: Counter[str] = Counter()
    began = time.monotonic()
    with a_world() as world:
        while done["steps"] < steps:
            run(
                world,
                min(EACH_TIME, steps - done["steps"]),
                seed=None if seed is None else seed + done["steps"],
            )
            done.update(SPENT)
            print(f"{done['steps']} steps in {time.monotonic() - began:.0f} s", file=sys.stderr)
    print(json.dumps(dict(sorted(done.items()))))


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
