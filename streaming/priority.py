"""The thread that ticks, before all others, as far as the system lets it.

Ticks come late where something else runs: another process on the core, or another thread of this
one with Python's lock. Against the first stands real-time priority, against the second a short
switch interval: the loader of a decoder gives the lock back after half a millisecond and not five.
ZeroMQ's threads, which send the frames, are ordinary ones but with the best niceness: behind a busy
machine's other work, frames would leave late, or not at all once the short queue is full.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PRIORITY = 10  # of 1 to 99: above everything that isn't real-time, below the kernel's threads
SWITCH_S = 0.0005
NICE = -20  # of threads that send


@contextmanager
def real_time(wanted: bool = True) -> Iterator[bool]:
    """The calling thread in real time (`SCHED_FIFO`) until the block ends; yields whether it is.

    It isn't where the system has no such thing (Windows, macOS) or forbids it: Linux wants root,
    `CAP_SYS_NICE` or a limit of `rtprio`. Threads and processes begun in the block are ordinary.
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    granted = wanted and _schedule("SCHED_FIFO", PRIORITY)
    try:
        yield granted
    finally:
        if granted:
            _schedule("SCHED_OTHER", 0)
        sys.setswitchinterval(interval)


@contextmanager
def before_others(wanted: bool = True) -> Iterator[None]:
    """Threads begun in the block run before other ordinary ones, where the system lets them."""
    before = _threads()
    yield
    for thread in _threads() - before if wanted else ():
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, NICE)


def _threads() -> set[int]:
    """Ids of this process's threads; none where the system doesn't tell."""
    try:
        return {int(name) for name in os.listdir("/proc/self/task")}
    except OSError:
        return set()


def _schedule(policy: str, priority: int) -> bool:
    if not hasattr(os, "sched_setscheduler"):
        return False
    flags = getattr(os, policy) | os.SCHED_RESET_ON_FORK
    try:
        os.sched_setscheduler(0, flags, os.sched_param(priority))
    except OSError:
        return False
    return True
