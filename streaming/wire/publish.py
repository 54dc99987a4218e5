"""Publishes frames and status on a ZeroMQ XPUB socket, without ever blocking a tick.

For a subscriber that doesn't read, about `BUFFER_S` of frames are queued and later ones are
dropped. When it reads again, its frames are not seconds old. (A high-water mark of 1 lost half of
the frames at 1 kHz.)

Subscriptions are bounded: only those that match one of the daemon's topics are stored, and at most
`MAX_CHANGES` are processed per tick.
"""

from __future__ import annotations

import math

import zmq

from streaming.wire import messages as wire
from streaming.wire.sockets import BoundSocket

BUFFER_S = 0.1
MIN_BUFFERED = 20  # messages; status and JSON share the queue with the frames
SYSTEM_BYTES = 128  # system buffer per message; the default buffer would hold seconds of frames
MAX_SUBSCRIPTION = 1024  # bytes
MAX_CHANGES = 100  # subscriptions processed per tick


class Publisher(BoundSocket):
    """Binds `address` and publishes.

    tick_s: least time between frames, s.
    Raises SettingsError if the address can't be bound.
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
        """Publish one frame, and its JSON form if anyone subscribes to that."""
        self._send(wire.TOPICS["cursor"].prefix + wire.encode_frame(frame))
        if self._wanted("cursor.json"):
            self._send(wire.TOPICS["cursor.json"].prefix + wire.encode_frame_json(frame))

    def send_status(self, status: wire.Status) -> None:
        """Publish the status."""
        self._send(wire.TOPICS["status"].prefix + wire.encode_frame(status))

    def send_spikes(self, spikes: wire.Spikes) -> None:
        """Publish the spikes of an interval."""
        self._send(wire.TOPICS["spikes"].prefix + wire.encode_frame(spikes))

    def pass_on(self, message: bytes) -> None:
        """Publish a message of another publisher unchanged."""
        self._send(message)

    def see_subscribers(self) -> None:
        """Process new subscriptions; never blocks."""
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
        """Whether anyone subscribes to cursor frames, as msgpack or JSON."""
        return self._wanted("cursor") or self._wanted("cursor.json")

    @property
    def shows_spikes(self) -> bool:
        """Whether anyone subscribes to spikes."""
        return self._wanted("spikes")

    def _wanted(self, topic: str) -> bool:
        prefix = wire.TOPICS[topic].prefix
        return any(prefix.startswith(subscription) for subscription in self._subscriptions)

    def _send(self, message: bytes) -> None:
        try:
            self._socket.send(message, zmq.NOBLOCK)
        except zmq.Again:  # XPUB drops instead of blocking, except on a full system buffer
            return
