"""Reads the daemon's topics and the kinematics, and gives every page what is new, at 30 Hz.

Nothing runs while nobody watches. The last second is kept, once for all pages. A page that fetches
late gets what it missed in one picture; what is older than a second is dropped. So a slow browser
sees the newest state, and the server's memory does not grow.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pylsl
import zmq

from decoder.arrays import Floats
from decoder.errors import StreamError, VolitionError
from server.dashboard.picture import Moment, picture
from streaming.columns import COLUMNS
from streaming.inlets.connector import Connector
from streaming.inlets.kinematics import KINEMATICS, KinematicsInlet
from streaming.inlets.search import Query
from streaming.wire import messages as wire
from streaming.wire.sockets import limited

log = logging.getLogger("volition.server")

PICTURE_S = 1 / 30
STATUS_EVERY_S = 0.5
MOST_VIEWERS = 16
MOST_MESSAGES = 5000  # read for one picture; what comes later is in the next one
QUEUED = 2000  # messages that wait for the server, at most
KEPT = 30  # moments: a second


class Feed:
    """Pictures for any number of viewers.

    address: where the daemon publishes. status: the server's status as JSON, for people.
    """

    def __init__(self, address: str, status: Callable[[], bytes]) -> None:
        self._address, self._status = reachable(address), status
        self._viewers: set[Viewer] = set()
        self._task: asyncio.Task[None] | None = None
        self._moments: deque[Moment] = deque(maxlen=KEPT)
        self._n_moments = 0
        self._pictures: dict[int, bytes] = {}  # of the newest moment and so many before it
        self._status_due = True

    @contextlib.contextmanager
    def viewer(self) -> Iterator[Viewer]:
        """A viewer, for the `with` block. Raises VolitionError if there are too many."""
        if len(self._viewers) >= MOST_VIEWERS:
            raise VolitionError(f"{MOST_VIEWERS} pages are open already; close one of them")
        viewer = Viewer(self, self._n_moments)
        self._viewers.add(viewer)
        self._status_due = True  # a new page shows it at once
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())
        try:
            yield viewer
        finally:
            self._viewers.discard(viewer)

    def since(self, number: int) -> tuple[bytes, int]:
        """The picture of what followed moment `number`, and the number of the newest moment."""
        n = min(max(1, self._n_moments - number), len(self._moments))
        if n not in self._pictures:
            self._pictures[n] = picture(list(self._moments)[-n:])
        return self._pictures[n], self._n_moments

    async def _run(self) -> None:
        """Collect a moment at every deadline until nobody watches."""
        loop = asyncio.get_running_loop()
        with contextlib.closing(_Source(self._address)) as source:
            due, status_at = loop.time(), 0.0
            while self._viewers:
                server = None
                try:
                    if self._status_due or loop.time() >= status_at:
                        self._status_due, status_at = False, loop.time() + STATUS_EVERY_S
                        server = await asyncio.to_thread(self._status)
                    self._moments.append(source.take(server))
                except Exception:  # the next moment may be fine
                    log.exception("no picture for the dashboard")
                else:
                    self._n_moments += 1
                    self._pictures.clear()
                    for viewer in self._viewers:
                        viewer.arrived.set()
                due = max(due + PICTURE_S, loop.time())
                await asyncio.sleep(due - loop.time())
        self._moments.clear()


class Viewer:
    """One page. seen: number of the newest moment that it has fetched."""

    def __init__(self, feed: Feed, seen: int) -> None:
        self.arrived = asyncio.Event()
        self.seen = seen
        self._feed = feed

    async def next(self) -> bytes:
        """The picture of what is new; waits for it."""
        await self.arrived.wait()
        self.arrived.clear()
        message, self.seen = self._feed.since(self.seen)
        return message


class _Source:
    """The daemon's messages and the kinematics since the last picture."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket = limited(self._context.socket(zmq.SUB))
        self._socket.setsockopt(zmq.RCVHWM, QUEUED)
        for prefix in (wire.OBSERVED_CURSOR, wire.TOPICS["spikes"].prefix):
            self._socket.subscribe(prefix)
        self._socket.connect(address)
        self._connector = Connector(Query(kind=KINEMATICS), KinematicsInlet)
        self._connector.start()
        self._inlet: KinematicsInlet | None = None
        self._newest: wire.CursorFrame | None = None
        self._arrived = -np.inf
        self._problem = ""

    def close(self) -> None:
        """Close the socket now and the inlet in its thread, which may take seconds."""
        self._context.destroy(linger=0)
        if self._inlet is not None:
            self._connector.leave(self._inlet)
        threading.Thread(target=self._connector.stop, daemon=True).start()

    def take(self, server: bytes | None) -> Moment:
        """What has arrived since the last call. server: the server's status, if it is due."""
        now = pylsl.local_clock()
        frames, spikes = self._messages()
        if frames:
            self._newest, self._arrived = frames[-1], now
        moved_at, moved = self._kinematics(now)
        return Moment(
            now=now,
            header={
                "problem": self._problem,
                "frame": self._frame(now),
                "kinematics": self._inlet.name if self._inlet else None,
                "kinematics_problem": self._connector.problem,
            },
            server=server,
            frames=frames,
            spikes=spikes,
            moved_at=moved_at,
            moved=moved,
        )

    def _frame(self, now: float) -> dict[str, Any] | None:
        """The newest frame and how long ago it arrived."""
        if (newest := self._newest) is None:
            return None
        return {
            "state": newest.state,
            "valid": newest.valid,
            "decoder": newest.decoder,
            "n_spikes": newest.n_spikes,
            "age_s": round(now - self._arrived, 4),
        }

    def _messages(self) -> tuple[list[wire.CursorFrame], list[wire.Spikes]]:
        frames: list[wire.CursorFrame] = []
        spikes: list[wire.Spikes] = []
        for _ in range(MOST_MESSAGES):
            try:
                message = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            topic, _, payload = message.partition(b":")
            try:
                if topic == b"cursor":
                    frames.append(wire.decode_frame(payload))
                else:
                    spikes.append(wire.decode_spikes(payload))
                self._problem = ""
            except StreamError as error:  # a daemon of another version
                self._problem = str(error)
        return frames, spikes

    def _kinematics(self, now: float) -> tuple[Floats, Floats]:
        """The new samples; a lost stream is searched for again, and is not an error."""
        opened = self._connector.tend(self._inlet, now)
        if opened is not None:
            self._leave()
            self._inlet = opened
        if self._inlet is not None:
            try:
                return self._inlet.drain(now)
            except (StreamError, RuntimeError):
                self._leave()
        return np.empty(0), np.empty((0, len(COLUMNS)))

    def _leave(self) -> None:
        if self._inlet is not None:
            self._connector.leave(self._inlet)
            self._inlet = None


def reachable(address: str) -> str:
    """An address to connect to, for one that a daemon on this host binds."""
    for anywhere in ("*", "0.0.0.0", "[::]"):
        address = address.replace(f"//{anywhere}:", "//127.0.0.1:")
    return address
