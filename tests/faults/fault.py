"""A fault, and the result of one try."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Seconds = dict[str, float]  # durations measured in a try, by name


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One row of the table.

    attempt: causes the fault on a rig that decodes, waits for recovery, and returns the durations
        that it measured. It raises AssertionError if something does not hold. After every try the
        frames, orders and logs are checked as well.
    rig: the processes it needs. blocked: returns why it can't be tried on this machine, or None.
    """

    name: str
    what: str
    must_hold: str
    rig: type[Any]
    attempt: Callable[[Any], Seconds | None]
    blocked: Callable[[], str | None] = lambda: None


@dataclass(kw_only=True)
class Try:
    """One try. problems: the broken rules, one line each. load: load average over 1 min."""

    fault: str
    number: int
    problems: list[str]
    seconds: Seconds = field(default_factory=dict)
    frames: int = 0
    valid: int = 0
    orders: int = 0
    load: float = 0.0
