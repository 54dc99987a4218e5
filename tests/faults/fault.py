"""A fault, and what one try of it gave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Seconds = dict[str, float]  # what was timed in a try, by name


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One row of the matrix.

    attempt: brings the fault about on a rig that decodes, waits for recovery, and returns what it
        timed. It raises AssertionError if something does not hold; the checker, the orders and the
        logs are looked at after every try besides.
    rig: the processes it needs. blocked: why it can't be tried on this machine, if it can't.
    """

    name: str
    what: str
    must_hold: str
    rig: type[Any]
    attempt: Callable[[Any], Seconds | None]
    blocked: Callable[[], str | None] = lambda: None


@dataclass(kw_only=True)
class Try:
    """One try. problems: rules that did not hold, each in a line. load: of the machine (1 min)."""

    fault: str
    number: int
    problems: list[str]
    seconds: Seconds = field(default_factory=dict)
    frames: int = 0
    valid: int = 0
    orders: int = 0
    load: float = 0.0
