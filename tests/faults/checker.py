"""Subscribes to all frames of a rig and checks the rules that every frame must keep.

The senders log their data before sending them, so the checker knows when spikes with usable stamps
were sent. A valid frame without such spikes breaks a rule, whichever process published it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import pairwise
from math import hypot, isfinite

import numpy as np
import zmq
from pylsl import local_clock

from decoder.errors import StreamError
from streaming.wire import messages as wire
from tests.faults.sender import SENT

STALE_S = 0.25
PLAUSIBLE_M_S = 5.0
SLACK_S = 0.02  # a tick plus the difference between two clock readings
JUMP_S = 0.005
PREFIX = wire.TOPICS["cursor"].prefix
Span = tuple[float, float]  # LSL clock, s


class Checker:
    """Subscribes to an address in a thread until `close`.

    frames: each with its time of arrival (LSL clock, s).
    """

    def __init__(self, address: str) -> None:
        self.frames: list[tuple[float, wire.CursorFrame]] = []
        self.unreadable = 0
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 100)
        self._socket.subscribe(PREFIX)
        self._socket.connect(address)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._stop.is_set():
            if not self._socket.poll(100):
                continue
            message = self._socket.recv()
            try:
                self.frames.append((local_clock(), wire.decode_frame(message[len(PREFIX) :])))
            except StreamError:
                self.unreadable += 1

    def close(self) -> None:
        """Stop listening."""
        self._stop.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def since(self, time_s: float) -> list[wire.CursorFrame]:
        """The frames published after `time_s`."""
        found = []
        for _, frame in reversed(self.frames):
            if frame.published <= time_s:
                break
            found.append(frame)
        return found[::-1]


def broken_rules(
    frames: Sequence[wire.CursorFrame], sent: np.ndarray, windows: dict[str, float],
    paused: Sequence[Span] = (),
) -> list[str]:  # fmt: skip
    """The rules broken by the frames of one address, one line each, with the first such frame.

    sent: the logs of all senders. windows: seconds that each decoder needs. paused: spans from an
    accepted pause to the next request to resume.
    """
    found: dict[str, list[str]] = {}

    def breaks(rule: str, frame: wire.CursorFrame) -> None:
        what = f"frame {frame.seq} ({frame.state}, {frame.velocity}, end {frame.window_end:.3f})"
        found.setdefault(rule, []).append(what)

    sent = np.sort(sent[sent["usable"] > 0], order="at")
    before: dict[float, wire.CursorFrame] = {}  # by run
    jumped: dict[float, float] = {}
    for frame in frames:
        run, last = frame.started, before.get(frame.started)
        window_s = windows.get(frame.decoder, min(windows.values()))
        if last is not None:
            if frame.seq <= last.seq:
                breaks("the sequence went back", frame)
            if frame.window_end <= last.window_end:
                breaks("time went back", frame)
            if abs(frame.clock_offset - last.clock_offset) > JUMP_S:
                jumped[run] = frame.window_end
        before[run] = frame
        if not frame.valid:
            if frame.velocity != (0.0, 0.0):
                breaks("velocity without `valid`", frame)
            continue
        if frame.state != "decoding":
            breaks("valid in another state than decoding", frame)
        if not all(map(isfinite, frame.velocity)) or hypot(*frame.velocity) > PLAUSIBLE_M_S:
            breaks("a valid velocity faster than any hand", frame)
        if frame.published - frame.window_end > STALE_S:
            breaks("valid, but published late", frame)
        if frame.window_end - max(run, jumped.get(run, run)) < window_s - SLACK_S:
            breaks("valid before a window after the start or a jump of the clock", frame)
        if any(start < frame.window_end < end for start, end in paused):
            breaks("valid although a pause was accepted", frame)
        if why := _not_filled(frame, sent, window_s):
            breaks(why, frame)
    return [f"{rule}: {len(seen)} frames, first {seen[0]}" for rule, seen in found.items()]


def _not_filled(frame: wire.CursorFrame, sent: np.ndarray, window_s: float) -> str | None:
    """Why the spikes sent before a valid frame don't fill its window; None if they do."""
    end = frame.window_end
    n = int(np.searchsorted(sent["at"], frame.published, side="right"))
    start = int(np.searchsorted(sent["at"], end - window_s - 10.0))
    chunks = sent[start:n]
    chunks = chunks[
        (chunks["last"] > end - window_s - STALE_S) & (chunks["first"] <= end + SLACK_S)
    ]
    if not len(chunks):
        return "valid without spikes"
    chunks = np.sort(chunks, order="first")
    reached = np.maximum.accumulate(chunks["last"])
    if end - reached[-1] > STALE_S + SLACK_S:
        return "valid after the spikes had stopped"
    if chunks["first"][0] > end - window_s + SLACK_S:
        return "valid before spikes filled the window"
    gaps = chunks["first"][1:] - reached[:-1]
    inside = reached[:-1] > end - window_s
    if (gaps[inside] > STALE_S + SLACK_S).any():
        return "valid across a gap in the spikes"
    return None


def undeliverable(sent: np.ndarray, cuts: Sequence[Span]) -> np.ndarray:
    """The log with data sent during a cut moved to its end, when they can arrive."""
    sent = sent.copy()
    for start, end in cuts:
        inside = (sent["at"] > start) & (sent["at"] < end)
        sent["at"][inside] = end
    return sent


def longest_silence(frames: Sequence[wire.CursorFrame]) -> float:
    """The longest time between successive frames, s."""
    return max((b.published - a.published for a, b in pairwise(frames)), default=0.0)


NOTHING_SENT = np.empty(0, dtype=SENT)
