"""ZeroMQ sockets with a size limit, bound at construction and drained at close."""

from __future__ import annotations

from typing import TypeVar

import zmq
import zmq.asyncio

from decoder.errors import SettingsError

LINGER_MS = 200
MAX_MESSAGE = 2**20  # bytes per frame; libzmq disconnects a peer that sends more

Socket = TypeVar("Socket", bound="zmq.Socket[bytes] | zmq.asyncio.Socket")


def limited(socket: Socket, max_bytes: int = MAX_MESSAGE) -> Socket:
    """Limit the size of messages that the socket accepts. Call it before `bind` or `connect`."""
    socket.setsockopt(zmq.MAXMSGSIZE, max_bytes)
    return socket


class BoundSocket:
    """A socket of type `kind`, bound to `address`.

    purpose: for the error, as in "can't <purpose> on <address>". advice: added to the error.
    options: libzmq options, set before the socket is bound.
    Raises SettingsError if the address can't be bound.
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
        """The bound address, with the actual port in place of a wildcard."""
        return str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT))

    def close(self) -> None:
        """Send what is queued, for at most `LINGER_MS`, then close."""
        self._context.destroy(linger=LINGER_MS)
