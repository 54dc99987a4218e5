"""Finds LSL streams by type or by name.

liblsl searches in its own thread: by multicast at once, and after half a second at the peers
listed in `lsl_api.cfg`.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import ClassVar, Self

import pylsl

from decoder.errors import StreamError

SETTLE_S = 0.3  # time for further matching streams to answer, after the first
POLL_S = 0.02
GARBLED = "(invalid: "  # liblsl's name for a stream whose answer it can't parse
FORGET_S = 4.0  # a stream that didn't answer for this long is gone; liblsl asks every 1.75 s


@dataclass(frozen=True, kw_only=True)
class Query:
    """Selects a stream: by `name` if given, else the only one of type `kind`."""

    kind: str
    name: str | None = None

    how_to_choose: ClassVar[str] = "its name"

    def __str__(self) -> str:
        return f"name {self.name!r}" if self.name else f"type {self.kind!r}"

    def matches(self, info: pylsl.StreamInfo) -> bool:
        """Whether the stream matches."""
        return bool(info.name() == self.name if self.name else info.type() == self.kind)

    def best(self, found: list[pylsl.StreamInfo]) -> list[pylsl.StreamInfo]:
        """The streams of the right type, else all: a device may give all its streams one name."""
        return [info for info in found if info.type() == self.kind] or found

    def refuse(self, found: list[pylsl.StreamInfo]) -> StreamError:
        """The error for several matching streams: the choice must not be left to chance."""
        seen = sorted(f"{info.name()!r} on {info.hostname()}" for info in found)
        return StreamError(
            f"{len(found)} streams have {self}: {', '.join(seen)}; expected one; "
            + ("stop the others" if self.name else f"choose one with {self.how_to_choose}")
        )


class Lookout:
    """Lists the streams that answer a query, while its `with` block runs."""

    def __init__(self, query: Query) -> None:
        self._query = query

    def __enter__(self) -> Self:
        predicate = _predicate(self._query)
        self._resolver = pylsl.ContinuousResolver(pred=predicate, forget_after=FORGET_S)
        return self

    def __exit__(self, *raised: object) -> None:
        del self._resolver

    def seen(self) -> list[pylsl.StreamInfo]:
        """The matching streams that have answered so far; never blocks."""
        return [info for info in self._resolver.results() if self._query.matches(info)]

    @property
    def garbled(self) -> str | None:
        """liblsl's message about an answer that it can't parse, or None."""
        names = (info.name() for info in self._resolver.results())
        return next((name for name in names if name.startswith(GARBLED)), None)

    def wait(self, timeout_s: float, stop: threading.Event | None = None) -> list[pylsl.StreamInfo]:
        """The streams that answer within `timeout_s`; after the first, others have `SETTLE_S`."""
        stop = stop or threading.Event()
        deadline = time.monotonic() + timeout_s
        while not self.seen() and time.monotonic() < deadline and not stop.wait(POLL_S):
            pass
        if self.seen():
            stop.wait(SETTLE_S)
        return self.seen()


def _predicate(query: Query) -> str:
    """The XPath predicate of liblsl's query. `matches` filters the rest.

    The query is sent as a line of UTF-8, but a sender's name may be in any encoding.
    """
    prop, value = ("name", query.name) if query.name else ("type", query.kind)
    if not (value.isascii() and value.isprintable()):
        return "true()"
    return f"{prop}={_literal(value)}"


def _literal(text: str) -> str:
    """A string literal in XPath 1.0, which has no escapes."""
    if "'" not in text:
        return f"'{text}'"
    if '"' not in text:
        return f'"{text}"'
    parts = ', "\'", '.join(f"'{part}'" for part in text.split("'"))
    return f"concat({parts})"
