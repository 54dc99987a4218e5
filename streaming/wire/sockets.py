"""ZeroMQ sockets: bound at construction, drained at close, and no peer sends too much to one."""

from __future__ import annotations

from typing import TypeVar

import zmq
import zmq.asyncio

from decoder.errors import SettingsError

LINGER_MS = 200
MAX_MESSAGE = 2**20  # bytes of a frame; libzmq drops the connection of a peer that sends more

Socket = TypeVar("Socket", bound="zmq.Socket[bytes] | zmq.asyncio.Socket")


def limited(socket: Socket, max_bytes: int = MAX_MESSAGE) -> Socket:
    """The socket, before it is bound or connected, so that it takes no larger message."""
    socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
    return socket


class BoundSocket:
    """A socket of `kind` bound to `address`. Raises SettingsError where that can't be.

    purpose: what it is for, as in "can't <purpose> on <address>". advice: what else to do.
    options: of libzmq, set before it is bound.
    """

    def __init__(
        self,
        kind: int,
        address: str,
        *,
        purpose: str,
        advice: str = "",
        max_bytes: int = MAX_MESSAGE,
        options: dict[int, int] | None = None,
    ) -> None:
        self._context = zmq.Context()
        self._socket = limited(self._context.socket(kind), max_bytes)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
        for option, value in (options or {}).items():
            self._socket.setsockopt(option, value)
        try:
            self._socket.bind(address)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise SettingsError(
                f"can't {purpose} on {address} ({error.strerror}); is another daemon running?"
                + advice
            ) from error

    @property
    def bound_to(self) -> str:
        """The address bound, with the real port where a wildcard was asked for."""
        return str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT))

    def close(self) -> None:
        """Send what is queued, then close."""
        self._context.destroy(linger=LINGER_MS)
