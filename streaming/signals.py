"""SIGINT and SIGTERM end a loop after its running step; handlers are put back."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol


class Stoppable(Protocol):
    """A loop that ends once `should_stop` is set."""

    should_stop: bool


@contextmanager
def stop_on_signal(loop: Stoppable) -> Iterator[None]:
    """Set `loop.should_stop` on SIGINT or SIGTERM."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        loop.should_stop = True

    previous = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
