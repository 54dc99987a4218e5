"""An open LSL stream: its samples, their times on this host's clock, and whether it is silent.

What is common to spikes, kinematics and markers. liblsl's own recovery is off: it would keep the
old description, so that a sender that restarts with other units is read as the old one, silently.
`streaming.inlets.connector` opens a stream again instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pylsl
from numpy.typing import NDArray

from decoder.arrays import Floats
from decoder.errors import StreamError
from streaming.inlets.offset import ClockOffset, newest_estimate

MAX_SAMPLES = 4096  # a pull; repeated until the inlet is empty
MAX_PULLS = 100  # a drain; what is beyond waits for the next
MAX_RATE_HZ = 1e5
OPEN_TIMEOUT_S = 5.0
CORRECTION_EVERY_S = 0.5


class Inlet:
    """Opening blocks for about a second: see `streaming.inlets.connector`.

    opened_at, heard_at: when opening began, and when samples came last; LSL clock, s.
    Raises StreamError if the stream can't be opened. `check` may refuse its description.
    """

    max_buflen = 60  # of liblsl: seconds, or hundreds of samples of an irregular stream

    def __init__(self, found: pylsl.StreamInfo) -> None:
        self.name, self.kind, self.source_id = found.name(), found.type(), found.source_id()
        self.uid = found.uid()
        rate_hz = found.nominal_srate()
        if not 0 <= rate_hz <= MAX_RATE_HZ:  # liblsl makes room for seconds of it
            raise StreamError(
                f"stream {self.name!r} has a rate of {rate_hz:g} Hz; expected at most "
                f"{MAX_RATE_HZ:g}"
            )
        self._capacity = int(self.max_buflen * (rate_hz or 100))
        self.n_drained = 0
        self.n_overflows = 0  # times that liblsl's buffer was full, so that it dropped samples
        self._offset_jumped = False
        self.opened_at = self.heard_at = self._corrected_at = pylsl.local_clock()
        try:
            self._inlet = pylsl.StreamInlet(found, max_buflen=self.max_buflen, recover=False)
            self.check(self._inlet.info(timeout=OPEN_TIMEOUT_S))
            self._inlet.open_stream(timeout=OPEN_TIMEOUT_S)
            self._clock = ClockOffset(newest_estimate(self._inlet, OPEN_TIMEOUT_S))
        except pylsl.util.TimeoutError as error:
            raise StreamError(
                f"stream {self.name!r} answers, but gave no description, data or time within "
                f"{OPEN_TIMEOUT_S:g} s; is its sender busy, or a firewall between?"
            ) from error
        except RuntimeError as error:  # LostError, and whatever else liblsl says
            raise StreamError(f"stream {self.name!r} went away while it was opened") from error

    def check(self, info: pylsl.StreamInfo) -> None:
        """Read the full description; StreamError if the stream can't be used."""

    @property
    def clock_offset_s(self) -> float:
        """What is added to the sender's stamps now."""
        return self._clock.offset_s

    @property
    def has_samples(self) -> bool:
        """Whether samples wait."""
        return bool(self._inlet.samples_available())

    def take_offset_jump(self) -> bool:
        """Whether the clock offset jumped since the last call."""
        jumped, self._offset_jumped = self._offset_jumped, False
        return jumped

    def close(self) -> None:
        """Close the stream. May block for half a second: not in a tick."""
        self._inlet.close_stream()

    def _pull(self, now: float) -> tuple[NDArray[Any], Floats]:
        """Samples that wait, (n, channels), and their times; NaN where a stamp is none.

        Never blocks. Raises StreamError where the sender went away.
        """
        try:
            self._update_offset(now)
            self.n_overflows += self._inlet.samples_available() >= self._capacity
            pulled = [self._pull_once()]
            while len(pulled[-1][1]) == MAX_SAMPLES and len(pulled) < MAX_PULLS:
                pulled.append(self._pull_once())
        except RuntimeError as error:
            raise StreamError(f"the sender of {self.name!r} went away") from error
        samples, stamps = pulled[0] if len(pulled) == 1 else _joined(pulled)
        if len(stamps):
            self.n_drained += len(stamps)
            self.heard_at = now
        usable = np.isfinite(stamps) & (stamps > 0)
        return samples, np.where(usable, stamps + self.clock_offset_s, np.nan)

    def _pull_once(self) -> tuple[NDArray[Any], Floats]:
        samples, stamps = self._inlet.pull_chunk(
            timeout=0.0, max_samples=MAX_SAMPLES, as_numpy=True
        )
        return samples, np.asarray(stamps, dtype=np.float64)

    def _update_offset(self, now: float) -> None:
        """Take liblsl's newest estimate; it measures in the background, this never waits."""
        if now - self._corrected_at < CORRECTION_EVERY_S:
            return
        self._corrected_at = now
        try:
            estimate = newest_estimate(self._inlet, 0.0)
        except RuntimeError:
            return  # none yet, or going away; the pull says so
        self._offset_jumped |= self._clock.add(estimate)


def _joined(pulled: list[tuple[NDArray[Any], Floats]]) -> tuple[NDArray[Any], Floats]:
    samples, stamps = zip(*pulled, strict=True)
    return np.concatenate(samples), np.concatenate(stamps)
