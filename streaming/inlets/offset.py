"""What is to be added to a sender's stamps, from liblsl's estimates of its clock.

liblsl measures every two seconds or so by asking for the time, and takes the quickest of eight
answers. An answer that took `uncertainty_s` can be wrong by half of it, and by no more. So the
surest of the last few is used; one that disagrees by more than it can be wrong is a jump of the
clock only if the next one says so, too.
"""

from __future__ import annotations

import ctypes
from collections import deque
from dataclasses import dataclass

import pylsl
from pylsl.lib import lib
from pylsl.util import handle_error

lib.lsl_time_correction_ex.restype = ctypes.c_double

JUMP_S = 0.005  # spikes on both sides of a larger step don't belong in one window
KEPT = 5  # estimates: ten seconds of them
DRIFT = 1e-4  # s a second that two clocks may drift apart, at most


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One measurement: `offset_s` to add to stamps, wrong by half of `uncertainty_s` at most.

    at: when, on the sender's clock; tells one measurement from the next.
    """

    offset_s: float
    uncertainty_s: float
    at: float


def newest_estimate(inlet: pylsl.StreamInlet, timeout_s: float) -> Estimate:
    """liblsl's newest; with a timeout of 0 it never waits.

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
    """The offset in use, and whether the sender's clock jumped."""

    def __init__(self, first: Estimate) -> None:
        self.offset_s = first.offset_s
        self._kept = deque([first], maxlen=KEPT)
        self._newest = first
        self._suspect: Estimate | None = None

    def add(self, estimate: Estimate) -> bool:
        """Take the next estimate; True if with it a jump is confirmed."""
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
