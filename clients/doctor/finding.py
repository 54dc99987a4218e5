"""What a check finds, and what a user can ask for. Needs nothing but Python.

A check is a function from `Asked` to a list of findings. It may raise: the process that runs it
turns the exception into a failure.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "warning", "failure"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the examination.

    name: what was looked at. found: what was seen. do: the next step; "" if there is none.
    """

    name: str
    state: State
    found: str
    do: str = ""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Options of the command; None if they were not given.

    config: TOML file of the server's settings. tick_ms: time between decodes, ms.
    """

    bundle: str | None = None
    provider: str | None = None
    tick_ms: float | None = None
    config: str | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Asked:
        return cls(**json.loads(text))


Check = Callable[[Asked], list[Finding]]


def ok(name: str, found: str, do: str = "") -> Finding:
    """As it should be. do: a hint, as a rule none."""
    return Finding(name=name, state="ok", found=found, do=do)


def warning(name: str, found: str, do: str) -> Finding:
    """The rig runs, but not as well as it could."""
    return Finding(name=name, state="warning", found=found, do=do)


def failure(name: str, found: str, do: str) -> Finding:
    """The rig would fail."""
    return Finding(name=name, state="failure", found=found, do=do)


def plural(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def send(findings: list[Finding]) -> None:
    """Print findings as one line of JSON, for `received`."""
    print(json.dumps([asdict(finding) for finding in findings]), file=sys.stdout, flush=True)


def received(output: str) -> list[Finding]:
    """The findings in the last line of a process's output. Raises ValueError if there are none."""
    lines: list[Any] = output.splitlines() or [""]
    try:
        return [Finding(**fields) for fields in json.loads(lines[-1])]
    except TypeError as error:
        raise ValueError(f"no findings: {lines[-1]!r}") from error
