"""A task's pause reaches the server, and never waits for it."""

from __future__ import annotations

import io
import socket
from pathlib import Path

from rich.console import Console

from clients.control import ControlClient
from clients.harness.daemon import free_port
from clients.harness.server import Server
from clients.rig.command import server_paused_too
from tests.rig import wait_for
from tests.server.conftest import POSSM


def test_the_servers_decoder_pauses_and_resumes_with_the_task(tmp_path: Path) -> None:
    with (
        Server(POSSM, tmp_path / "home", "nobody-streams-this") as server,
        ControlClient(server.url) as volition,
        server_paused_too(Console(stderr=True), server.url, None) as on_pause,
    ):
        on_pause(True)
        wait_for("the pause", lambda: volition.status().daemon.paused == "task paused")
        on_pause(False)
        wait_for("the end of the pause", lambda: volition.status().daemon.paused is None)
        assert {change.who for change in volition.journal() if change.what == "pause"} == {
            "volition task"
        }


def test_a_missing_server_is_only_reported() -> None:
    said = io.StringIO()
    url = f"http://127.0.0.1:{free_port()}"
    with server_paused_too(Console(file=said, width=200), url, None) as on_pause:
        on_pause(True)
    assert "no server on" in said.getvalue()
    with server_paused_too(Console(file=said), None, None) as on_pause:
        on_pause(True)


def test_the_task_does_not_wait_for_a_silent_server() -> None:
    said = io.StringIO()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with server_paused_too(Console(file=said, width=200), url, None) as on_pause:
            on_pause(True)
            assert said.getvalue() == "", "it waited until the request failed"
            silent.accept()[0].close()
    assert "no server on" in said.getvalue()
