"""Thread priorities: real-time for the thread that ticks, high for the threads that send.

A tick is late if another process has the core, or another thread has Python's global lock.
Real-time priority prevents the first. A short switch interval limits the second: the thread that
loads a decoder gives the lock back after 0.5 ms, not 5 ms.

ZeroMQ's threads send the frames. They run at the best niceness: on a busy machine, frames would
otherwise leave late, or be dropped once the short queue is full.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PRIORITY = 10  # 1 to 99: above all ordinary threads, below the kernel's real-time threads
SWITCH_S = 0.0005
NICE = -20  # for the threads that send


@contextmanager
def real_time(wanted: bool = True) -> Iterator[bool]:
    """Run the block at real-time priority (`SCHED_FIFO`); yields whether it was granted.

    Windows and macOS don't have it. Linux grants it to root, with `CAP_SYS_NICE`, or with an
    `rtprio` limit. Threads and processes started in the block have ordinary priority.
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
    """Give threads started in the block the best niceness, if the system allows it."""
    before = _threads()
    yield
    for thread in _threads() - before if wanted else ():
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, NICE)


def _threads() -> set[int]:
    """Ids of this process's threads; empty if the system doesn't list them."""
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
