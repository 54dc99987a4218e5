"""Excluded units: over REST, in the journal, and after restarts of server and daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from clients.control import ControlClient
from clients.harness.server import Server
from clients.rest import ProblemError
from server.units import Units, UnitsPatch
from streaming.sessions.session import Session
from streaming.units import mark_of
from tests.rig import wait_for
from tests.server.conftest import POSSM, Play
from tests.server.orders_rig import RefusedError, Rig
from tests.server.test_orders import does


def excluded_in(found: Units) -> set[str]:
    return {unit.id for unit in found.units if unit.excluded}


def test_excluded_units_survive_server_and_daemon(
    server: Server, unseen: Session, play: Play
) -> None:
    first, second, *_ = unseen.unit_ids
    with play(unseen), server.client() as client:
        found = wait_for("the stream", lambda: (f := client.units()).stream and f)
        assert found.stream == f"{unseen.session_id}-spikes"
        assert [unit.id for unit in found.units] == list(unseen.unit_ids)
        assert [unit.index for unit in found.units] == list(range(unseen.n_units))
        assert all(unit.known for unit in found.units)
        assert found.excluded == []
        with ControlClient(server.url, operator="Ada") as ada:
            changed = ada.change_units(UnitsPatch(exclude=[first, second, "not here"]))
            assert excluded_in(changed) == {first, second}
            assert changed.excluded == sorted([first, second, "not here"])
            assert excluded_in(ada.include_units(second)) == {first}
        newest, before = [change for change in client.journal() if change.what == "units"]
        assert (newest.who, newest.detail) == ("Ada", {"exclude": [], "include": [second]})
        assert before.detail == {"exclude": [first, second, "not here"], "include": []}
        status = client.status().daemon
        assert status.excluded_units == 2
        wait_for("excluded spikes", lambda: client.status().daemon.events["excluded"] > 5)

        os.kill(status.pid, signal.SIGKILL)
        again = wait_for(
            "the next daemon's stream",
            lambda: (f := client.units()).stream and client.status().daemon.pid != status.pid and f,
        )
        assert excluded_in(again) == {first}
        server.stop()  # with its daemon
        server.start()
        again = wait_for("the stream", lambda: (f := client.units()).stream and f)
        assert excluded_in(again) == {first}
        assert again.excluded == sorted([first, "not here"])

        with pytest.raises(ProblemError, match="it would decode silence") as refused:
            client.exclude_units(*unseen.unit_ids)
        assert refused.value.problem.status == 409
        assert client.units() == again
        assert client.status().daemon.excluded_units == 2


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(POSSM, tmp_path_factory.mktemp("idle"), "nobody-streams-this") as running:
        yield running


def test_without_a_stream_units_can_be_excluded_but_not_listed(idle: Server) -> None:
    with idle.client() as client:
        found = client.exclude_units("a", "b")
        assert (found.stream, found.units, found.excluded) == (None, [], ["a", "b"])
        assert client.include_units("a", "b").excluded == []


@pytest.mark.parametrize(
    "body",
    [
        {"exclude": [""]},
        {"exclude": ["x" * 201]},
        {"exclude": [str(i) for i in range(1001)]},
        {"exclude": ["a"], "include": ["a"]},
        {"exclude": [7]},
        {"exclude": "a"},
        {"excluded": ["a"]},
    ],
)
def test_an_invalid_change_is_refused(idle: Server, body: dict[str, object]) -> None:

    answer = httpx.patch(f"{idle.url}/v1/units", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


def test_too_many_units_over_several_requests_are_refused(idle: Server) -> None:
    with idle.client() as client:
        client.exclude_units(*(f"a{i}" for i in range(1000)))
        with pytest.raises(ProblemError, match="expected at most 1,000"):
            client.exclude_units("b")
        assert client.include_units(*(f"a{i}" for i in range(1000))).excluded == []


def test_the_command_lists_excludes_and_includes(idle: Server) -> None:
    def volition(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "clients", "units", "--url", idle.url, *arguments],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    done = volition("--exclude", "a", "--exclude", "b", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"stream": None, "units": [], "excluded": ["a", "b"]}
    shown = volition("--include", "a")
    assert "no stream is open" in shown.stdout
    assert "not in the stream: b" in shown.stdout
    refused = volition("--include", "b", "--exclude", "b")
    assert refused.returncode == 1
    assert "is in exclude and in include" in refused.stderr.replace("\n", " ")
    assert volition("--include", "b").returncode == 0


def test_an_exclusion_that_a_daemon_missed_is_sent_again(rig: Rig) -> None:
    rig.ask("units", exclude=["1", "x"], include=[])
    assert does(rig, excluded=mark_of({"1", "x"}))()
    rig.kill_daemon(signal.SIGSTOP)
    with pytest.raises(RefusedError):
        rig.ask("units", exclude=["y"], include=["x"])
    rig.kill_daemon(signal.SIGCONT)
    settled = rig.ask("wanted")["does"]["excluded"]  # the refused order is undone
    assert settled == mark_of({"1", "x"})
    wait_for("the set before", does(rig, excluded=settled))
    with pytest.raises(RefusedError, match="all 2 units"):
        rig.ask("units", exclude=["2"], include=[])
    assert does(rig, excluded=settled)()
    rig.kill_daemon()
    wait_for("the next daemon", does(rig, excluded=settled))
    assert rig.all_births()[-1]["excluded"] == ["1", "x"]


def test_a_server_without_a_journal_takes_over_what_the_daemon_excludes(rig: Rig) -> None:
    rig.ask("units", exclude=["1"], include=[])
    rig.kill_server()
    for path in (rig.folder / "home").glob("journal.sqlite*"):
        path.unlink()
    rig.start_server()
    wait_for("the daemon's set", lambda: rig.ask("wanted")["does"]["excluded"] == mark_of({"1"}))
    assert does(rig, excluded=mark_of({"1"}))()
