"""`volition watch`: what it prints, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import zmq

from streaming.wire import messages as wire
from streaming.wire.states import State
from tests.rig import DEADLINE_S, meanwhile


def test_watch_ends_well_when_nobody_reads_its_lines_any_more() -> None:
    """`volition watch --json | head -n 1` succeeds, and prints nothing but the line."""
    frame = wire.cursor_frame(
        State.READY, started=1.0, seq=0, session="s", decoder="d", window_end=2.0, published=2.0
    )
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")

        def send(ended: threading.Event) -> None:
            while not ended.wait(0.01):
                socket.send(wire.TOPICS["cursor"].prefix + wire.encode_frame(frame))

        with meanwhile(send):
            watch = f"{sys.executable} -m clients watch --json --address tcp://127.0.0.1:{port}"
            ran = subprocess.run(
                ["bash", "-o", "pipefail", "-c", f"{watch} | head -n 1"],
                capture_output=True, text=True, check=False, timeout=DEADLINE_S,
            )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["session"] == "s"
    assert ran.stderr == ""
