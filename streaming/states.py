"""The daemon's states, and the one rule that decides between them.

    idle       no decoder loaded
    warming    the decoder's first runs, or the window isn't yet filled by a live stream
    ready      decoder warm, no spikes yet
    decoding   the only state whose velocity is valid
    stale      spikes have stopped coming
    paused     told to stop
    fault      something broke that a restart may mend

LSL reconnects silently, and an empty pull looks like quiet neurons. So staleness is judged
here, by the age of the newest spike: a spike that arrives late is old news however fresh its
arrival.
"""

from __future__ import annotations

from enum import StrEnum


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

    window_s: seconds of unbroken stream that a decode needs.
    stale_after_s: age of the newest spike at which the stream counts as stopped.
    """

    def __init__(self, *, window_s: float, stale_after_s: float) -> None:
        self.window_s = window_s
        self.stale_after_s = stale_after_s
        self._live_since: float | None = None
        self._ever_live = False

    def judge(self, window_end: float, newest_spike: float | None) -> State:
        """The state at `window_end`, given the newest spike's time (LSL clock, s).

        newest_spike: None where there was none yet, or no stream is open.
        """
        if newest_spike is None or window_end - newest_spike > self.stale_after_s:
            self._live_since = None
            return State.STALE if self._ever_live else State.READY
        self._ever_live = True
        if self._live_since is None:
            self._live_since = newest_spike
        if window_end - self._live_since < self.window_s:
            return State.WARMING
        return State.DECODING

    def forget(self) -> None:
        """The stream was replaced: its window must fill again."""
        self._live_since = None
