"""Commands over real ZeroMQ: every message is answered, and none ends the daemon."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq

from clients.harness.daemon import free_port
from clients.subscriber import CursorSubscriber
from decoder.filters import Filters
from streaming.wire import control
from streaming.wire.control import ControlClient
from streaming.wire.sockets import MAX_MESSAGE
from tests.rig import daemon, frames_until

COMMANDS = (
    control.Load(path="/somewhere/a.bundle"), control.Activate(decoder="d"), control.Rollback(),
    control.SetInput(kind="SpikeCounts", name="rig"), control.Pause(why="lunch"),
    control.Resume(), control.Arm(), control.SetFilters(filters=Filters(smoothing_s=0.1)),
    control.GetStatus(), control.Stop(),
)  # fmt: skip
NO_COMMANDS = {
    "nothing": b"",
    "not msgpack": b"\xc1",
    "not UTF-8": control.encode(control.Pause(why="lunch")).replace(
        b"lunch", b"\xff\xfe\xfd\xfc\xfb"
    ),
    "arrays nested 100,000 deep": b"\x91" * 100_000,
    "maps nested 100,000 deep": b"\x81\xa1a" * 100_000,
    "a field nested 100,000 deep": b"\x82\xa7command\xa5pause\xa1z" + b"\x91" * 100_000,
    "filters nested deep": control.encode(control.SetFilters(filters=Filters()))[:-8]
    + b"\x91" * 5000,
    "an unknown command": msgspec.msgpack.encode({"command": "explode"}),
    "a filter that is not a number": msgspec.msgpack.encode(
        {"command": "setfilters", "filters": {"gain": float("nan")}}
    ),
    "a very long name": msgspec.msgpack.encode(
        {"command": "setinput", "kind": "Spikes", "name": "x" * 10**6}
    ),
    "an array of a million": msgspec.msgpack.encode([0] * 10**6),
}


@pytest.fixture
def socket() -> Iterator[zmq.Socket[bytes]]:
    context = zmq.Context()
    made = context.socket(zmq.REQ)
    made.setsockopt(zmq.RCVTIMEO, 20_000)
    yield made
    context.destroy(linger=0)


def test_every_message_gets_a_reply_and_the_daemon_survives(
    tiny, tmp_path: Path, socket: zmq.Socket[bytes]
) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with (
        daemon(tmp_path, tiny.bundle.path, "nowhere", "--control", address) as (process, cursors),
        CursorSubscriber(cursors) as cursor,
    ):
        frames_until(cursor, lambda frame: True)
        socket.connect(address)
        for message in NO_COMMANDS.values():
            socket.send(message)
            answer = msgspec.msgpack.decode(socket.recv(), type=control.Reply)
            assert str(answer.problem).startswith("not a command of this daemon: ")
            assert len(str(answer.problem)) < 300
        socket.send_multipart([b"x"] * 5000)  # more than a tick reads
        answer = msgspec.msgpack.decode(socket.recv(), type=control.Reply)
        assert "5000 frames, expected one" in str(answer.problem)
        socket.send(b"x" * (MAX_MESSAGE + 1))  # closes the connection
        client = ControlClient(address, timeout_s=20.0)
        assert client.ask(control.GetStatus()).problem is None
        client.close()
        assert process.popen.poll() is None


def test_100000_random_and_mutated_messages_parse_or_are_refused() -> None:
    rng = np.random.default_rng(0)
    valid = [bytearray(control.encode(command)) for command in COMMANDS]
    n_commands = 0
    for _ in range(100_000):
        message = valid[int(rng.integers(len(valid)))].copy()
        for position in rng.integers(0, len(message), rng.integers(0, 4)).tolist():
            message[position] = int(rng.integers(256))
        if rng.random() < 0.2:
            message = message[: int(rng.integers(len(message)))]
        if rng.random() < 0.1:
            message = bytearray(rng.bytes(int(rng.integers(64))))
        command = control._command(bytes(message))
        if isinstance(command, str):
            assert command.startswith("not a command of this daemon: ")
            assert command.isprintable()  # one line
        else:
            n_commands += 1
    assert 10_000 < n_commands < 90_000


def test_an_unreadable_reply_raises_no_answer_error() -> None:
    context = zmq.Context()
    stranger = context.socket(zmq.REP)
    port = stranger.bind_to_random_port("tcp://127.0.0.1")
    client = ControlClient(f"tcp://127.0.0.1:{port}", timeout_s=20.0)

    def answer() -> None:
        stranger.recv()
        stranger.send(b"\x91" * 100_000)

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(control.NoAnswerError, match="can't be read"):
        client.ask(control.GetStatus())
    thread.join()
    client.close()
    context.destroy(linger=0)
