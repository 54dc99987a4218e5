"""Stands between the daemon and the rig, and says stop when the daemon can't.

    volition watchdog --address tcp://127.0.0.1:5556 --publish tcp://127.0.0.1:5558

Cursor frames and the status are passed on. When no frame has come for `after_s` (longer than the
daemon's tick), as when the daemon died or hangs, it publishes frames of its own: velocity zero,
`valid` false, state `fault`, one a tick, until the daemon's come again. A process of its own, so
that what stops the daemon doesn't stop it. It listens while somebody listens to it: a daemon is
armed only where frames are wanted.

A frame that was sent long before it arrives is no sign of life, and is passed on as invalid. One
that can't be read, as of a daemon of another version, counts as none.
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

ZERO = (0.0, 0.0)
CURSOR = wire.TOPICS["cursor"].prefix
STATUS = wire.TOPICS["status"].prefix
WATCHDOG = "watchdog"  # decoder of its frames, where none was seen


class Watchdog:
    """Passes frames on from one address to another.

    after_s: without a frame, until it speaks itself. tick_s: between its own frames.
    Raises SettingsError where `publish` can't be bound.
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
        self._listens = False
        self._started = local_clock()
        self._last: wire.CursorFrame | None = None
        self._heard_at = time.monotonic()
        self._unreadable: str | None = None  # why the last frame could not be read
        self._speaking = False

    def serve(self) -> None:
        """Until SIGINT or SIGTERM (or `should_stop`); a last frame says stop."""
        with stop_on_signal(self):
            try:
                while not self.should_stop:
                    self.step()
            finally:
                self._speak()
                self.publisher.close()
                self._context.destroy(linger=0)

    def step(self) -> None:
        """Pass on what comes within a tick; speak where nothing has come for too long."""
        if self._socket.poll(round(1e3 * self._tick_s)):
            self._pass_on(self._socket.recv())
        self.publisher.see_subscribers()
        if self._listens != self.publisher.has_listener:
            self._listens = self.publisher.has_listener
            (self._socket.subscribe if self._listens else self._socket.unsubscribe)(CURSOR)
        silent_s = time.monotonic() - self._heard_at
        if silent_s <= self._after_s:
            return
        if not self._speaking:
            why = self._unreadable or f"no frame for {1e3 * silent_s:.0f} ms"
            log.warning("%s: the cursor is told to stop", why)
            self._speaking = True
        self._speak()

    def _pass_on(self, message: bytes) -> None:
        if message.startswith(STATUS):
            self.publisher.pass_on(message)
            return
        try:
            frame = wire.decode_frame(message[len(CURSOR) :])
        except StreamError as error:
            self._heard_at, self._unreadable = NEVER, str(error)
            return
        if local_clock() - frame.published > self._after_s:  # it waited in a buffer
            frame = wire.silenced(frame) if frame.valid else frame
        else:
            self._heard_at, self._unreadable = time.monotonic(), None
            if self._speaking:
                log.info("frames come again")
                self._speaking = False
        self._last = frame
        self.publisher.send(frame)
        self.n_passed += 1

    def _speak(self) -> None:
        now, last = local_clock(), self._last
        self.publisher.send(
            wire.CursorFrame(
                schema=wire.SCHEMA_VERSION,
                started=self._started,
                seq=self.n_own,
                session=last.session if last else WATCHDOG,
                decoder=last.decoder if last else WATCHDOG,
                state=State.FAULT.value,
                valid=False,
                window_end=now,
                newest_spike=last.newest_spike if last else None,
                decode_ms=0.0,
                published=now,
                velocity=ZERO,
                n_spikes=0,
                n_drained=last.n_drained if last else 0,
                clock_offset=last.clock_offset if last else 0.0,
                latency_ms=0.0,
            )
        )
        self.n_own += 1
