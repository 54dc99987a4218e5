"""Limits on connections: how many may be open, and how long a request may take to arrive.

A client that opens connections and sends nothing, or sends a request byte by byte, holds a file
descriptor for each. The supervisor needs descriptors to start a daemon, and an operator must always
be able to pause. So when the limit is reached, the connection that has waited longest for its
request is closed.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 10.0  # from opening a connection, or the end of its last response, to a whole request
MOST_CONNECTIONS = 256
MOST_WAITING = 128  # in the accept queue, which the loop empties at once


def most_connections() -> int:
    """At most a quarter of this process's file descriptors."""
    return min(MOST_CONNECTIONS, max(8, _descriptors() // 4))


def most_waiting() -> int:
    """At most an eighth of this process's file descriptors."""
    return min(MOST_WAITING, max(8, _descriptors() // 8))


def _descriptors() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS * 4 if soft == resource.RLIM_INFINITY else soft


class ImpatientProtocol(H11Protocol):
    """uvicorn's HTTP protocol with a deadline for requests and a limit on connections."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._timer: asyncio.TimerHandle | None = None
        self.waits_since: float | None = None  # s on the loop's clock

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection; close another one if there are too many."""
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > most_connections():
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """Receive more of a request."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Start the deadline of the next request."""
        super().on_response_complete()
        self._stop_watch()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop the deadline."""
        self._stop_watch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Run the deadline while a request is incomplete, and stop it otherwise."""
        if self.transport.is_closing() or self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._stop_watch()
        elif self._timer is None:
            self.waits_since = self.loop.time()
            self._timer = self.loop.call_later(REQUEST_S, self.transport.abort)

    def _stop_watch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.waits_since = None

    def _make_room(self) -> None:
        waiting = [
            other
            for other in self.connections
            if isinstance(other, ImpatientProtocol) and other.waits_since is not None
        ]
        longest = min(waiting, key=lambda other: other.waits_since or 0.0, default=self)
        self.connections.discard(longest)
        longest.transport.abort()
