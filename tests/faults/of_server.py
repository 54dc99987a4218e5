"""Faults of the server: it dies at random moments, and its files are damaged or its disk full."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Callable

from pylsl import local_clock

from server.schemas import RUNNING, Calibration, CalibrationRequest
from tests.faults.fault import Fault, Seconds
from tests.faults.network import no_root, small_disk
from tests.faults.rig import ServerRig

ACCEPTED = "frames go on; every confirmed order holds once the server is back"


def _killed_during(subject: str, within_s: float) -> Callable[[ServerRig], Seconds]:
    """Kill the server at a random moment within `within_s` of an order."""

    def attempt(rig: ServerRig) -> Seconds:
        value, call = _order(rig, subject)
        rig.moment()
        start = local_clock()
        order = rig.orders.later(subject, value, call)
        rig.moment(within_s)
        rig.server.stop(signal.SIGKILL)
        order.join()
        rig.moment()
        rig.server.start()
        seconds = {"to answer": local_clock() - start} | rig.orders_hold()
        runs = {frame.started for frame in rig.checker.since(start)}
        assert len(runs) == 1, f"frames of {len(runs)} daemons, expected only the old one"
        return seconds

    return attempt


def _order(rig: ServerRig, subject: str) -> tuple[object, Callable[[], object]]:
    if subject == "decoder":
        decoder = rig.other_decoder()
        return decoder, rig.activate(decoder)
    if subject == "paused":
        return "stop", rig.pause("stop")
    gain = round(rig.rng.uniform(0.5, 1.5), 3)
    return gain, rig.set_gain(gain)


class CalibrationRig(ServerRig):
    """A server with collected data, on which further calibrations train."""

    def start(self) -> None:
        super().start()
        self.until_valid()
        with self.client() as client:
            first = client.start_calibration(self.request(seconds=20.0, promote="never"))
            ended = list(client.follow(first.id))[-1]
            assert ended.state not in ("failed", *RUNNING), ended
        self.data = first.id

    def request(self, **given: object) -> CalibrationRequest:
        """A request for ridge regression: it trains in a second and beats the shipped decoder."""
        values = {"method": "ridge", "kinematics": f"{self.stream}-kinematics", **given}
        return CalibrationRequest(**values)


def killed_while_promoting(rig: CalibrationRig) -> Seconds:
    """The calibration's state in the journal must match the daemon's decoder."""
    before = rig.orders.allowed["decoder"][-1]
    with rig.client() as client:
        begun = client.start_calibration(rig.request(data=rig.data, promote="auto"))
    rig.moment(4.0)
    seen = _calibration(rig, begun.id)
    rig.restart_server()
    found = rig.until("the calibration", lambda: _settled(rig, begun.id))
    if seen.state not in RUNNING:
        assert found.state == seen.state, f"{seen.state} before, {found.state} after"
    doubt = [before, found.candidate] if found.state == "interrupted" else [before]
    rig.orders.allowed["decoder"] = [found.candidate] if found.state == "promoted" else doubt
    if found.candidate:
        rig.windows[found.candidate] = 0.5
    seconds = rig.orders_hold()
    with rig.client() as client:
        rig.orders.allowed["decoder"] = [client.status().daemon.decoder]
    return seconds


def deleted_while_promoting(rig: CalibrationRig) -> Seconds:
    """A calibration with an accepted DELETE is never promoted, even if the server is killed."""
    with rig.client() as client:
        begun = client.start_calibration(rig.request(data=rig.data, promote="auto"))
    rig.moment(4.0)
    before = _calibration(rig, begun.id)
    with rig.client() as client:
        decoder = client.status().daemon.decoder
        if before.state in RUNNING:
            client.delete_calibration(begun.id)
    if rig.rng.random() < 0.5:
        rig.restart_server()
    if before.state in RUNNING:
        found = rig.until("the calibration", lambda: _settled(rig, begun.id))
        assert found is None or found.state != "promoted", "promoted after its DELETE was accepted"
    rig.orders.allowed["decoder"] = [decoder]
    if before.candidate:
        rig.windows[before.candidate] = 0.5
    return rig.orders_hold()


def _calibration(rig: CalibrationRig, identity: str) -> Calibration:
    with rig.client() as client:
        return client.calibration(identity)


def _settled(rig: CalibrationRig, identity: str) -> Calibration | None:
    found = _calibration(rig, identity)
    return found if found.state not in RUNNING else None


class SmallDiskRig(ServerRig):
    """A server whose home is on a small disk."""

    def start(self) -> None:
        self._mount = small_disk(self.folder / "home", "64m")
        self.disk = self._mount.__enter__()
        super().start()

    def close(self) -> None:
        super().close()
        self._mount.__exit__(None, None, None)


def disk_full(rig: SmallDiskRig) -> Seconds:
    """A pause must work even if nothing can be written."""
    rig.disk.fill()
    rig.orders.give("paused", "stop", rig.pause("stop"))
    start = local_clock()
    rig.never_valid(0.5, start + 0.05)
    if rig.rng.random() < 0.5:
        start = rig.kill_daemon()
        rig.until("a new daemon", lambda: rig.checker.since(start + 0.05))
        rig.never_valid(0.5, start + 0.05)
    rig.disk.empty()
    rig.until("a resume", lambda: rig.orders.give("paused", None, rig.resume()))
    return rig.until_valid()


def other_journal(rig: ServerRig) -> Seconds:
    """Put documents of another version and invalid ones into the journal of a dead server."""
    rig.server.stop(signal.SIGKILL)
    file = rig.server.home / "journal.sqlite"
    odd = [
        "{}", "[]", "no JSON", json.dumps({"id": "x", "state": "pondering", "new": 1}),
        json.dumps({"id": "y", "state": "promoted", "request": {"seconds": "many"}}),
    ]  # fmt: skip
    with sqlite3.connect(file) as db:
        for document in rig.rng.sample(odd, 3):
            name = f"odd-{rig.rng.random()}"
            db.execute("INSERT INTO calibrations VALUES (?, NULL, ?)", (name, document))
        if unreadable := rig.rng.random() < 0.5:
            db.execute("INSERT OR REPLACE INTO state VALUES ('filters', ?)",
                       (json.dumps({"gain": 1.0, "wobble": 2}),))  # fmt: skip
            rig.orders.allowed["gain"] = [1.0, *rig.orders.allowed["gain"]]
    db.close()
    start = local_clock()
    rig.server.start()
    seconds = {"to answer": local_clock() - start}
    with rig.client() as client:
        client.calibrations()
        client.journal()
        rig.pid()
        if unreadable:  # filters, so the server pauses the daemon that it adopts
            rig.until("a pause", lambda: client.status().daemon.paused is not None)
            rig.orders.give("paused", None, rig.resume())
    return seconds | rig.orders_hold()


def server_killed_and_daemon_killed(rig: ServerRig) -> Seconds:
    """Kill both; the daemon comes back with the next server."""
    decoder = rig.other_decoder()
    rig.orders.give("decoder", decoder, rig.activate(decoder))
    gain = round(rig.rng.uniform(0.5, 1.5), 3)
    rig.orders.give("gain", gain, rig.set_gain(gain))
    rig.moment()
    pid = rig.pid()
    rig.server.stop(signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    start = local_clock()
    rig.server.start()
    return rig.orders_hold() | rig.until_valid(start)


def rollback_after_death(rig: ServerRig) -> Seconds:
    before = rig.orders.allowed["decoder"][-1]
    decoder = rig.other_decoder()
    rig.orders.give("decoder", decoder, rig.activate(decoder))
    if rig.rng.random() < 0.5:
        rig.kill_daemon()
        rig.pid()
    else:
        rig.restart_server()

    def back() -> object:
        with rig.client() as client:
            return client.rollback()

    rig.until("a rollback", lambda: rig.orders.give("decoder", before, back))
    return rig.orders_hold() | rig.until_valid()


FAULTS = (
    Fault(name="server-killed-activating", what="The server gets SIGKILL during an activation",
          must_hold=ACCEPTED, rig=ServerRig, attempt=_killed_during("decoder", 0.8)),
    Fault(name="server-killed-pausing", what="The server gets SIGKILL during a pause",
          must_hold=ACCEPTED, rig=ServerRig, attempt=_killed_during("paused", 0.05)),
    Fault(name="server-killed-filters", what="The server gets SIGKILL while filters change",
          must_hold=ACCEPTED, rig=ServerRig, attempt=_killed_during("gain", 0.05)),
    Fault(name="server-killed-promoting", what="The server gets SIGKILL while promoting",
          must_hold="either promoted and in use, or neither", rig=CalibrationRig,
          attempt=killed_while_promoting),
    Fault(name="delete-promoting", what="DELETE of a calibration during training or promotion",
          must_hold="once accepted, the calibration is never promoted", rig=CalibrationRig,
          attempt=deleted_while_promoting),
    Fault(name="both-killed", what="Server and daemon get SIGKILL",
          must_hold="the next server starts a daemon with every confirmed order",
          rig=ServerRig, attempt=server_killed_and_daemon_killed),
    Fault(name="rollback-after-death", what="A rollback after the daemon or the server was killed",
          must_hold="the previous decoder is in use", rig=ServerRig, attempt=rollback_after_death),
    Fault(name="server-disk-full", what="The disk of the server's home is full",
          must_hold="a pause holds, also for the next daemon", rig=SmallDiskRig,
          attempt=disk_full, blocked=no_root),
    Fault(name="journal-other-version", what="The journal holds documents of another version",
          must_hold="the server starts with everything that it can read", rig=ServerRig,
          attempt=other_journal),
)  # fmt: skip
