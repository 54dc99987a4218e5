"""What a reader's library says on its way, kept for the session's notes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

MOST = 5  # that are told in full
LONGEST = 300  # characters of one


@contextmanager
def complaints(logger: logging.Logger | None = None) -> Iterator[list[str]]:
    """Warnings, and what `logger` logs as warnings and errors, as lines; nothing is printed."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        propagate = logger.propagate if logger else False
        if logger is not None:
            logger.propagate = False
            logger.addHandler(handler)
        try:
            yield messages
        finally:
            if logger is not None:
                logger.removeHandler(handler)
                logger.propagate = propagate
            messages += [str(warning.message) for warning in caught]


def as_notes(messages: list[str], reader: str) -> list[str]:
    """One note a message, each only once, and how many more there are."""
    lines = list(dict.fromkeys(" ".join(message.split())[:LONGEST] for message in messages))
    more = [f"{reader} says {len(lines) - MOST} more"] if len(lines) > MOST else []
    return [f"{reader} says: {line}" for line in lines[:MOST]] + more


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line[:LONGEST]
