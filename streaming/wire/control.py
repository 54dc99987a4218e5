"""The daemon's control socket: a ZeroMQ REP socket that answers msgpack commands.

A command is handled between two ticks and answered at once. `Load` goes on in a thread, and the
status reports its progress. Clients set their own timeout.

    Load        open and warm a bundle as the candidate
    Activate    decode with the candidate from the next tick on
    Rollback    decode with the previous decoder again
    SetInput    read another spike stream
    Pause       publish zero velocity, not valid, until resumed
    Resume      decode again
    Arm         decode again, if there are a listener, a live stream and a warm decoder
    SetExcluded decode without these units, and with all others
    GetUnits    list the stream's units
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
from streaming.units import MAX_EXCLUDED
from streaming.wire import messages as wire
from streaming.wire.sockets import BoundSocket, limited

MAX_FRAMES = 100  # frames of a malformed message that are read per tick
QUEUED = 16  # commands that may wait, per peer

MAX_LISTED = 4096  # units in an answer

Text = Annotated[str, msgspec.Meta(max_length=4096)]
UnitIds = Annotated[list[Text], msgspec.Meta(max_length=MAX_EXCLUDED)]


class _Command(msgspec.Struct, frozen=True, tag_field="command", tag=str.lower):
    pass


class Load(_Command, frozen=True):
    path: Text  # path of a bundle on the daemon's host


class Activate(_Command, frozen=True):
    decoder: Text  # id of the candidate: another one is refused


class Rollback(_Command, frozen=True):
    pass


class SetInput(_Command, frozen=True):
    kind: StreamKind
    name: Text | None = None  # None: the only stream of its kind


class Pause(_Command, frozen=True):
    why: Text = ""


class Resume(_Command, frozen=True):
    paused_for: Text | None = None  # resume only if paused for this reason; None: for any


class Arm(_Command, frozen=True):
    pass


class SetFilters(_Command, frozen=True):
    filters: Filters


class SetExcluded(_Command, frozen=True):
    unit_ids: UnitIds  # the whole set; the stream need not have them


class GetStatus(_Command, frozen=True):
    pass


class GetUnits(_Command, frozen=True):
    pass


class Stop(_Command, frozen=True):
    pass


Command = (
    Load
    | Activate
    | Rollback
    | SetInput
    | Pause
    | Resume
    | Arm
    | SetFilters
    | SetExcluded
    | GetStatus
    | GetUnits
    | Stop
)


class Unit(msgspec.Struct, frozen=True, kw_only=True):
    """A unit of the open stream.

    known: whether the decoder in use knows it. fault: its kind in `streaming.faults.Faults`.
    """

    id: str
    known: bool
    excluded: bool
    fault: str | None = None


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to every command: the problem, if there is one, and the current status.

    units, excluded: the open stream's units in its order, and the ids of all excluded ones, if
        they were asked for.
    """

    problem: str | None
    status: wire.Status
    units: list[Unit] | None = None
    excluded: list[str] | None = None


_LOOK_MS = 10  # how often a waiting client checks that the daemon is alive
encode = msgspec.msgpack.Encoder().encode
_decode_command = msgspec.msgpack.Decoder(Command).decode
_decode_reply = msgspec.msgpack.Decoder(Reply).decode


def check_reach(address: str, *, anyone: bool) -> None:
    """Raises SettingsError if other machines can reach `address`, unless `anyone` is true.

    Commands carry no token: anyone who reaches the socket can stop the daemon or load a decoder.
    """
    scheme, _, rest = address.partition("://")
    host = rest.rpartition(":")[0].strip("[]")
    if anyone or scheme in ("ipc", "inproc") or (scheme == "tcp" and _is_loopback(host)):
        return
    raise SettingsError(
        f"control address {address}: other machines could send commands there without a token; "
        "expected tcp://127.0.0.1:PORT or ipc://PATH. On a private network, allow it with "
        "VOLITION_CONTROL_OPEN=true"
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class ControlSocket(BoundSocket):
    """The daemon's end of the control socket.

    anyone: whether other machines may send commands (see `check_reach`).
    Raises SettingsError if the address can't be bound, or if other machines can reach it.
    """

    def __init__(self, address: str, *, anyone: bool = False) -> None:
        check_reach(address, anyone=anyone)
        super().__init__(zmq.REP, address, purpose="take commands", options={zmq.RCVHWM: QUEUED})
        self._n_frames = 0  # frames read so far of the current message

    def receive(self) -> Command | str | None:
        """The next command, an error message if it can't be read, or None if none waits.

        Both a command and an error must be answered with `answer`.
        """
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
        return None  # the next tick reads the other frames

    def answer(self, reply: Reply) -> None:
        """Answer the last command."""
        self._socket.send(encode(reply), zmq.NOBLOCK)


def _command(message: bytes) -> Command | str:
    try:
        command: Command = _decode_command(message)
    except Exception as error:  # not UTF-8, nested too deep, a setting out of range
        return f"not a command of this daemon: {brief(error, 200)}"
    return command


class NoAnswerError(VolitionError):
    """The daemon did not answer in time, or its answer can't be read."""


class ControlClient:
    """The client's end of the control socket: one command at a time, each with a timeout."""

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
        """Send a command and wait for the reply.

        while_it_lives: stop waiting once it returns false, as when the daemon's process has ended.
        Raises NoAnswerError after `timeout_s`; the next command uses a new socket.
        """
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        if self._socket.closed:  # not replaced last time: the process was out of descriptors
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
        except Exception as error:  # another version, or another program on that address
            raise NoAnswerError(
                f"the answer of the daemon on {self.address} can't be read "
                f"({brief(error, 200)}); is it another version?"
            ) from error

    def close(self) -> None:
        """Close the socket."""
        self._context.destroy(linger=0)

    def _connect(self) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = limited(self._context.socket(zmq.REQ))
        socket.setsockopt(zmq.RECONNECT_IVL, _LOOK_MS)  # reconnect at once when the daemon returns
        socket.connect(self.address)
        return socket
