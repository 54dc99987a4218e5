"""The offset of a sender's clock, from liblsl's estimates.

About every two seconds, liblsl asks the sender for its time and keeps the quickest of eight
answers. Its error is at most half of the round trip (`uncertainty_s`). Of the last few estimates,
the most certain one is used. An estimate that differs by more than its possible error is a jump of
the clock only if the next estimate confirms it.
"""

from __future__ import annotations

import ctypes
from collections import deque
from dataclasses import dataclass

import pylsl
from pylsl.lib import lib
from pylsl.util import handle_error

lib.lsl_time_correction_ex.restype = ctypes.c_double

JUMP_S = 0.005  # spikes before and after a larger step can't share a window
KEPT = 5  # estimates, which span ten seconds
DRIFT = 1e-4  # s/s; greatest drift between two clocks


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One measurement of the clock offset, with an error of at most `uncertainty_s / 2`.

    offset_s: added to time stamps. at: when it was measured, on the sender's clock; unique.
    """

    offset_s: float
    uncertainty_s: float
    at: float


def newest_estimate(inlet: pylsl.StreamInlet, timeout_s: float) -> Estimate:
    """liblsl's newest estimate; never blocks with a timeout of 0.

    Raises pylsl's TimeoutError or LostError.
    """
    at, uncertainty, code = ctypes.c_double(), ctypes.c_double(), ctypes.c_int()
    offset = lib.lsl_time_correction_ex(
        inlet.obj, ctypes.byref(at), ctypes.byref(uncertainty), ctypes.c_double(timeout_s),
        ctypes.byref(code),
    )  # fmt: skip
    handle_error(code)
    return Estimate(offset_s=float(offset), uncertainty_s=uncertainty.value, at=at.value)


class ClockOffset:
    """Tracks the clock offset of one sender and detects jumps."""

    def __init__(self, first: Estimate) -> None:
        self.offset_s = first.offset_s
        self._kept = deque([first], maxlen=KEPT)
        self._newest = first
        self._suspect: Estimate | None = None

    def add(self, estimate: Estimate) -> bool:
        """Add the next estimate. Returns True if it confirms a jump."""
        if estimate.at == self._newest.at:
            return False
        self._newest = estimate
        if abs(estimate.offset_s - self.offset_s) > _can_differ(estimate):
            return self._suspected(estimate)
        self._suspect = None
        self._kept.append(estimate)
        best = min(self._kept, key=lambda e: e.uncertainty_s + DRIFT * (estimate.at - e.at))
        if abs(best.offset_s - self.offset_s) <= JUMP_S:
            self.offset_s = best.offset_s
        return False

    def _suspected(self, estimate: Estimate) -> bool:
        before, self._suspect = self._suspect, estimate
        if before is None:
            return False
        if abs(estimate.offset_s - before.offset_s) > _can_differ(estimate, before):
            return False
        self._suspect = None
        self._kept = deque([before, estimate], maxlen=KEPT)
        self.offset_s = min(self._kept, key=lambda e: e.uncertainty_s).offset_s
        return True


def _can_differ(*estimates: Estimate) -> float:
    return max(JUMP_S, sum(estimate.uncertainty_s for estimate in estimates) / 2)
