"""Frames and status onto ZeroMQ: one XPUB socket that never blocks a tick.

For a subscriber that doesn't read, about `BUFFER_S` of frames are kept and later ones are left out:
what it reads when it goes on is not seconds old, as far as the sender can help it. (At a high-water
mark of 1, half of a 1 kHz stream was lost.)

Anybody may subscribe to anything, in any number. Only subscriptions that match a topic of ours are
remembered, and so many are looked at in a tick.
"""

from __future__ import annotations

import math

import zmq

from streaming.wire import messages as wire
from streaming.wire.sockets import BoundSocket

BUFFER_S = 0.1
MIN_BUFFERED = 20  # messages; status and JSON leave beside the frames
SYSTEM_BYTES = 128  # a message, of the system's buffer, which would hold seconds by itself
MAX_SUBSCRIPTION = 1024  # bytes
MAX_CHANGES = 100  # subscriptions looked at in a tick


class Publisher(BoundSocket):
    """Binds `address` and sends. Raises SettingsError where the address can't be bound.

    tick_s: seconds between frames, at least.
    """

    def __init__(self, address: str, *, tick_s: float = 0.001) -> None:
        kept = max(MIN_BUFFERED, math.ceil(BUFFER_S / tick_s))
        super().__init__(
            zmq.XPUB,
            address,
            purpose="publish",
            advice=" Choose another with --address",
            max_bytes=MAX_SUBSCRIPTION,
            options={zmq.SNDHWM: kept, zmq.SNDBUF: kept * SYSTEM_BYTES},
        )
        self._subscriptions: set[bytes] = set()

    def send(self, frame: wire.CursorFrame) -> None:
        """Publish one frame; as JSON too while somebody asks for it."""
        self._send(wire.TOPICS["cursor"].prefix + wire.encode_frame(frame))
        if self._wanted("cursor.json"):
            self._send(wire.TOPICS["cursor.json"].prefix + wire.encode_frame_json(frame))

    def send_status(self, status: wire.Status) -> None:
        """Publish the status."""
        self._send(wire.TOPICS["status"].prefix + wire.encode_frame(status))

    def pass_on(self, message: bytes) -> None:
        """Publish a message that another publisher sent, as it is."""
        self._send(message)

    def see_subscribers(self) -> None:
        """Take note of who came and went; never waits."""
        for _ in range(MAX_CHANGES):
            try:
                message = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            change, topic = message[:1], message[1:]
            if not any(known.prefix.startswith(topic) for known in wire.TOPICS.values()):
                continue
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

    def _send(self, message: bytes) -> None:
        try:
            self._socket.send(message, zmq.NOBLOCK)
        except zmq.Again:  # XPUB drops rather than blocks; a full system buffer is the same
            return
