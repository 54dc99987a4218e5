"""The daemon's states, and the one rule that decides between them.

    idle       no decoder loaded
    warming    the decoder's first runs, or the window isn't yet filled by a live stream
    ready      decoder warm, no spikes yet
    decoding   the only state whose velocity is valid
    stale      spikes have stopped coming
    paused     told to stop
    fault      the decoder failed, or gave a velocity that nobody can want

LSL reconnects silently, and an empty pull looks like quiet neurons. So staleness is judged
here, by the time of the newest sign of life: a spike that arrives late is old news however fresh
its arrival.
"""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from decoder.arrays import Floats

NEVER = -np.inf
NOT_YET = np.inf


class State(StrEnum):
    """State of the daemon, in every frame."""

    IDLE = "idle"
    WARMING = "warming"
    READY = "ready"
    DECODING = "decoding"
    STALE = "stale"
    PAUSED = "paused"
    FAULT = "fault"


class StreamWatch:
    """Decides, tick by tick, whether the stream can be trusted.

    A sign of life is the time of a spike that was admitted (of binned counts, the end of a bin).
    The window is filled by signs of life that follow each other within `stale_after_s`.

    unbroken_s: seconds of unbroken stream that a decode needs.
    stale_after_s: age of the newest sign of life at which the stream counts as stopped.
    """

    def __init__(self, *, unbroken_s: float, stale_after_s: float) -> None:
        self.unbroken_s = unbroken_s
        self.stale_after_s = stale_after_s
        self._since = NEVER  # what is older doesn't count
        self._newest = NEVER
        self._arrived = NEVER  # when the last sign of life came
        self._unbroken_since = NOT_YET
        self._ahead: Floats = np.empty(0)  # signs of life whose time has not come
        self._ever_live = False

    def see(self, times: Floats, now: float) -> None:
        """Note signs of life (n,) that had arrived by `now` (LSL clock, s), in any order.

        One that is ahead of now counts when its time has come.
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
            if self._newest != NEVER:  # it broke off now
                self.forget(window_end)
            return State.STALE if self._ever_live else State.READY
        self._ever_live = True
        if window_end - self._unbroken_since < self.unbroken_s:
            return State.WARMING
        return State.DECODING

    def age_s(self, now: float) -> float:
        """Age of the newest sign of life; one stamped ahead is no newer than its arrival."""
        return now - min(self._newest, self._arrived)

    def refill(self, since: float) -> None:
        """The stream goes on, but only spikes from `since` (LSL clock, s) on fill the window."""
        newest, arrived = min(self._newest, since), self._arrived
        self.forget(since)
        self._newest, self._arrived = newest, arrived

    def forget(self, since: float) -> None:
        """The stream broke: only spikes from `since` (LSL clock, s) on are signs of life."""
        self._since = since
        self._newest = self._arrived = NEVER
        self._unbroken_since = NOT_YET
        self._ahead = np.empty(0)

    def recount(self, times: Floats, now: float) -> None:
        """Another decoder sees the same stream: `times` (n,) are those of its spikes that came."""
        self.forget(self._since)
        self.see(times, now)
