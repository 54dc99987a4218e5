"""Unattended recalibration: when it is due, who comes first, and what freezes it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from clients.harness.server import Server
from clients.rest import ProblemError
from decoder.errors import SettingsError
from server.settings import ServerSettings
from server.unattended.bodies import Unattended
from server.unattended.due import HOLD_S, Due, Seen
from tests.clients.test_cli import volition
from tests.rig import wait_for
from tests.server.conftest import POSSM
from tests.server.orders_rig import RefusedError, Rig, World
from tests.server.scripted import LOOK_EVERY_S

ALARM = Unattended(when="alarm")
USUAL = Seen(is_decoding=True, is_beyond=False, is_busy=False)
FAR = Seen(is_decoding=True, is_beyond=True, is_busy=False)


def test_an_alarm_must_hold_for_a_minute() -> None:
    due = Due(ALARM, 0.0)
    assert "neurons are as usual" in due.why_not(0.0, USUAL)
    assert due.due_s() is None
    assert "it starts in 60 s" in due.why_not(10.0, FAR)
    assert due.due_s() == 10.0 + HOLD_S
    assert due.why_not(69.0, FAR)
    assert due.why_not(69.5, USUAL), "the alarm has ended"
    assert due.why_not(71.0, FAR)
    assert due.why_not(130.0, FAR)
    assert due.why_not(131.0, FAR) == ""


def test_every_so_many_minutes_needs_no_alarm() -> None:
    due = Due(Unattended(when="every", every_minutes=30), 0.0)
    assert due.due_s() == 1800.0
    assert due.why_not(1799.0, FAR)
    assert due.why_not(1800.0, USUAL) == ""
    due.ended(1900.0, promoted=True)
    assert due.why_not(3699.0, USUAL)
    assert due.why_not(3700.0, USUAL) == ""


def test_nothing_starts_while_it_is_off_or_another_one_runs_or_nothing_is_decoded() -> None:
    busy = Seen(is_decoding=True, is_beyond=True, is_busy=True)
    paused = Seen(is_decoding=False, is_beyond=True, is_busy=False)
    due, off = Due(ALARM, 0.0), Due(Unattended(when="off"), 0.0)
    for now_s, seen, why in ((0.0, FAR, "starts in"), (100.0, busy, "running"),
                             (101.0, paused, "paused"), (102.0, FAR, "")):  # fmt: skip
        assert why in due.why_not(now_s, seen)
        assert off.why_not(now_s, seen) == "it is off"
    assert due.why_not(102.0, FAR) == ""
    assert off.due_s() is None


def due_after(due: Due, now_s: float) -> float:
    """Seconds until a lasting alarm starts a calibration."""
    passed_s = 0.0
    while due.why_not(now_s + passed_s, FAR):
        passed_s += 1.0
    return passed_s


def test_it_rests_after_each_calibration_and_longer_after_failures() -> None:
    due = Due(ALARM, 0.0)
    now_s = 0.0
    for minutes in (20, 40, 60, 60):
        due.ended(now_s, promoted=False)
        assert due_after(due, now_s) == 60.0 * minutes
        now_s += 60.0 * minutes
    due.ended(now_s, promoted=True)
    assert due_after(due, now_s) == 600.0
    long = Due(ALARM.model_copy(update={"rest_minutes": 90.0}), 0.0)
    long.ended(0.0, promoted=False)
    assert long.rest_s == 90 * 60.0, "never shorter than asked for"


def test_it_does_not_oscillate_in_a_day_of_false_alarms() -> None:
    due, starts = Due(ALARM, 0.0), 0
    for now_s in range(24 * 3600):
        if not due.why_not(float(now_s), FAR):
            starts += 1
            due.ended(now_s + 0.5, promoted=False)
    assert starts <= 26


def test_a_decoder_that_was_chosen_by_hand_is_left_alone() -> None:
    due = Due(ALARM, 0.0)
    due.why_not(0.0, FAR)
    due.by_hand(100.0)
    due.by_hand(50.0)  # an older change
    assert "changed by hand; in 10 min" in due.why_not(101.0, FAR)
    assert due.why_not(699.0, FAR)
    assert due.why_not(700.0, FAR) == ""


@pytest.mark.parametrize(("given", "kept"), [("alarm", "alarm"), ("30", "30"), (1.5, "1.5")])
def test_the_setting_is_alarm_or_minutes(given: object, kept: str) -> None:
    assert ServerSettings(unattended=given).unattended == kept


@pytest.mark.parametrize("given", ["sometimes", "0", "nan", "1e9", True])
def test_other_settings_are_refused(given: object) -> None:
    with pytest.raises(ValueError, match="neither off, alarm, nor minutes from 1 to 1440"):
        ServerSettings(unattended=given)


@pytest.fixture
def rig(world: World) -> Iterator[Rig]:
    """A real server and journal, with a daemon that follows a script."""
    made = Rig(world)
    try:
        made.start_server()
        wait_for("a daemon", lambda: made.does())
        yield made
    finally:
        made.end()


AT_ONCE = {"when": "alarm", "method": "units", "by_hand_minutes": 0.0}


def state_of(rig: Rig, **values: Any) -> dict[str, Any]:
    answer: dict[str, Any] = rig.ask("unattended", **values)
    return answer


def last(rig: Rig, *states: str) -> dict[str, Any]:
    """The newest calibration, once it is in one of these states."""

    def found() -> dict[str, Any] | None:
        known = rig.ask("calibrations")
        return known[0] if known and known[0]["state"] in states else None

    return wait_for(f"a calibration that is {states}", found)


def until(rig: Rig, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The state, once it is so."""

    def found() -> dict[str, Any] | None:
        state = state_of(rig)
        return state if is_so(state) else None

    return wait_for("the state", found)


