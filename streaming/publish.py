"""Frames and status onto ZeroMQ: one XPUB socket that never blocks a tick.

The high-water mark stays at its default (at 1, half of a 1 kHz stream was lost); whoever wants
only the newest frame says so on their side (CONFLATE).
"""

from __future__ import annotations

import zmq

from streaming import wire
from streaming.sockets import BoundSocket


class Publisher(BoundSocket):
    """Binds `address` and sends. Raises SettingsError where the address can't be bound."""

    def __init__(self, address: str) -> None:
        super().__init__(
            zmq.XPUB, address, purpose="publish", advice=" Choose another with --address"
        )
        self._subscriptions: set[bytes] = set()

    def send(self, frame: wire.CursorFrame) -> None:
        """Publish one frame; as JSON too while somebody asks for it."""
        self._send("cursor", wire.encode_frame(frame))
        if self._wanted("cursor.json"):
            self._send("cursor.json", wire.encode_frame_json(frame))

    def send_status(self, status: wire.Status) -> None:
        """Publish the status."""
        self._send("status", wire.encode_frame(status))

    def see_subscribers(self) -> None:
        """Take note of who came and went; never waits."""
        while True:
            try:
                message = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            change, topic = message[:1], message[1:]
            if change == b"\x01":
                self._subscriptions.add(topic)
            elif change == b"\x00":
                self._subscriptions.discard(topic)

    @property
    def has_listener(self) -> bool:
        """Whether somebody subscribes to cursor frames, in either form."""
        return self._wanted("cursor") or self._wanted("cursor.json")

    def _wanted(self, topic: str) -> bool:
        prefix = wire.TOPICS[topic].prefix
        return any(prefix.startswith(subscription) for subscription in self._subscriptions)

    def _send(self, topic: str, payload: bytes) -> None:
        try:
            self._socket.send(wire.TOPICS[topic].prefix + payload, zmq.NOBLOCK)
        except zmq.Again:  # XPUB drops rather than blocks; a full system buffer is the same
            return
