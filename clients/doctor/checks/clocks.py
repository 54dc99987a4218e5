"""Clocks and timers: steps of the clock, its synchronisation, and how late this machine wakes up.

LSL's clock is the monotonic one, which no one can step. The clock of date and time is in logs, and
in the stamps of senders that use it.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from pylsl import local_clock

from clients.doctor.finding import Asked, Finding, failure, ok, warning
from clients.doctor.settings import usable_settings
from streaming.clock import Metronome
from streaming.priority import real_time

WATCHED_S = 1.0
EVERY_S = 0.005
STEP_S = 0.002  # between two readings: slewing, at most 0.5 ms per second, is far below it
TIMER_S, TIMER_TICK_S = 2.0, 0.005
LATE_MS = 1.0
UNSYNCHRONISED = 0x40  # STA_UNSYNC
TIME_ERROR = 5


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Three clocks at one moment, s. within_s: how long reading them took, so how exact it is."""

    monotonic: float
    lsl: float
    real: float
    within_s: float


def clocks(asked: Asked) -> list[Finding]:
    """Steps of the clocks over a second, and the clock's synchronisation."""
    return [*compare(watch(WATCHED_S)), _synchronised()]


def watch(seconds: float) -> list[Reading]:
    """Read the clocks every `EVERY_S`."""
    readings = []
    end = time.monotonic() + seconds
    while True:
        before = time.monotonic()
        lsl_now, real_now = local_clock(), time.time()
        after = time.monotonic()
        readings.append(
            Reading(monotonic=before, lsl=lsl_now, real=real_now, within_s=after - before)
        )
        if after >= end:
            return readings
        time.sleep(EVERY_S)


def compare(readings: list[Reading]) -> list[Finding]:
    """Steps of the clocks against the monotonic clock.

    A reading may be interrupted, so a difference counts only beyond the time that reading took.
    """
    seconds = readings[-1].monotonic - readings[0].monotonic
    return [
        _lsl_clock(_steps(readings, lambda r: r.lsl), seconds),
        _system_clock(_steps(readings, lambda r: r.real), seconds),
    ]


def _steps(readings: list[Reading], of: Callable[[Reading], float]) -> list[float]:
    """Steps of a clock against the monotonic clock, s."""
    steps = []
    for before, after in pairwise(readings):
        by = (of(after) - of(before)) - (after.monotonic - before.monotonic)
        if abs(by) > STEP_S + before.within_s + after.within_s:
            steps.append(by)
    return steps


def _lsl_clock(steps: list[float], seconds: float) -> Finding:
    name = "LSL clock"
    if steps:
        return failure(
            name,
            f"{_in_words(steps)} against the monotonic clock within {seconds:.1f} s",
            "look for a library that changes the clock (LD_PRELOAD), or for a virtual machine "
            "that is paused",
        )
    return ok(name, f"runs with the monotonic clock, watched for {seconds:.1f} s")


def _system_clock(steps: list[float], seconds: float) -> Finding:
    name = "clock step"
    if steps:
        return warning(
            name,
            f"the system clock made {_in_words(steps)} within {seconds:.1f} s; decoding isn't "
            "affected, but logs and senders that stamp with date and time are",
            "let one program set the clock, and slowly: chrony (makestep only at the start) or "
            "systemd-timesyncd, and not the virtual machine's host as well",
        )
    return ok(name, f"none of the system clock in {seconds:.1f} s")


def _in_words(steps: list[float]) -> str:
    largest = max(steps, key=abs)
    if len(steps) == 1:
        return f"a step of {largest * 1e3:+.1f} ms"
    return f"{len(steps)} steps, the largest of {largest * 1e3:+.1f} ms,"


def _synchronised() -> Finding:
    """What the kernel says of NTP, whichever program does it (adjtimex)."""
    name = "clock sync"
    if sys.platform != "linux":
        return ok(name, f"not looked at on {sys.platform}")
    timex = ctypes.create_string_buffer(512)  # modes 0: reads only
    state = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
    if state < 0:
        return ok(name, "the kernel doesn't tell (adjtimex isn't allowed here)")
    _, _, _, _, error_us, status = struct.unpack_from("@iqqqqi", timex)
    if state == TIME_ERROR or status & UNSYNCHRONISED:
        return warning(
            name,
            "the system clock isn't synchronised; LSL measures its own offsets, but date and time "
            "may differ between machines",
            "start chrony or systemd-timesyncd (in a container: on its host)",
        )
    return ok(name, f"synchronised, estimated error {error_us / 1e3:.1f} ms")


def timer(asked: Asked) -> list[Finding]:
    """How late the daemon's metronome wakes up at the daemon's priority."""
    daemon = usable_settings(asked).daemon
    late_ms = []
    with real_time(daemon.realtime) as granted:
        metronome = Metronome(TIMER_TICK_S)
        for _ in range(round(TIMER_S / TIMER_TICK_S)):
            due = metronome.wait()
            late_ms.append((local_clock() - due) * 1e3)
    p50, p99 = np.percentile(late_ms, (50, 99))
    found = (
        f"a tick every {TIMER_TICK_S * 1e3:g} ms is late by p50 {p50:.3f}, p99 {p99:.3f}, "
        f"max {max(late_ms):.3f} ms, {metronome.n_skipped} skipped, "
        f"at {'real-time' if granted else 'ordinary'} priority"
    )
    if p99 <= LATE_MS and metronome.n_skipped == 0:
        return [ok("timer", found)]
    advice = ["end other programs", "set the CPU governor to performance"]
    if not granted:
        advice.insert(0, "allow real-time priority (below)")
    return [warning("timer", found, ", ".join(advice))]
