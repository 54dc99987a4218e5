"""Stop a loop on SIGINT or SIGTERM, after its current step, and restore the handlers."""

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

    within_s: if the block is still running this long after a signal, end the process with exit
        code 1. Python's handlers don't run while a step hangs in C code, such as ONNX Runtime.
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
    """End the process if a signal isn't followed by the end of the block within `seconds`.

    A thread reads Python's wakeup descriptor, which the C signal handler writes to.
    """
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    ended = threading.Event()

    def watch() -> None:
        while numbers := receiver.recv(64):
            if set(numbers) & set(NUMBERS) and not ended.wait(seconds):
                log.error("still running %g s after a signal: a step hangs; exiting", seconds)
                os._exit(1)

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        sender.close()
        thread.join()
        receiver.close()
