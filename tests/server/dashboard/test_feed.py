"""The feed of pictures over a real WebSocket, from a real daemon."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pylsl
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from clients.harness.server import Server
from server.dashboard.feed import KEPT, MOST_VIEWERS, Feed, reachable
from tests.rig import DEADLINE_S, Pace
from tests.server.conftest import POSSM, Play

TOKEN = "Vq3nT0x9-fJ2kLw8Zr5yBc7dHs4mPa6u"
Picture = tuple[dict[str, Any], dict[str, np.ndarray]]


def decoded(message: bytes) -> Picture:
    """Header and arrays of a picture."""
    (length,) = struct.unpack("<I", message[:4])
    header, at = json.loads(message[4 : 4 + length]), 4 + length
    assert at % 8 == 0
    arrays = {}
    for name, kind, n in header["arrays"]:
        arrays[name] = np.frombuffer(message, f"<{kind}", n, at)
        at += -(-arrays[name].nbytes // 8) * 8
    assert at == len(message)
    return header, arrays


def watch(server: Server, **more: Any) -> connect:
    """A page's connection."""
    return connect(server.url.replace("http", "ws") + "/v1/feed", max_size=None, **more)


def pictures(socket: ClientConnection) -> Iterator[Picture]:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        yield decoded(socket.recv(timeout=DEADLINE_S))  # type: ignore[arg-type]
    raise AssertionError(f"not within {DEADLINE_S} s")


def test_pictures_show_frames_spikes_and_the_cursor(server: Server, play: Play, unseen) -> None:
    spikes, n_frames, n_samples, status = 0, 0, 0, None
    last = -np.inf
    with play(unseen), watch(server) as socket:
        for header, arrays in pictures(socket):
            frame = header["frame"]
            status = header.get("server", status)
            times = header["now"] + arrays["frame_t"]
            assert np.all(times > last - 1e-3)
            last = times[-1] if len(times) else last
            spikes += len(arrays["spike_t"])
            n_samples += len(arrays["kin_t"])
            n_frames += len(times) if frame and frame["state"] == "decoding" else 0
            if spikes > 300 and n_frames > 30 and n_samples > 30:
                break
    assert header["kinematics"] == f"{unseen.session_id}-kinematics"
    assert frame["age_s"] < 0.5
    assert header["states"][arrays["frame_state"][-1]] == "decoding"
    assert arrays["spike_u"].max(initial=0) < unseen.n_units
    assert status["answered"]
    assert status["daemon"]["stream"] == f"{unseen.session_id}-spikes"


def test_a_page_learns_within_a_second_that_the_daemon_is_gone(
    server: Server, play: Play, unseen
) -> None:
    with play(unseen), watch(server) as socket, server.client() as client:
        client.pause()
        for header, _ in pictures(socket):
            if header["frame"] and header["frame"]["state"] == "paused":
                break
        os.kill(client.status().daemon.pid, signal.SIGSTOP)
        began = time.monotonic()
        with Pace() as pace:
            for header, _ in pictures(socket):
                if header["frame"]["age_s"] > 0.5:
                    break
        assert time.monotonic() - began < 1.0 + 4 * pace.worst_s  # all processes may be late


def test_a_page_that_reads_slowly_sees_the_newest_and_nothing_grows() -> None:
    """The feed runs without a server here, so that its memory can be looked at."""

    async def slow() -> tuple[list[float], int]:
        feed = Feed("tcp://127.0.0.1:9", lambda: b"{}")
        ages = []
        with feed.viewer() as viewer:
            await viewer.next()
            for _ in range(3):
                await asyncio.sleep(1.2 * KEPT / 30)
                header, _ = decoded(await viewer.next())
                ages.append(pylsl.local_clock() - header["now"])
            kept = len(feed._moments)
        return ages, kept

    ages, kept = asyncio.run(slow())
    assert max(ages) < 0.5
    assert kept <= KEPT


def test_pages_are_limited(server: Server) -> None:
    with ExitStack() as pages:
        for _ in range(MOST_VIEWERS):
            socket = pages.enter_context(watch(server))
        assert decoded(socket.recv(timeout=DEADLINE_S))  # type: ignore[arg-type]
        with watch(server) as one_more, pytest.raises(ConnectionClosed, match="pages are open"):
            one_more.recv(timeout=DEADLINE_S)
        with server.client() as client:
            client.pause()  # the pages don't hold up the rest


def test_the_feed_is_refused_to_strangers(tmp_path) -> None:
    ours = {"Authorization": f"Bearer {TOKEN}"}
    with Server(POSSM, tmp_path / "home", "nobody", VOLITION_TOKEN=TOKEN) as server:
        strangers: list[dict[str, Any]] = [
            {},
            {"additional_headers": {"Authorization": "Bearer wrong"}},
            {"additional_headers": {"Cookie": f"volition-8000={TOKEN}"}},
            {"additional_headers": ours, "origin": "http://evil.example"},
        ]
        for stranger in strangers:
            with pytest.raises(InvalidStatus), watch(server, **stranger):
                pass
        with watch(server, additional_headers=ours) as socket:
            assert decoded(socket.recv(timeout=DEADLINE_S))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bound", "expected"),
    [
        ("tcp://*:5556", "tcp://127.0.0.1:5556"),
        ("tcp://0.0.0.0:5556", "tcp://127.0.0.1:5556"),
        ("tcp://10.0.0.7:5556", "tcp://10.0.0.7:5556"),
        ("ipc:///run/volition", "ipc:///run/volition"),
    ],
)
def test_an_address_that_is_bound_can_be_connected_to(bound: str, expected: str) -> None:
    assert reachable(bound) == expected
