"""Cursor frames as a rig receives them.

    with CursorSubscriber(latest_only=True) as cursor:
        while True:
            frame = cursor.receive(timeout_s=0.05)
            move(frame.velocity if frame is not None and frame.valid else (0.0, 0.0))

`latest_only` keeps one frame (ZeroMQ's CONFLATE): right for a screen that draws when it can,
and for a loop that may fall behind, since what was missed is not played late. Without it every
frame arrives in order. A frame that isn't `valid` carries zero velocity; silence is for the
receiver to notice (a timeout, or `is_stale`).

A valid frame that is older than `max_age_s` when it is read comes as `stale`, with velocity zero.
So a reader that stalled does not move by what was decoded meanwhile. A recorder, which wants
frames as they were sent, passes `max_age_s=None`.
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
DRIFT = 2e-4  # between two hosts' clocks, at most


class _ShortestWay:
    """The quickest frame's way: a later frame took that much longer. Hosts' clocks drift apart."""

    def __init__(self) -> None:
        self._shortest = float("inf")
        self._at = 0.0

    def shortest(self, way_s: float, now: float) -> float:
        """The shortest way so far, this one included: receiver's clock less the sender's, s."""
        self._shortest = min(way_s, self._shortest + DRIFT * (now - self._at))
        self._at = now
        return self._shortest


class _FrameCounter:
    """What both subscribers know about the frames that came: order, gaps, age."""

    def __init__(self, max_age_s: float | None) -> None:
        self.n_frames = 0
        self.n_gaps = 0  # places where sequence numbers jump
        self.n_missed = 0  # frames that never came
        self.n_restarts = 0  # times another daemon took over
        self.n_too_old = 0  # valid frames that came as stale because of their age
        self.backlog_s = 0.0  # how much later than the quickest frame the newest came
        self.arrived: float | None = None  # LSL clock, s, of the newest frame
        self._max_age_s = max_age_s
        self._age_s = 0.0  # of the newest frame when it came
        self._next_seq: int | None = None
        self._run: float | None = None
        self._ways = _ShortestWay()
        self._caught_up = False

    def is_stale(self, after_s: float = MAX_AGE_S) -> bool:
        """Whether the newest frame is older than `after_s` seconds (True before the first).

        It is when none came for so long, and when frames wait unread: a reader that falls
        behind gets old frames without a pause between them. Ages count from the quickest
        frame's way, so they hold on another host too, as far as its clock runs alike.
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
        """The quickest frame's way is known once none waits. Before, a frame's way is its age if
        both sides are on one host, and nobody knows what it is if they aren't."""
        way_s = now - frame.published
        self.backlog_s = way_s - self._ways.shortest(way_s, now)
        if self._caught_up:
            self._age_s = self.backlog_s
        else:
            self._age_s = way_s if way_s >= 0 else float("inf")
        self._caught_up |= not more_wait


class CursorSubscriber(_FrameCounter):
    """Frames from a daemon, blocking.

    latest_only: keep the newest frame only; sequence gaps are then expected.
    max_age_s: an older valid frame comes as `stale`; None takes every frame as it is.
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
        """The next frame, or None where none comes within `timeout_s` (None: wait for ever)."""
        if not self._socket.poll(None if timeout_s is None else max(0, round(timeout_s * 1e3))):
            return None
        return self._take(self._socket.recv(), more_wait=_waits(self._socket))

    def __iter__(self) -> Iterator[wire.CursorFrame]:
        while True:
            frame = self.receive()
            assert frame is not None
            yield frame

    def close(self) -> None:
        """Stop listening."""
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
    """Frames from a daemon, for asyncio: `async with`, `async for`, `await receive()`."""

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
        """The next frame, or None where none comes within `timeout_s` (None: wait for ever)."""
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
        """Stop listening."""
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
    """The daemon's `status` messages; the newest is enough."""

    def __init__(self, address: str = wire.DEFAULT_ADDRESS) -> None:
        self._context = zmq.Context()
        self._socket = limited(self._context.socket(zmq.SUB))
        self._socket.setsockopt(zmq.SUBSCRIBE, wire.TOPICS["status"].prefix)
        self._socket.connect(address)

    def receive(self, timeout_s: float = 0.0) -> wire.Status | None:
        """The newest status that waits, or None after `timeout_s`."""
        status = None
        wait_ms = max(0, round(timeout_s * 1e3))
        while self._socket.poll(wait_ms):
            payload = self._socket.recv()[len(wire.TOPICS["status"].prefix) :]
            status = wire.decode_status(payload)
            wait_ms = 0
        return status

    def close(self) -> None:
        """Stop listening."""
        self._context.destroy(linger=0)


def _subscribe(socket: Socket, address: str, latest_only: bool) -> Socket:
    if latest_only:
        socket.setsockopt(zmq.CONFLATE, 1)
    socket.setsockopt(zmq.SUBSCRIBE, _CURSOR)
    limited(socket).connect(address)
    return socket


def _waits(socket: zmq.Socket[bytes] | zmq.asyncio.Socket) -> bool:
    """Whether another frame waits."""
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