def test_an_alarm_starts_an_ordinary_calibration_once(rig: Rig) -> None:
    assert state_of(rig)["state"] == "off"
    (rig.folder / "far").touch()
    state_of(rig, **AT_ONCE)
    done = last(rig, "promoted")
    assert (done["who"], done["before"], done["request"]["method"]) == ("unattended", "a", "units")
    rested = until(rig, lambda state: "rests" in state["why"])
    assert (rested["state"], rested["last"], rested["rest_minutes"]) == ("waiting", done["id"], 10)
    assert rested["next_due"] is not None
    assert len(rig.ask("calibrations")) == 1
    changes = rig.ask("changes", after=0)
    assert [c for c in changes if c["who"] == f"unattended, {done['id']}"][-1]["what"] == "activate"

    rig.kill_server()
    rig.start_server()
    again = until(rig, lambda state: "rests" in state["why"])
    assert again["last"] == done["id"]
    assert again["settings"] == rested["settings"]


def test_a_calibration_that_is_not_promoted_doubles_the_rest(rig: Rig) -> None:
    (rig.folder / "far").touch()
    (rig.folder / "alike").touch()
    state_of(rig, **AT_ONCE)
    assert last(rig, "undecided")["who"] == "unattended"
    assert until(rig, lambda state: "rests" in state["why"])["rest_minutes"] == 20
    assert state_of(rig, **AT_ONCE)["rest_minutes"] == 10, "new settings end the rest"


def test_a_rollback_freezes_it_until_it_is_set_again(rig: Rig) -> None:
    (rig.folder / "far").touch()
    state_of(rig, **AT_ONCE)
    done = last(rig, "promoted")
    until(rig, lambda state: "rests" in state["why"])
    rig.ask("rollback")
    frozen = until(rig, lambda state: state["state"] == "frozen")
    assert f"a was activated again in place of {done['candidate']}" in frozen["why"]
    assert frozen["next_due"] is None
    rig.kill_server()
    rig.start_server()
    assert state_of(rig)["why"] == frozen["why"]
    assert rig.ask("freeze")["why"] == frozen["why"], "the first reason stays"
    assert state_of(rig, **AT_ONCE)["state"] != "frozen"


def test_a_rollback_just_before_the_server_dies_is_noticed(rig: Rig) -> None:
    (rig.folder / "far").touch()
    state_of(rig, **AT_ONCE)
    last(rig, "promoted")
    until(rig, lambda state: "rests" in state["why"])
    rig.ask("rollback")
    rig.kill_server()
    rig.start_server()
    until(rig, lambda state: state["state"] == "frozen")


def test_a_promotion_by_hand_is_a_change_by_hand_and_may_be_undone(rig: Rig) -> None:
    (rig.folder / "far").touch()
    (rig.folder / "alike").touch()
    state_of(rig, **(AT_ONCE | {"rest_minutes": 1.0}))
    done = last(rig, "undecided")
    until(rig, lambda state: "rests" in state["why"])
    rig.ask("promote", identity=done["id"])
    assert last(rig, "promoted")["id"] == done["id"]
    rig.ask("rollback")
    time.sleep(5 * LOOK_EVERY_S)  # it must not freeze, so there is nothing to wait for
    assert state_of(rig)["state"] == "waiting"


