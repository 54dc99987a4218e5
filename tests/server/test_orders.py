"""Orders at moments when they could be lost: a scripted daemon dies, hangs or delays."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from streaming.wire.children import Child, ChildEndedError
from tests.rig import wait_for
from tests.server.orders_rig import RefusedError, Rig, World
from tests.server.scripted import QUICK


def does(rig: Rig, **wanted: object) -> Callable[[], bool]:
    """A check whether the daemon's status has these values."""

    def look() -> bool:
        seen = rig.does()
        return seen is not None and all(seen[name] == value for name, value in wanted.items())

    return look


def is_good(rig: Rig, decoder: str) -> bool:
    """Whether a decoder is the last good one in the journal."""
    journal = sqlite3.connect(rig.folder / "home" / "journal.sqlite")
    try:
        found = journal.execute("SELECT value FROM state WHERE name = 'good'").fetchall()
    finally:
        journal.close()
    return bool(found == [(f'"{decoder}"',)])


def prove(rig: Rig, decoder: str) -> None:
    """Run a decoder until the server trusts it."""
    rig.ask("activate", decoder=decoder)
    wait_for("trust", lambda: is_good(rig, decoder))


def test_a_decoder_activated_while_the_daemon_is_down_is_used_by_the_next_one(
    rig: Rig,
) -> None:
    for turn in range(40):
        decoder = "abc"[(turn + 1) % 3]
        n_births = len(rig.all_births())
        rig.kill_daemon()
        time.sleep(0.0005 * (turn % 10))
        rig.ask("activate", decoder=decoder)
        wait_for("the next daemon", lambda n=n_births: len(rig.all_births()) > n)
        wait_for("an answer", does(rig))
        assert does(rig, decoder=decoder)(), rig.all_births()[-2:]


def test_a_new_server_restores_the_orders_of_the_last_one(rig: Rig) -> None:
    rig.ask("filters", gain=0.5)
    rig.kill_daemon(signal.SIGSTOP)  # it misses the next order but is there for the next server
    with pytest.raises(RefusedError):
        rig.ask("pause", why="fire")
    pid = rig.daemon_pid()
    rig.kill_server()
    rig.kill_daemon(signal.SIGCONT)
    rig.start_server()
    wait_for("the pause", does(rig, paused="fire", gain=0.5))
    assert rig.daemon_pid() == pid or rig.all_births()[-1]["paused"] == "fire"


@pytest.mark.parametrize("damage", ["manifest", "folder", "nested"])
def test_an_unreadable_active_decoder_is_replaced_by_the_last_good_one(
    rig: Rig, damage: str
) -> None:
    prove(rig, "a")
    rig.ask("activate", decoder="b")
    bundle = rig.folder / "home" / "decoders" / "b.bundle"
    (bundle / "manifest.json").unlink()  # a hard link to a file that other tests use
    if damage == "folder":
        bundle.rename(bundle.with_name("elsewhere"))
    elif damage == "nested":
        (bundle / "manifest.json").write_text("[" * 100_000)
    rig.kill_daemon()
    wait_for("the last good decoder", does(rig, decoder="a"))


@pytest.mark.long
def test_a_hanging_decoder_is_replaced_by_the_last_good_one(rig: Rig) -> None:
    prove(rig, "a")
    rig.ask("activate", decoder="b")
    hung = set()

    def is_left() -> bool:
        birth = rig.all_births()[-1]
        seen = rig.does() if birth["pid"] not in hung else None
        if seen is None or seen["decoder"] == "a":
            return seen is not None
        hung.add(seen["pid"])
        os.kill(seen["pid"], signal.SIGSTOP)
        return False

    wait_for("the last good decoder", is_left)
    assert len(hung) <= 3


def test_a_good_decoder_is_kept_when_its_daemon_is_killed_repeatedly(rig: Rig) -> None:
    """The decoder is not the cause, and another one would mean a lost order."""
    prove(rig, "a")
    prove(rig, "b")
    for _ in range(4):
        rig.kill_daemon()
        wait_for("the next daemon", lambda: rig.does() is not None)
    assert does(rig, decoder="b")()


