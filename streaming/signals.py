"""SIGINT and SIGTERM end a loop after its running step; handlers are put back."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Protocol

log = logging.getLogger(__name__)

NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Stoppable(Protocol):
    """A loop that ends once `should_stop` is set."""

    should_stop: bool


@contextmanager
def stop_on_signal(loop: Stoppable, *, within_s: float | None = None) -> Iterator[None]:
    """Set `loop.should_stop` on SIGINT or SIGTERM.

    within_s: ends the process, with exit code 1, if the block doesn't end in that time after a
        signal. Python's handlers don't run while a step hangs in C code, such as a decoder's graph.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        loop.should_stop = True

    with nullcontext() if within_s is None else _ended_within(within_s):
        previous = {number: signal.signal(number, stop) for number in NUMBERS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


@contextmanager
def _ended_within(seconds: float) -> Iterator[None]:
    """A thread hears of signals by Python's wakeup descriptor, which is written to in C."""
    heard, told = socket.socketpair()
    told.setblocking(False)
    ended = threading.Event()

    def watch() -> None:
        while numbers := heard.recv(64):
            if set(numbers) & set(NUMBERS) and not ended.wait(seconds):
                log.error("did not end within %g s of a signal: a step hangs; ended", seconds)
                os._exit(1)

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        told.close()
        thread.join()
        heard.close()
