"""Whichever process dies: the next daemon does what was confirmed to the caller.

A random state machine gives orders to the real supervisor, journal and registry, whose daemon is a
small process that can be made to die, hang or delay. It kills either side before, during and after
the orders. The state in which each daemon starts, and its state once all is quiet, are compared
with the answers.

    python -m tests.server.test_model STEPS [SEED]    run steps, and print how they were spent
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.server.orders_rig import (
    CANDIDATES,
    DECODERS,
    QUIET_S,
    SPENT,
    GoneError,
    RefusedError,
    Rig,
    World,
    a_world,
    kill,
)

STEPS_PER_RUN = 50
EACH_TIME = 500  # steps between lines of progress
FAULTS = (
    *("none",) * 20, *("kill daemon",) * 10, *("kill daemon before",) * 10, *("kill server",) * 10,
    *("die before",) * 10, *("die after",) * 10, *("delay",) * 10, "stop daemon",
)  # fmt: skip
ANY_FAULT: dict[str, Any] = {
    "fault": st.sampled_from(FAULTS),
    "delay_ms": st.floats(0, 12),
    "quiet": st.sampled_from((True, True, False)),
}


def after(decoder: str) -> set[tuple[str, str | None]]:
    """An active decoder, with any previous one: there may have been a fallback in between."""
    return {(decoder, other) for other in (*DECODERS, *CANDIDATES, None) if other != decoder}


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
    ("n_machines", "steps"), [(2, 100), pytest.param(5, 300, marks=pytest.mark.slow)]
)
@pytest.mark.timeout(1800)
@pytest.mark.long
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