def test_a_decoder_that_has_not_decoded_is_not_trusted(rig: Rig) -> None:
    """It may hang at the first spike, so it must not become the last good one."""
    prove(rig, "a")
    rig.ask("pause", why="between blocks")
    rig.ask("activate", decoder="b")
    enough = time.monotonic() + 5 * QUICK.good_after_s
    wait_for("the time that trust takes", lambda: time.monotonic() > enough and does(rig)())
    assert is_good(rig, "a")
    rig.ask("resume")
    wait_for("trust", lambda: is_good(rig, "b"))


def test_a_rollback_kills_a_hanging_daemon(rig: Rig) -> None:
    rig.ask("activate", decoder="b")
    rig.kill_daemon(signal.SIGSTOP)
    rig.ask("rollback")
    wait_for("the previous decoder", does(rig, decoder="a"))


def test_a_pause_does_not_wait_for_the_disk(rig: Rig) -> None:
    journal = sqlite3.connect(rig.folder / "home" / "journal.sqlite")
    journal.execute("BEGIN IMMEDIATE")  # blocks other writers until the server gives up
    began = time.monotonic()
    rig.send("pause", why="fire")
    wait_for("the pause", does(rig, paused="fire"))
    paused_s = time.monotonic() - began
    with pytest.raises(RefusedError, match="can't be written"):
        rig.answer()
    assert paused_s < (time.monotonic() - began) / 4
    journal.rollback()
    journal.close()


def test_a_pause_does_not_wait_for_other_orders(rig: Rig) -> None:
    rig.script.set(before_ms=60)
    others = [rig.connect() for _ in range(6)]
    for number, other in enumerate(others):
        rig.send("filters", other, gain=1.0 + number)
    began = time.monotonic()
    rig.ask("pause", why="fire")
    took_s = time.monotonic() - began
    for other in others:
        with suppress(RefusedError):  # it timed out
            rig.answer(other)
    assert took_s < (time.monotonic() - began) / 2
    assert does(rig, paused="fire")()


def test_a_server_stopped_while_loading_a_decoder_ends_with_its_daemon(
    world: World,
) -> None:
    for after_ms in (0, 5, 30):
        rig = Rig(world)
        rig.start_server(keep_daemon=False)
        rig.become_quiet()
        rig.script.set(load_ms=1e6)
        other = rig.connect()
        rig.send("activate", decoder="b")
        time.sleep(after_ms / 1e3)
        rig.send("stop", other)
        rig.answer(other)
        pid = rig.daemon_pid()
        wait_for("the daemon's end", lambda p=pid: not Path(f"/proc/{p}").exists())
        assert "Traceback" not in rig.log("server"), rig.log("server")
        assert "Assertion" not in rig.log("server"), rig.log("server")
        rig.end()


def calibration_in(rig: Rig, identity: str, *states: str) -> Callable[[], bool]:
    return lambda: rig.ask("calibration", identity=identity)["state"] in states


def test_an_undecided_calibration_is_left_to_the_operator(rig: Rig) -> None:
    (rig.folder / "alike").touch()
    identity = rig.ask("calibrate")
    wait_for("its end", calibration_in(rig, identity, "undecided"))
    found = rig.ask("calibration", identity=identity)
    assert "too few to tell" in found["verdict"]
    assert does(rig, decoder="a")()
    rig.ask("activate", decoder=found["candidate"])
    wait_for("the candidate", does(rig, decoder=found["candidate"]))


def test_a_shadow_can_decide_an_undecided_calibration(rig: Rig) -> None:
    (rig.folder / "alike").touch()
    rig.ask("input", name="left")  # a shadow needs a stream
    identity = rig.ask("calibrate", shadow=True, shadow_s=5.0)
    wait_for("its end", calibration_in(rig, identity, "promoted"))
    candidate = rig.ask("calibration", identity=identity)["candidate"]
    wait_for("the candidate", does(rig, decoder=candidate))


@pytest.mark.parametrize("how", ["cancel", "delete"])
def test_a_calibration_that_is_being_promoted_can_not_be_cancelled(rig: Rig, how: str) -> None:
    rig.script.set(before_ms=400)  # the candidate is loaded already, so only the swap takes time
    identity = rig.ask("calibrate")
    wait_for("the promotion", calibration_in(rig, identity, "promoting"))
    time.sleep(0.1)  # until it is decided
    with pytest.raises(RefusedError, match="too late to cancel"):
        rig.ask(how, identity=identity)
    rig.script.set()
    wait_for("its end", calibration_in(rig, identity, "promoted"))


