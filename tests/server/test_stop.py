"""Ctrl-C on a server with an open event stream."""

from __future__ import annotations

import threading
from contextlib import suppress

import httpx

from clients.harness.server import Server
from decoder.errors import VolitionError
from streaming.sessions.session import Session
from tests.rig import wait_for
from tests.server.conftest import Play
from tests.server.test_survival import request_for


def test_a_server_stopped_during_an_event_stream_prints_no_traceback(
    server: Server, unseen: Session, play: Play
) -> None:
    seen: list[float] = []
    with play(unseen), server.client() as client:
        begun = client.start_calibration(request_for(unseen, seconds=120.0))

        def follow() -> None:
            with suppress(VolitionError, httpx.TransportError), server.client() as follower:
                seen.extend(calibration.collected_s for calibration in follower.follow(begun.id))

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        wait_for("events", lambda: client.calibration(begun.id).collected_s > 1.0)
        server.stop()
    log = (server.home / "server.log").read_text()
    assert "Traceback" not in log
    assert "Finished server process" in log
