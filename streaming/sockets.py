"""A ZeroMQ socket that others connect to: bound at construction, drained at close."""

from __future__ import annotations

import zmq

from decoder.errors import SettingsError

LINGER_MS = 200


class BoundSocket:
    """A socket of `kind` bound to `address`. Raises SettingsError where that can't be.

    purpose: what it is for, as in "can't <purpose> on <address>". advice: what else to do.
    """

    def __init__(self, kind: int, address: str, *, purpose: str, advice: str = "") -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(kind)
        self._socket.setsockopt(zmq.LINGER, LINGER_MS)
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