def what_became_of(rig: Rig, identity: str) -> str:
    """The state of a calibration; `discarded` if it had ended before it was deleted."""
    try:
        return str(rig.ask("calibration", identity=identity)["state"])
    except RefusedError as error:
        if "no calibration" not in str(error):
            raise
        return "discarded"


@pytest.mark.parametrize("how", ["cancel", "delete"])
def test_a_cancelled_calibration_is_never_promoted(rig: Rig, how: str) -> None:
    outcomes = set()
    for turn in range(8):
        identity = rig.ask("calibrate")
        time.sleep(0.012 * turn)
        try:
            rig.ask(how, identity=identity)
            outcomes.add("cancelled")
            assert what_became_of(rig, identity) in ("cancelled", "discarded")
        except RefusedError:
            outcomes.add("too late")
            wait_for("its end", calibration_in(rig, identity, "promoted", "failed"))
    assert "cancelled" in outcomes


def test_a_server_that_dies_during_a_promotion_knows_its_outcome_after_a_restart(rig: Rig) -> None:
    rig.script.set(after_ms=100)
    identity = rig.ask("calibrate")
    wait_for("the promotion", calibration_in(rig, identity, "promoting"))
    time.sleep(0.1)  # until it is decided
    rig.kill_server()
    rig.start_server()
    found = rig.ask("calibration", identity=identity)
    wait_for("a daemon", does(rig))
    if found["state"] == "promoted":
        wait_for("the candidate", does(rig, decoder=found["candidate"]))
    else:
        assert found["state"] == "interrupted"
        assert does(rig, decoder="a")()


@pytest.mark.parametrize(
    "module",
    ["training.calibration.worker", "server.calibration.collect", "server.calibration.shadow"],
)
def test_a_hanging_child_process_is_killed_and_its_calibration_fails(rig: Rig, module: str) -> None:
    rig.ask("input", name="left")  # a shadow needs a stream
    with_shadow = {"shadow": True, "shadow_s": 5.0} if module == "server.calibration.shadow" else {}
    hangs = rig.folder / f"{module} hangs"
    hangs.touch()
    identity = rig.ask("calibrate", allowed_s=0.5, **with_shadow)
    wait_for("its end", calibration_in(rig, identity, "failed"))
    assert "was silent for" in rig.ask("calibration", identity=identity)["problem"]
    hangs.unlink()
    identity = rig.ask("calibrate", **with_shadow)
    wait_for("the next one's end", calibration_in(rig, identity, "promoted"))


class Stopped(Child):
    """A child that is stopped, as by a debugger."""

    def _command(self, module: str, *arguments: str) -> list[str]:
        code = "import os, signal; print('{}', flush=True); os.kill(os.getpid(), signal.SIGSTOP)"
        return [sys.executable, "-c", code]


def test_a_silent_child_process_is_killed(tmp_path: Path) -> None:
    child = Stopped("nobody", log=tmp_path / "log")
    with pytest.raises(ChildEndedError, match="was silent for"):
        list(child.messages(silent_s=1.0))
    child.stop()
    assert not Path(f"/proc/{child._process.pid}").exists()


class Starved(Child):
    """A child with 0.4 s of work on a core that three other processes keep busy."""

    def _command(self, module: str, *arguments: str) -> list[str]:
        work = "import time\nwhile time.process_time() < 0.4: pass"
        alone = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
        busy = f"import subprocess, sys; {alone}\n" + (
            "others = [subprocess.Popen([sys.executable, '-c', 'while True: pass'])"
            " for _ in range(3)]\n"
        )
        end = "for other in others: other.kill()\nprint('{\"done\": 1}', flush=True)"
        return [sys.executable, "-c", f"{busy}os.nice(5)\n{work}\n{end}"]


@pytest.mark.timing
@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux reports how long a process has waited"
)
def test_a_starved_child_process_does_not_count_as_hung(tmp_path: Path) -> None:
    child = Starved("nobody", log=tmp_path / "log")
    began = time.monotonic()
    assert list(child.messages(silent_s=1.0)) == [{"done": 1}]
    assert time.monotonic() - began > 1.0, "it was not starved"
    child.stop()
