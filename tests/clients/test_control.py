"""The typed client: blocking and asyncio, errors with their documents, the command on top."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.control import AsyncControlClient, ControlClient, ProblemError, UnreachableError
from clients.demo import free_port
from clients.recalibration import Server
from server.schemas import CalibrationRequest, FiltersPatch, Input
from tests.rig import Process
from tests.server.conftest import POSSM


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(POSSM, tmp_path_factory.mktemp("home"), "nobody-streams-this") as running:
        yield running


def test_a_blocking_client_changes_what_the_next_one_sees(server: Server) -> None:
    with ControlClient(server.url, operator="Ada") as volition:
        assert volition.set_filters(FiltersPatch(gain=2.0)).gain == 2.0
        assert volition.set_filters(FiltersPatch(speed_limit=0.3)).gain == 2.0
        assert volition.set_input(Input(name="other")).name == "other"
        assert volition.pause("lunch").daemon.paused == "lunch"
    with ControlClient(server.url) as volition:
        assert volition.filters().speed_limit == 0.3
        assert volition.input().name == "other"
        assert volition.status().daemon.input_name == "other"
        assert volition.resume().daemon.paused is None
        assert {c.what for c in volition.journal() if c.who == "Ada"} == {
            "filters", "input", "pause",
        }  # fmt: skip
        (decoder,) = volition.decoders()
        assert decoder.active
        assert len(volition.decoder(decoder.id).unit_ids) == decoder.units


def test_an_asyncio_client_follows_a_calibration(server: Server) -> None:
    async def states() -> list[str]:
        async with AsyncControlClient(server.url) as volition:
            request = CalibrationRequest(seconds=5.0)
            return [calibration.state async for calibration in volition.calibrate(request)]

    seen = asyncio.run(states())
    assert seen[0] == "collecting"
    assert seen[-1] == "failed"  # nobody streams


def test_what_the_server_refuses_is_raised_with_its_document(server: Server) -> None:
    with ControlClient(server.url) as volition, pytest.raises(ProblemError) as refused:
        volition.activate("no-such-decoder")
    assert refused.value.problem.status == 404
    assert refused.value.problem.type == "/problems/not-found"


def test_where_no_server_is_the_client_says_how_to_start_one() -> None:
    with (
        ControlClient(f"http://127.0.0.1:{free_port()}") as volition,
        pytest.raises(UnreachableError, match="volition serve"),
    ):
        volition.status()


def test_the_command_prints_what_went_wrong(server: Server, tmp_path: Path) -> None:
    command = Process(
        tmp_path / "calibrate.log", "calibrate", "--seconds", "5", "--url", server.url
    )
    assert command.popen.wait(60) == 1
    assert "no spike stream" in command.output()
    wrong = Process(tmp_path / "wrong.log", "calibrate", "--seconds", "1e9", "--url", server.url)
    assert wrong.popen.wait(60) == 1
    assert "less than or equal to 3600" in wrong.output()
