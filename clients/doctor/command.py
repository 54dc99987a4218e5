"""`volition doctor`: examine, print, and tell the exit code."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console

from clients.doctor.examination import LIMITS_S, examine
from clients.doctor.finding import Asked
from clients.doctor.report import as_dict, print_report
from decoder.errors import SettingsError


def doctor(console: Console, asked: Asked, only: Sequence[str], *, as_json: bool) -> int:
    """Examine this machine and report; returns the exit code.

    only: names of checks; empty for all. console: of the report, or of the progress with `as_json`.
    Raises SettingsError for the name of no check, and for `bundle` without one.
    """
    if unknown := sorted(set(only) - set(LIMITS_S)):
        raise SettingsError(
            f"--only {', '.join(unknown)}; expected {', '.join(LIMITS_S)} (it may be repeated)"
        )
    if "bundle" in only and asked.bundle is None:
        raise SettingsError("--only bundle needs the path of a bundle: volition doctor BUNDLE")
    names = [n for n in only or LIMITS_S if n != "bundle" or asked.bundle is not None]
    with console.status("checking…") as status:
        found = examine(names, asked, on_start=lambda name: status.update(f"checking {name}…"))
    about = as_dict(found)
    if as_json:
        print(json.dumps(about, indent=2))
    else:
        print_report(console, found)
    return 0 if about["ok"] else 1
