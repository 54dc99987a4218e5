"""Subscribers for cursor frames and status, for use in a rig.

    with CursorSubscriber(latest_only=True) as cursor:
        while True:
            frame = cursor.receive(timeout_s=0.05)
            move(frame.velocity if frame is not None and frame.valid else (0.0, 0.0))

`latest_only` keeps only the newest frame (ZeroMQ's CONFLATE). Use it for a screen, and for a loop
that may fall behind, so that missed frames are not played late. Without it, every frame arrives in
order. A frame that isn't `valid` has zero velocity. The receiver itself must notice silence, by a
timeout or `is_stale`.

A valid frame that is older than `max_age_s` when it is read is returned as `stale`, with velocity
zero, so that a reader that stalled does not act on old frames. A recorder passes `max_age_s=None`
to get frames as they were sent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Self

import zmq
import zmq.asyncio
from pylsl import local_clock

from streaming.wire import messages as wire
from streaming.wire.sockets import Socket, limited

_CURSOR = wire.TOPICS["cursor"].prefix


MAX_AGE_S = 0.1
DRIFT = 2e-4  # largest drift between the clocks of two hosts


class _ShortestWay:
    """The shortest transit time so far, with an allowance for the drift of the two clocks."""

    def __init__(self) -> None:
        self._shortest = float("inf")
        self._at = 0.0

    def shortest(self, way_s: float, now: float) -> float:
        """The shortest transit so far, with this one: receiver's clock minus sender's, s."""
        self._shortest = min(way_s, self._shortest + DRIFT * (now - self._at))
        self._at = now
        return self._shortest


class _FrameCounter:
    """Counts the frames of both subscribers, their gaps and their ages."""

    def __init__(self, max_age_s: float | None) -> None:
        self.n_frames = 0
        self.n_gaps = 0  # jumps of the sequence number
        self.n_missed = 0  # frames that never arrived
        self.n_restarts = 0  # how often another daemon took over
        self.n_too_old = 0  # valid frames returned as stale because of their age
        self.backlog_s = 0.0  # transit time of the newest frame above the shortest
        self.arrived: float | None = None  # arrival of the newest frame, LSL clock, s
        self._max_age_s = max_age_s
        self._age_s = 0.0  # age of the newest frame on arrival
        self._next_seq: int | None = None
        self._run: float | None = None
        self._ways = _ShortestWay()
        self._caught_up = False

    def is_stale(self, after_s: float = MAX_AGE_S) -> bool:
        """Whether the newest frame is older than `after_s` seconds (True before the first).

        This is the case after silence, and if frames wait unread: a reader that falls behind gets
        old frames without a pause between them. Ages are relative to the shortest transit time,
        so they are right on another host too.
        """
        if self.arrived is None:
            return True
        age_s = local_clock() - self.arrived + self._age_s
        return bool(age_s > after_s)

    def _take(self, message: bytes, *, more_wait: bool) -> wire.CursorFrame:
        self.arrived = local_clock()
        frame = wire.decode_frame(memoryview(message)[len(_CURSOR) :])
        if self._run is not None and frame.started != self._run:
            self.n_restarts += 1
            self._ways, self._caught_up = _ShortestWay(), False
        elif self._next_seq is not None and frame.seq > self._next_seq:
            self.n_gaps += 1
            self.n_missed += frame.seq - self._next_seq
        self._note_age(frame, self.arrived, more_wait=more_wait)
        self._run = frame.started
        self._next_seq = frame.seq + 1
        self.n_frames += 1
        if not frame.valid or self._max_age_s is None or self._age_s <= self._max_age_s:
            return frame
        self.n_too_old += 1
        return wire.silenced(frame)

    def _note_age(self, frame: wire.CursorFrame, now: float, *, more_wait: bool) -> None:
        """Set the age of a frame.

        The shortest transit is known once no frame waits. Until then, the transit time is the age
        if both sides are on one host; on two hosts the age is unknown.
        """
        way_s = now - frame.published
        self.backlog_s = way_s - self._ways.shortest(way_s, now)
        if self._caught_up:
            self._age_s = self.backlog_s
        else:
            self._age_s = way_s if way_s >= 0 else float("inf")
        self._caught_up |= not more_wait


class CursorSubscriber(_FrameCounter):
    """A blocking subscriber for cursor frames.

    latest_only: keep only the newest frame; sequence gaps are then expected.
    max_age_s: return an older valid frame as `stale`; None returns every frame as it is.
    """

    def __init__(
        self,
        address: str = wire.DEFAULT_ADDRESS,
        *,
        latest_only: bool = False,
        max_age_s: float | None = MAX_AGE_S,
    ) -> None:
        super().__init__(max_age_s)
        self._context = zmq.Context()
        self._socket = _subscribe(self._context.socket(zmq.SUB), address, latest_only)

    def receive(self, timeout_s: float | None = None) -> wire.CursorFrame | None:
        """The next frame, or None after `timeout_s` (None: wait indefinitely)."""
        if not self._socket.poll(None if timeout_s is None else max(0, round(timeout_s * 1e3))):
            return None
        return self._take(self._socket.recv(), more_wait=_waits(self._socket))

    def __iter__(self) -> Iterator[wire.CursorFrame]:
        while True:
            frame = self.receive()
            assert frame is not None
            yield frame

    def close(self) -> None:
        """Close the socket."""
        self._context.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AsyncCursorSubscriber(_FrameCounter):
    """A subscriber for asyncio: `async with`, `async for`, `await receive()`."""

    def __init__(
        self,
        address: str = wire.DEFAULT_ADDRESS,
        *,
        latest_only: bool = False,
        max_age_s: float | None = MAX_AGE_S,
    ) -> None:
        super().__init__(max_age_s)
        self._context = zmq.asyncio.Context()
        self._socket = _subscribe(self._context.socket(zmq.SUB), address, latest_only)

    async def receive(self, timeout_s: float | None = None) -> wire.CursorFrame | None:
        """The next frame, or None after `timeout_s` (None: wait indefinitely)."""
        if not await self._socket.poll(
            None if timeout_s is None else max(0, round(timeout_s * 1e3))
        ):
            return None
        return self._take(await self._socket.recv(), more_wait=_waits(self._socket))

    async def __aiter__(self) -> AsyncIterator[wire.CursorFrame]:
        while True:
            frame = await self.receive()
            assert frame is not None
            yield frame

    def close(self) -> None:
        """Close the socket."""
        self._context.destroy(linger=0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class StatusSubscriber:
    """A subscriber for the daemon's `status` messages."""

    def __init__(self, address: str = wire.DEFAULT_ADDRESS) -> None:
        self._context = zmq.Context()
        self._socket = limited(self._context.socket(zmq.SUB))
        self._socket.setsockopt(zmq.SUBSCRIBE, wire.TOPICS["status"].prefix)
        self._socket.connect(address)

    def receive(self, timeout_s: float = 0.0) -> wire.Status | None:
        """The newest waiting status, or None after `timeout_s`."""
        status = None
        wait_ms = max(0, round(timeout_s * 1e3))
        while self._socket.poll(wait_ms):
            payload = self._socket.recv()[len(wire.TOPICS["status"].prefix) :]
            status = wire.decode_status(payload)
            wait_ms = 0
        return status

    def close(self) -> None:
        """Close the socket."""
        self._context.destroy(linger=0)


def _subscribe(socket: Socket, address: str, latest_only: bool) -> Socket:
    if latest_only:
        socket.setsockopt(zmq.CONFLATE, 1)
    socket.setsockopt(zmq.SUBSCRIBE, _CURSOR)
    limited(socket).connect(address)
    return socket


def _waits(socket: zmq.Socket[bytes] | zmq.asyncio.Socket) -> bool:
    """Whether another frame has arrived."""
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
