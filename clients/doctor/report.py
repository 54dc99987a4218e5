"""The findings on a terminal, one line per check, and as a dictionary for scripts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clients.doctor.finding import Finding, State, plural

MARKS: dict[State, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "warning": ("warning", "yellow"),
    "failure": ("failure", "bold red"),
}

Found = Mapping[str, list[Finding]]


def as_dict(found: Found) -> dict[str, Any]:
    """Whether the rig would run, the numbers of warnings and failures, and every finding."""
    every = list(_all(found))
    return {
        "ok": not count(every, "failure"),
        "failures": count(every, "failure"),
        "warnings": count(every, "warning"),
        "findings": [
            {"check": check, **asdict(finding)} for check in found for finding in found[check]
        ],
    }


def print_report(console: Console, found: Found) -> None:
    """Print a line per finding, what to do below it, and the conclusion."""
    table = Table.grid(padding=(0, 2), pad_edge=False)
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check, findings in found.items():
        for number, finding in enumerate(findings):
            mark, style = MARKS[finding.state]
            heading = Text("" if number else check, "bold")
            said = Text(finding.found, "" if finding.state == "ok" else style)
            table.add_row(heading, Text(mark, style), Text(finding.name), said)
            if finding.do:
                table.add_row("", "", Text("->", "cyan", justify="right"), Text(finding.do))
    console.print(table)
    console.print()
    console.print(conclusion(list(_all(found))))


def conclusion(every: list[Finding]) -> Text:
    """Whether the rig would run, in one line."""
    failures, warnings = count(every, "failure"), count(every, "warning")
    noted = f", {plural(warnings, 'warning')}" if warnings else ""
    if failures:
        mark = (f"{plural(failures, 'failure')}{noted}: ", "bold red")
        return Text.assemble(mark, "the rig would fail on this machine")
    return Text.assemble(("ready", "bold green"), noted)


def count(findings: Iterable[Finding], state: State) -> int:
    """The number of findings in a state."""
    return sum(finding.state == state for finding in findings)


def _all(found: Found) -> Iterable[Finding]:
    return (finding for findings in found.values() for finding in findings)
