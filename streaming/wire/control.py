"""The daemon's control socket: one ZeroMQ REP socket, msgpack commands, each answered at once.

A command is handled between two ticks and never makes one wait: what takes long (`Load`) goes on
in a thread and the status says how far it is. Whoever asks sets a timeout of their own.

    Load        open and warm a bundle as the candidate
    Activate    decode with the candidate from the next tick on
    Rollback    decode with the decoder before again
    SetInput    read another spike stream
    Pause       zero and not valid until resumed
    Resume      decode again
    Arm         decode again, if a listener, a live stream and a warm decoder are there
    SetFilters, GetStatus, Stop
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from typing import Annotated

import msgspec
import zmq

from decoder.errors import SettingsError, VolitionError, brief
from decoder.filters import Filters
from streaming.inlets.spikes import StreamKind
from streaming.wire import messages as wire
from streaming.wire.sockets import BoundSocket, limited

MAX_FRAMES = 100  # of a message that is no command, looked at in a tick
QUEUED = 16  # commands of one peer that wait

Text = Annotated[str, msgspec.Meta(max_length=4096)]


class _Command(msgspec.Struct, frozen=True, tag_field="command", tag=str.lower):
    pass


class Load(_Command, frozen=True):
    path: Text  # of a bundle, on the daemon's host


class Activate(_Command, frozen=True):
    decoder: Text  # id of the candidate, so that nothing else is activated by mistake


class Rollback(_Command, frozen=True):
    pass


class SetInput(_Command, frozen=True):
    kind: StreamKind
    name: Text | None = None  # the only one of its kind where it is left out


class Pause(_Command, frozen=True):
    why: Text = ""


class Resume(_Command, frozen=True):
    paused_for: Text | None = None  # only if it is paused for this reason; None: for any


class Arm(_Command, frozen=True):
    pass


class SetFilters(_Command, frozen=True):
    filters: Filters


class GetStatus(_Command, frozen=True):
    pass


class Stop(_Command, frozen=True):
    pass


Command = (
    Load | Activate | Rollback | SetInput | Pause | Resume | Arm | SetFilters | GetStatus | Stop
)


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to every command: what was wrong with it, if anything, and the status now."""

    problem: str | None
    status: wire.Status


_LOOK_MS = 10  # how often a client that waits looks whether the daemon lives
encode = msgspec.msgpack.Encoder().encode
_decode_command = msgspec.msgpack.Decoder(Command).decode
_decode_reply = msgspec.msgpack.Decoder(Reply).decode


def check_reach(address: str, *, anyone: bool) -> None:
    """Raise SettingsError if other machines could give commands, unless `anyone` may.

    The socket asks nobody for a token: who reaches it stops the daemon, or loads another decoder.
    """
    scheme, _, rest = address.partition("://")
    host = rest.rpartition(":")[0].strip("[]")
    if anyone or scheme in ("ipc", "inproc") or (scheme == "tcp" and _is_loopback(host)):
        return
    raise SettingsError(
        f"control address {address}: other machines could give commands there, without a token; "
        "expected tcp://127.0.0.1:PORT or ipc://PATH. In a network of its own, allow it with "
        "VOLITION_CONTROL_OPEN=true"
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class ControlSocket(BoundSocket):
    """The daemon's side. Raises SettingsError if the address can't be bound, or by `check_reach`.

    anyone: whether other machines may give commands.
    """

    def __init__(self, address: str, *, anyone: bool = False) -> None:
        check_reach(address, anyone=anyone)
        super().__init__(zmq.REP, address, purpose="take commands", options={zmq.RCVHWM: QUEUED})
        self._n_frames = 0  # of the message that is being read

    def receive(self) -> Command | str | None:
        """A command, what was wrong with it, or None where none waits. It must be answered."""
        for _ in range(MAX_FRAMES):
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return None
            self._n_frames += 1
            if not self._socket.getsockopt(zmq.RCVMORE):
                n_frames, self._n_frames = self._n_frames, 0
                if n_frames > 1:
                    return f"not a command of this daemon: {n_frames} frames, expected one"
                return _command(frame)
        return None  # the rest of its frames is read at the next tick

    def answer(self, reply: Reply) -> None:
        """Answer the last command."""
        self._socket.send(encode(reply), zmq.NOBLOCK)


def _command(message: bytes) -> Command | str:
    try:
        command: Command = _decode_command(message)
    except Exception as error:  # also no text, nested too deep, a setting out of range
        return f"not a command of this daemon: {brief(error, 200)}"
    return command


class NoAnswerError(VolitionError):
    """The daemon did not answer in time, or not in our words: it is gone, or it hangs."""


class ControlClient:
    """The other side: one command at a time, each with a timeout.

    Raises NoAnswerError where none came; the next command goes out on a new socket.
    """

    def __init__(self, address: str, *, timeout_s: float = 2.0) -> None:
        self.address, self.timeout_s = address, timeout_s
        self._context = zmq.Context()
        self._socket = self._connect()

    def ask(
        self,
        command: Command,
        *,
        timeout_s: float | None = None,
        while_it_lives: Callable[[], bool] = lambda: True,
    ) -> Reply:
        """Send a command and wait for its answer, at most while `while_it_lives`."""
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        if self._socket.closed:  # the last one could not be replaced: no descriptor was left
            self._socket = self._connect()
        self._socket.send(encode(command))
        while not self._socket.poll(_LOOK_MS):
            if while_it_lives() and time.monotonic() < deadline:
                continue
            self._socket.close(linger=0)
            self._socket = self._connect()
            raise NoAnswerError(
                f"the daemon on {self.address} did not answer within {timeout_s:g} s"
            )
        try:
            return _decode_reply(self._socket.recv())
        except Exception as error:  # of another version, or something else that listens there
            raise NoAnswerError(
                f"the daemon on {self.address} gave an answer that can't be read "
                f"({brief(error, 200)}); is it of another version?"
            ) from error

    def close(self) -> None:
        """Close the socket."""
        self._context.destroy(linger=0)

    def _connect(self) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = limited(self._context.socket(zmq.REQ))
        socket.setsockopt(zmq.RECONNECT_IVL, _LOOK_MS)  # a daemon that returns is heard at once
        socket.connect(self.address)
        return socket
