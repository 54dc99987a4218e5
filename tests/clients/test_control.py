"""The REST clients, blocking and asyncio: calls and errors; and `volition calibrate`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent

from clients.control import ControlClient
from clients.control_async import AsyncControlClient
from clients.harness.daemon import free_port
from clients.harness.server import Server
from clients.rest import ProblemError, UnreachableError
from server.schemas import Calibration, CalibrationRequest, FiltersPatch, Input
from tests.rig import DEADLINE_S, Process, wait_for
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


def slow_app() -> FastAPI:
    """A server whose calibration says nothing new for half a second."""
    app = FastAPI()
    learning = Calibration(
        id="slow", state="training", request=CalibrationRequest(), created=datetime.now(UTC)
    )

    @app.get("/v1/calibrations/slow")
    def calibration() -> Calibration:
        return learning

    @app.get("/v1/calibrations/slow/events", response_class=EventSourceResponse)
    async def events() -> AsyncIterator[ServerSentEvent]:
        yield ServerSentEvent(raw_data=learning.model_dump_json(), id="1")
        await asyncio.sleep(0.5)
        ended = learning.model_copy(update={"state": "promoted"})
        yield ServerSentEvent(raw_data=ended.model_dump_json(), id="2")

    return app


@contextmanager
def serving(app: FastAPI, port: int, after_s: float = 0.0) -> Iterator[str]:
    """URL of the app, served in a thread that begins after some time."""
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Timer(after_s, server.run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
        wait_for("the server", lambda: server.started)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a server whose calibration says nothing new for half a second, between its pings."""
    monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.05)
    with serving(slow_app(), free_port()) as url:
        with ControlClient(url) as volition:
            wait_for("the server", lambda: _answers(volition))
        yield url


def _answers(volition: ControlClient) -> bool:
    try:
        return volition.calibration("slow").id == "slow"
    except UnreachableError:
        return False


def test_a_server_that_has_nothing_new_for_long_is_followed_on(slow: str) -> None:
    async def states() -> list[str]:
        async with AsyncControlClient(slow) as volition:
            return [calibration.state async for calibration in volition.follow("slow")]

    with ControlClient(slow) as volition:
        seen = [calibration.state for calibration in volition.follow("slow")]
    assert seen == asyncio.run(states()) == ["training", "training", "promoted"]


def test_a_client_waits_for_a_server_to_start() -> None:
    with (
        serving(slow_app(), free_port(), after_s=0.5) as url,
        ControlClient(url) as volition,
    ):
        assert [calibration.state for calibration in volition.follow("slow")][-1] == "promoted"


def test_an_asyncio_client_waits_for_a_server_to_start() -> None:
    async def states(url: str) -> list[str]:
        async with AsyncControlClient(url) as volition:
            return [calibration.state async for calibration in volition.follow("slow")]

    with serving(slow_app(), free_port(), after_s=0.5) as url:
        assert asyncio.run(states(url))[-1] == "promoted"


def test_a_refusal_of_the_server_is_raised_with_its_document(server: Server) -> None:
    with ControlClient(server.url) as volition, pytest.raises(ProblemError) as refused:
        volition.activate("no-such-decoder")
    assert refused.value.problem.status == 404
    assert refused.value.problem.type == "/problems/not-found"


def test_without_a_server_the_client_says_how_to_start_one() -> None:
    with (
        ControlClient(f"http://127.0.0.1:{free_port()}") as volition,
        pytest.raises(UnreachableError, match="volition serve"),
    ):
        volition.status()


def test_the_command_prints_the_error(server: Server, tmp_path: Path) -> None:
    command = Process(
        tmp_path / "calibrate.log", "calibrate", "--seconds", "5", "--url", server.url
    )
    assert command.popen.wait(DEADLINE_S) == 1
    assert "no spike stream" in command.output()
    wrong = Process(tmp_path / "wrong.log", "calibrate", "--seconds", "1e9", "--url", server.url)
    assert wrong.popen.wait(DEADLINE_S) == 1
    assert "less than or equal to 3600" in wrong.output()
