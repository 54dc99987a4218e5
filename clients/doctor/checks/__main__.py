"""Runs one check and prints its findings as JSON: `python -m clients.doctor.checks NAME ASKED`.

Each check's module is imported when it is asked for: the others may miss a package.
"""

from __future__ import annotations

import importlib
import sys
import traceback

from clients.doctor.examination import REPORT_IT
from clients.doctor.finding import Asked, Check, Finding, failure, send
from decoder.errors import VolitionError, brief

WHERE = {
    "packages": ("packages", "packages"),
    "settings": ("host", "settings"),
    "network": ("network", "network"),
    "lsl": ("lsl", "lsl"),
    "clocks": ("clocks", "clocks"),
    "timer": ("clocks", "timer"),
    "permissions": ("host", "permissions"),
    "cpu": ("host", "cpu"),
    "disk": ("host", "disk"),
    "ports": ("ports", "ports"),
    "provider": ("decoders", "provider"),
    "bundle": ("decoders", "bundle"),
}  # name of a check -> module, function


def main() -> None:
    name, asked = sys.argv[1], Asked.from_json(sys.argv[2])
    send(findings_of(name, asked))


def findings_of(name: str, asked: Asked) -> list[Finding]:
    """The findings of a check; an exception is a failure."""
    module, function = WHERE[name]
    try:
        check: Check = getattr(importlib.import_module(f"clients.doctor.checks.{module}"), function)
        return check(asked)
    except ImportError as error:
        found = f"can't be looked at: {brief(error)}"
        return [failure(name, found, "first make every package load: see the check `packages`")]
    except VolitionError as error:
        return [failure(name, str(error), "")]
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
        found = f"the check itself failed at {at}: {type(error).__name__}: {brief(error)}"
        return [failure(name, found, REPORT_IT)]


if __name__ == "__main__":
    main()
