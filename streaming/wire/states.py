"""The daemon's states, and the rule that chooses between them.

    idle       stopped
    warming    the decoder's first runs, or live spikes don't fill the window yet
    ready      decoder warm, no spikes yet
    decoding   the only state with a valid velocity
    stale      spikes have stopped
    paused     paused by a command
    fault      the decoder failed, or its velocity is implausible

LSL reconnects silently, and an empty pull looks like silent neurons. So staleness is judged here,
by the time stamp of the newest sign of life and not by its arrival.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from decoder.arrays import Floats

NEVER = -np.inf
NOT_YET = np.inf


class State(StrEnum):
    """The daemon's state, sent in every frame."""

    IDLE = "idle"
    WARMING = "warming"
    READY = "ready"
    DECODING = "decoding"
    STALE = "stale"
    PAUSED = "paused"
    FAULT = "fault"


class StreamWatch:
    """Decides at every tick whether the stream can be trusted.

    A sign of life is the time of an admitted spike, or the end of a bin of counts. The stream is
    unbroken as long as signs of life follow each other within `stale_after_s`.

    unbroken_s: seconds of unbroken stream that a decode needs.
    stale_after_s: age of the newest sign of life at which the stream counts as stopped.
    """

    def __init__(self, *, unbroken_s: float, stale_after_s: float) -> None:
        self.unbroken_s = unbroken_s
        self.stale_after_s = stale_after_s
        self._since = NEVER  # older signs of life don't count
        self._newest = NEVER
        self._arrived = NEVER  # arrival of the last sign of life
        self._unbroken_since = NOT_YET
        self._ahead: Floats = np.empty(0)  # signs of life stamped in the future
        self._ever_live = False

    def see(self, times: Floats, now: float) -> None:
        """Add signs of life (n,), in any order, that arrived by `now` (LSL clock, s).

        A sign of life stamped in the future counts once its time has come.
        """
        if len(times):
            self._arrived = now
            times = times[times >= self._since]
        if len(self._ahead):
            times = np.concatenate([self._ahead, times])
        self._ahead = times[times > now]
        times = np.maximum(np.sort(times[times <= now]), self._newest)
        if len(times) == 0:
            return
        self._unbroken_since = min(self._unbroken_since, float(times[0]))
        gaps = np.diff(times, prepend=self._newest) > self.stale_after_s
        if gaps.any():
            self._unbroken_since = float(times[np.flatnonzero(gaps)[-1]])
        self._newest = float(times[-1])

    def judge(self, window_end: float) -> State:
        """The state at `window_end` (LSL clock, s)."""
        if self.age_s(window_end) > self.stale_after_s:
            if self._newest != NEVER:  # it has just stopped
                self.forget(window_end)
            return State.STALE if self._ever_live else State.READY
        self._ever_live = True
        if window_end - self._unbroken_since < self.unbroken_s:
            return State.WARMING
        return State.DECODING

    def age_s(self, now: float) -> float:
        """Age of the newest sign of life; a stamp in the future is as old as its arrival."""
        return now - min(self._newest, self._arrived)

    def refill(self, since: float) -> None:
        """Require a full window of spikes from `since` (LSL clock, s) on; the stream stays live."""
        newest, arrived = min(self._newest, since), self._arrived
        self.forget(since)
        self._newest, self._arrived = newest, arrived

    def forget(self, since: float) -> None:
        """Forget the stream: only spikes from `since` (LSL clock, s) on are signs of life."""
        self._since = since
        self._newest = self._arrived = NEVER
        self._unbroken_since = NOT_YET
        self._ahead = np.empty(0)

    def recount(self, times: Floats, now: float) -> None:
        """Judge the same stream for another decoder, by the times (n,) of that decoder's spikes."""
        self.forget(self._since)
        self.see(times, now)
