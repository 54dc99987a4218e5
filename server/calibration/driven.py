"""Detects when the daemon moved the cursor while kinematics were recorded, and undoes the gain.

In closed loop the cursor moves at the filtered velocity: with a gain of 0.4, at 0.4 of the decoded
velocity. A decoder trained on that velocity would go through the gain a second time. So frames and
filter settings are recorded with the data. Where the cursor followed the frames, its velocity is
divided by the gain, which gives the velocity that a decoder should produce.

Smoothing, dead zone and limits are not undone: they don't scale a steady movement and have no
inverse. The daemon must publish on this host's clock.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Self, TextIO

import numpy as np
import zmq
from numpy.typing import NDArray

from decoder.arrays import Bools, Floats
from decoder.errors import SessionError, StreamError
from decoder.filters import Filters
from streaming.sessions.session import Session
from streaming.wire import messages as wire

FRAME = np.dtype([("time", "<f8"), ("velocity", "<f8", (2,))])
FRAMES_FILE, FILTERS_FILE = "frames.bin", "filters.jsonl"
MOVING = 0.1  # of the 90th percentile of speed; slower samples are ignored
LONGEST_WAY_S = 0.2  # maximum delay from a frame's publication to the cursor's velocity
LAG_STEP_S = 0.01
BLOCK_S = 1.0  # each block counts as driven by the daemon or not
ALIKE, MOST = 0.25, 0.75  # relative error, and the share of moving samples that must be within it
_CURSOR, _STATUS = (wire.TOPICS[name].prefix for name in ("cursor", "status"))


@dataclass(frozen=True, kw_only=True)
class Driving:
    """The daemon's output while data were recorded.

    times (n,): publication times of frames, s. velocity (n, 2): m/s, zero if not valid.
    gain_times (m,), gains (m,): the output filters' gain from each time on.
    """

    times: Floats
    velocity: Floats
    gain_times: Floats
    gains: Floats

    def gain_at(self, times: Floats) -> Floats:
        """The gain (n,) at each time; before the first known gain, that one."""
        if len(self.gains) == 0:
            return np.ones(len(times))
        index = np.searchsorted(self.gain_times, times, side="right") - 1
        return np.asarray(self.gains[np.maximum(index, 0)])

    def drove(self, times: Floats, velocity: Floats) -> Bools:
        """A mask (n,) of the cursor samples that followed the frames; velocity is (n, 2)."""
        driven = np.zeros(len(times), dtype=bool)
        if len(times) == 0 or len(self.times) == 0:
            return driven
        speed = np.linalg.norm(velocity, axis=1)
        moving = _moving(speed)
        lags = np.arange(0.0, LONGEST_WAY_S + LAG_STEP_S / 2, LAG_STEP_S)
        follows = [moving & self._alike(times - lag, velocity, speed) for lag in lags]
        best = follows[int(np.argmax([f.sum() for f in follows]))]
        block = ((times - times[0]) / BLOCK_S).astype(np.int64)
        n_moving = np.bincount(block, weights=moving)
        n_following = np.bincount(block, weights=best)
        return np.asarray(((n_moving > 0) & (n_following >= MOST * n_moving))[block])

    def share_of(self, times: Floats, velocity: Floats) -> float:
        """The share of the moving samples that followed the frames; velocity is (n, 2)."""
        moving = _moving(np.linalg.norm(velocity, axis=1))
        driven = self.drove(times, velocity)
        return float((driven & moving).sum() / max(1, moving.sum()))

    def _alike(self, at: Floats, velocity: Floats, speed: Floats) -> Bools:
        """A mask (n,): the newest frame at times `at` (n,) is close to `velocity` (n, 2)."""
        index = np.searchsorted(self.times, at, side="right") - 1
        error = np.linalg.norm(velocity - self.velocity[np.maximum(index, 0)], axis=1)
        return np.asarray((index >= 0) & (error <= ALIKE * speed))


def _moving(speed: Floats) -> Bools:
    return np.asarray(speed > MOVING * float(np.percentile(speed, 90)))


def before_filters(session: Session, driving: Driving) -> Session:
    """The session with the velocity before the gain, where the daemon moved the cursor."""
    driven = driving.drove(session.cursor_times, session.cursor_vel)
    gain = driving.gain_at(session.cursor_times)
    changed = driven & (gain > 0) & (gain != 1.0)
    if not changed.any():
        return session
    factor = np.where(changed, 1.0 / np.where(gain > 0, gain, 1.0), 1.0)
    gains = ", ".join(f"{g:g}" for g in np.unique(gain[changed]))
    note = (
        f"{changed.mean():.0%} of the velocity samples were the decoder's own output at gain "
        f"{gains} and were divided by it"
    )
    return replace(
        session, cursor_vel=session.cursor_vel * factor[:, None], notes=(*session.notes, note)
    )


class DaemonFrames:
    """Receives the frames and filter settings of the daemon that publishes on an address, if any.

    Its subscription does not count as a listening rig when the daemon is armed.
    """

    def __init__(self, address: str | None) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        for prefix in (wire.OBSERVED_CURSOR, _STATUS):
            self._socket.setsockopt(zmq.SUBSCRIBE, prefix)
        if address is not None:
            self._socket.connect(address.replace("*", "127.0.0.1").replace("0.0.0.0", "127.0.0.1"))
        self._filters: Filters | None = None

    def drain(self) -> tuple[NDArray[np.void], list[tuple[float, Filters]]]:
        """Frames (n,) of `FRAME` and filter changes since the last call. Never blocks."""
        frames: list[tuple[float, tuple[float, float]]] = []
        changes: list[tuple[float, Filters]] = []
        while True:
            try:
                message = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return np.array(frames, dtype=FRAME), changes
            try:
                if message.startswith(_CURSOR):
                    frame = wire.decode_frame(message[len(_CURSOR) :])
                    frames.append((frame.published, frame.velocity))
                else:
                    status = wire.decode_status(message[len(_STATUS) :])
                    if status.filters != self._filters:
                        self._filters = status.filters
                        changes.append((status.started + status.uptime_s, status.filters))
            except StreamError:
                continue  # from a daemon of another version; ignored

    def close(self) -> None:
        """Close the socket."""
        self._context.destroy(linger=0)


class DaemonLog:
    """Records the daemon's output next to a recording; a resumed recording appends to it."""

    def __init__(self, folder: Path, address: str | None) -> None:
        self._frames: BinaryIO = (folder / FRAMES_FILE).open("ab")
        self._filters: TextIO = (folder / FILTERS_FILE).open("a")
        self._daemon = DaemonFrames(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.poll()
        for file in (self._frames, self._filters):
            file.flush()
            os.fsync(file.fileno())
            file.close()
        self._daemon.close()

    def poll(self) -> None:
        """Write everything received since the last call: a killed collector leaves it on disk.

        Raises OSError if the disk fails.
        """
        frames, changes = self._daemon.drain()
        self._frames.write(frames.tobytes())
        for at, filters in changes:
            self._filters.write(json.dumps({"time": at, **vars(filters)}) + "\n")
        self._frames.flush()
        self._filters.flush()


def read_driving(folder: Path) -> Driving:
    """Read the files of a `DaemonLog`, complete or cut short; empty if there are none."""
    try:
        content = (folder / FRAMES_FILE).read_bytes()
        lines = (folder / FILTERS_FILE).read_text().splitlines()
    except FileNotFoundError:
        content, lines = b"", []
    except OSError as error:
        raise SessionError(f"{folder}: can't be read ({error})") from error
    frames = np.frombuffer(content[: len(content) // FRAME.itemsize * FRAME.itemsize], FRAME)
    frames = frames[np.argsort(frames["time"], kind="stable")]
    gains = []
    for line in lines:
        try:
            change = json.loads(line)
        except json.JSONDecodeError:
            break  # cut short
        gains.append((float(change["time"]), float(change["gain"])))
    known = np.array(gains, dtype=np.float64).reshape(-1, 2)
    return Driving(
        times=frames["time"].astype(np.float64),
        velocity=frames["velocity"].astype(np.float64),
        gain_times=known[:, 0],
        gains=known[:, 1],
    )