def test_an_operators_request_comes_first(rig: Rig) -> None:
    hangs = rig.folder / "server.calibration.collect hangs"
    hangs.touch()
    (rig.folder / "far").touch()
    state_of(rig, **AT_ONCE)
    own = last(rig, "collecting")
    assert until(rig, lambda state: state["state"] == "calibrating")["last"] == own["id"]
    with pytest.raises(RefusedError, match="no decoder"):
        rig.ask("calibrate", method="units", base="never")
    assert rig.ask("calibration", identity=own["id"])["state"] == "collecting", "no reason"
    asked = rig.ask("calibrate", method="units")
    assert rig.ask("calibration", identity=own["id"])["state"] == "cancelled"
    assert rig.ask("calibration", identity=asked)["state"] == "collecting"
    with pytest.raises(RefusedError, match=f"{asked} is collecting"):
        rig.ask("calibrate", method="units")
    hangs.unlink()
    assert last(rig, "promoted")["id"] == asked
    assert len(rig.ask("calibrations")) == 2


def test_freezing_cancels_what_runs_and_is_kept(rig: Rig) -> None:
    (rig.folder / "server.calibration.collect hangs").touch()
    (rig.folder / "far").touch()
    state_of(rig, **AT_ONCE)
    own = last(rig, "collecting")
    until(rig, lambda state: state["state"] == "calibrating")
    for _ in range(2):
        frozen = rig.ask("freeze")
        assert frozen["why"] == "frozen by test"
        assert rig.ask("calibration", identity=own["id"])["state"] == "cancelled"
    notes = [c for c in rig.ask("changes", after=0) if c["detail"].get("frozen")]
    assert len(notes) == 1
    rig.kill_server()
    rig.start_server()
    assert state_of(rig)["state"] == "frozen"


def test_a_pause_and_a_change_by_hand_hold_it_back(rig: Rig) -> None:
    rig.ask("pause", why="rest")
    (rig.folder / "far").touch()
    state_of(rig, **(AT_ONCE | {"by_hand_minutes": 10.0}))
    until(rig, lambda state: "paused" in state["why"])
    rig.ask("activate", decoder="b")
    rig.ask("resume")
    until(rig, lambda state: "changed by hand; in 10 min" in state["why"])
    rig.kill_server()
    rig.start_server()
    until(rig, lambda state: "changed by hand; in 10 min" in state["why"])
    assert rig.ask("calibrations") == []


def test_what_can_not_work_is_refused_at_once(rig: Rig) -> None:
    with pytest.raises(
        RefusedError, match="does not know its usual states, which the method align"
    ):
        rig.ask("unattended", when="alarm")
    with pytest.raises(RefusedError, match="shadow is scored by kinematics"):
        rig.ask("unattended", when="alarm", method="units", labels="targets", shadow=True)
    assert state_of(rig)["state"] == "off"


def test_it_is_seen_set_and_frozen_over_http_and_by_command(tmp_path) -> None:
    with Server(
        POSSM, tmp_path / "home", "nobody-streams-this", VOLITION_UNATTENDED="90"
    ) as server, server.client() as client:  # fmt: skip
        given = client.unattended()
        assert (given.settings.when, given.settings.every_minutes) == ("every", 90.0)
        body = Unattended(when="every", every_minutes=30, method="units", kinematics="hand")
        assert client.set_unattended(body).settings == body
        assert body.request.kinematics == "hand"
        wait_for("a look", lambda: client.status().unattended.startswith("waiting: the daemon"))
        with pytest.raises(ProblemError, match="gives no alarm"):
            client.set_unattended(Unattended(when="alarm", method="units"))
        shown = volition("unattended", "--url", server.url).stdout
        assert "every 30 min: 120 s, method units" in shown
        frozen = json.loads(volition("unattended", "freeze", "--url", server.url, "--json").stdout)
        assert frozen["state"] == "frozen"
        server.stop()
        server.start()
        kept = client.unattended()
        assert (kept.state, kept.settings) == ("frozen", body)
        set_again = volition(
            "unattended",
            "45",
            "--method",
            "units",
            "--seconds",
            "60",
            "--url",
            server.url,
            "--json",
        )
        assert json.loads(set_again.stdout)["settings"]["every_minutes"] == 45.0, set_again.stderr
        wrong = volition("unattended", "sometimes", "--url", server.url)
        assert wrong.returncode == 1
        assert "expected alarm, a number of minutes, off or freeze" in wrong.stderr


def test_settings_without_an_order_are_refused() -> None:
    from clients.unattended import settings_from

    with pytest.raises(SettingsError, match="expected alarm, a number of minutes"):
        settings_from("never", {})
    with pytest.raises(SettingsError, match="every_minutes: Input should be greater than"):
        settings_from("0.5", {})
