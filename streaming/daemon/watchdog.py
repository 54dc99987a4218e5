"""Relays the daemon's frames to the rig, and stops the cursor if the daemon falls silent.

    volition watchdog --address tcp://127.0.0.1:5556 --publish tcp://127.0.0.1:5558

The watchdog passes on cursor frames and the status. If no frame arrives for `after_s` (longer than
the daemon's tick), because the daemon died or hangs, it publishes its own frames, one per tick:
velocity zero, `valid` false, state `fault`. It stops when the daemon's frames return. It runs in
its own process, so that a failure of the daemon doesn't affect it.

It subscribes to frames only while it has a subscriber: the daemon is armed only if something
listens to its frames.

A frame that arrives long after it was sent is not a sign of life, and is passed on as invalid. A
frame that can't be read, as from another version of the daemon, counts as missing.
"""

from __future__ import annotations

import logging
import time

import zmq
from pylsl import local_clock

from decoder.errors import StreamError
from streaming.signals import stop_on_signal
from streaming.wire import messages as wire
from streaming.wire.publish import Publisher
from streaming.wire.sockets import limited
from streaming.wire.states import NEVER, State

log = logging.getLogger("volition.watchdog")

CURSOR = wire.TOPICS["cursor"].prefix
STATUS = wire.TOPICS["status"].prefix
WATCHDOG = "watchdog"  # session and decoder in its frames before the daemon's first frame


class Watchdog:
    """Passes frames on from `address` to `publish`.

    after_s: time without a frame after which it publishes its own. tick_s: time between those.
    Raises SettingsError if `publish` can't be bound.
    """

    def __init__(
        self, address: str, publish: str, *, after_s: float = 0.05, tick_s: float = 0.01
    ) -> None:
        self.publisher = Publisher(publish)
        self.should_stop = False
        self.n_passed = self.n_own = 0
        self._after_s, self._tick_s = after_s, tick_s
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = limited(self._context.socket(zmq.SUB))
        self._socket.connect(address)
        self._socket.subscribe(STATUS)
        self._is_subscribed = False
        self._started = local_clock()
        self._last: wire.CursorFrame | None = None
        self._last_heard = time.monotonic()
        self._unreadable: str | None = None  # why the last frame could not be read, if so
        self._stopping = False

    def serve(self) -> None:
        """Run until SIGINT, SIGTERM or `should_stop`, then publish a last stop frame."""
        with stop_on_signal(self):
            try:
                while not self.should_stop:
                    self.step()
            finally:
                self._send_stop()
                self.publisher.close()
                self._context.destroy(linger=0)

    def step(self) -> None:
        """Pass on messages for up to one tick; publish a stop frame after too long a silence."""
        if self._socket.poll(round(1e3 * self._tick_s)):
            self._pass_on(self._socket.recv())
        self.publisher.see_subscribers()
        if self._is_subscribed != self.publisher.has_listener:
            self._is_subscribed = self.publisher.has_listener
            (self._socket.subscribe if self._is_subscribed else self._socket.unsubscribe)(CURSOR)
        silent_s = time.monotonic() - self._last_heard
        if silent_s <= self._after_s:
            return
        if not self._stopping:
            why = self._unreadable or f"no frame for {1e3 * silent_s:.0f} ms"
            log.warning("%s: stopping the cursor", why)
            self._stopping = True
        self._send_stop()

    def _pass_on(self, message: bytes) -> None:
        if message.startswith(STATUS):
            self.publisher.pass_on(message)
            return
        try:
            frame = wire.decode_frame(message[len(CURSOR) :])
        except StreamError as error:
            self._last_heard, self._unreadable = NEVER, str(error)
            return
        if local_clock() - frame.published > self._after_s:  # it was delayed in a buffer
            frame = wire.silenced(frame) if frame.valid else frame
        else:
            self._last_heard, self._unreadable = time.monotonic(), None
            if self._stopping:
                log.info("frames are back")
                self._stopping = False
        self._last = frame
        self.publisher.send(frame)
        self.n_passed += 1

    def _send_stop(self) -> None:
        now, last = local_clock(), self._last
        self.publisher.send(
            wire.cursor_frame(
                State.FAULT,
                started=self._started,
                seq=self.n_own,
                session=last.session if last else WATCHDOG,
                decoder=last.decoder if last else WATCHDOG,
                window_end=now,
                published=now,
                newest_spike=last.newest_spike if last else None,
                n_drained=last.n_drained if last else 0,
                clock_offset=last.clock_offset if last else 0.0,
            )
        )
        self.n_own += 1
