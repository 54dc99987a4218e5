"""An open LSL stream: its samples, and their times on this host's clock.

Base class of the inlets for spikes, kinematics and markers. liblsl's own recovery is off: it keeps
the old description, so a sender that restarts with other units would be read with the old ones.
`streaming.inlets.connector` opens the stream again instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pylsl
from numpy.typing import NDArray

from decoder.arrays import Floats
from decoder.errors import StreamError
from streaming.inlets.offset import ClockOffset, newest_estimate

MAX_SAMPLES = 4096  # per pull; pulls are repeated until the inlet is empty
MAX_PULLS = 100  # per drain; the rest waits for the next drain
MAX_RATE_HZ = 1e5
OPEN_TIMEOUT_S = 5.0
CORRECTION_EVERY_S = 0.5


class Inlet:
    """An open stream. Opening blocks for about a second: see `streaming.inlets.connector`.

    opened_at: when opening began. heard_at: when samples last arrived. LSL clock, s.
    Raises StreamError if the stream can't be opened, or if `check` refuses its description.
    """

    max_buflen = 60  # liblsl's unit: seconds, or hundreds of samples for an irregular stream

    def __init__(self, found: pylsl.StreamInfo) -> None:
        self.name, self.kind, self.source_id = found.name(), found.type(), found.source_id()
        self.uid = found.uid()
        rate_hz = found.nominal_srate()
        if not 0 <= rate_hz <= MAX_RATE_HZ:  # liblsl allocates a buffer for seconds of it
            raise StreamError(
                f"stream {self.name!r} has a rate of {rate_hz:g} Hz; expected at most "
                f"{MAX_RATE_HZ:g}"
            )
        self._capacity = int(self.max_buflen * (rate_hz or 100))
        self.n_drained = 0
        self.n_overflows = 0  # how often liblsl's buffer was full, so that samples were lost
        self._offset_jumped = False
        self.opened_at = self.heard_at = self._corrected_at = pylsl.local_clock()
        try:
            self._inlet = pylsl.StreamInlet(found, max_buflen=self.max_buflen, recover=False)
            self.check(self._inlet.info(timeout=OPEN_TIMEOUT_S))
            self._inlet.open_stream(timeout=OPEN_TIMEOUT_S)
            self._clock = ClockOffset(newest_estimate(self._inlet, OPEN_TIMEOUT_S))
        except pylsl.util.TimeoutError as error:
            raise StreamError(
                f"stream {self.name!r} answers, but sent no description, data or time within "
                f"{OPEN_TIMEOUT_S:g} s; is its sender busy, or a firewall in the way?"
            ) from error
        except RuntimeError as error:  # LostError and liblsl's other errors
            raise StreamError(f"stream {self.name!r} closed while it was being opened") from error

    def check(self, info: pylsl.StreamInfo) -> None:
        """Read the full description. Raises StreamError if the stream can't be used."""

    @property
    def clock_offset_s(self) -> float:
        """The offset that is now added to the sender's time stamps."""
        return self._clock.offset_s

    @property
    def has_samples(self) -> bool:
        """Whether samples are waiting."""
        return bool(self._inlet.samples_available())

    def take_offset_jump(self) -> bool:
        """Whether the clock offset jumped since the last call."""
        jumped, self._offset_jumped = self._offset_jumped, False
        return jumped

    def close(self) -> None:
        """Close the stream. May block for half a second: don't call it in a tick."""
        self._inlet.close_stream()

    def _pull(self, now: float) -> tuple[NDArray[Any], Floats]:
        """The waiting samples (n, channels) and their times (n,); NaN for an invalid time stamp.

        Never blocks. Raises StreamError if the sender is gone.
        """
        try:
            self._update_offset(now)
            self.n_overflows += self._inlet.samples_available() >= self._capacity
            pulled = [self._pull_once()]
            while len(pulled[-1][1]) == MAX_SAMPLES and len(pulled) < MAX_PULLS:
                pulled.append(self._pull_once())
        except RuntimeError as error:
            raise StreamError(f"the sender of {self.name!r} is gone") from error
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
        """Take liblsl's newest estimate. Never blocks: liblsl measures in the background."""
        if now - self._corrected_at < CORRECTION_EVERY_S:
            return
        self._corrected_at = now
        try:
            estimate = newest_estimate(self._inlet, 0.0)
        except RuntimeError:
            return  # no estimate yet, or the sender is gone: the pull will tell
        self._offset_jumped |= self._clock.add(estimate)


def _joined(pulled: list[tuple[NDArray[Any], Floats]]) -> tuple[NDArray[Any], Floats]:
    samples, stamps = zip(*pulled, strict=True)
    return np.concatenate(samples), np.concatenate(stamps)
