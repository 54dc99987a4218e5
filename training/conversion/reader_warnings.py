"""Warnings of a reader's library, kept for the session's notes."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

MOST = 5  # warnings quoted in full
LONGEST = 300  # characters of a warning


@contextmanager
def collect_warnings(logger: logging.Logger | None = None) -> Iterator[list[str]]:
    """Collect Python warnings, and warnings and errors logged by `logger`; print nothing."""
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
    """One note per distinct message; beyond `MOST`, only their number."""
    lines = list(dict.fromkeys(" ".join(message.split())[:LONGEST] for message in messages))
    more = [f"{reader} warns: {len(lines) - MOST} more warnings"] if len(lines) > MOST else []
    return [f"{reader} warns: {line}" for line in lines[:MOST]] + more


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line[:LONGEST]
