"""`volition doctor` in a process of its own, on a machine that a test has changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Examined:
    """What the command said. code: its exit code."""

    code: int
    about: dict[str, Any]

    def lines(self, name: str) -> list[dict[str, str]]:
        return [line for line in self.about["findings"] if line["name"] == name]

    def line(self, name: str) -> dict[str, str]:
        """The only finding of this name."""
        lines = self.lines(name)
        assert len(lines) == 1, self.about
        return lines[0]


def doctor(
    *arguments: str,
    prefix: tuple[str, ...] = (),
    cwd: Path | None = None,
    without: tuple[str, ...] = (),
    **variables: str,
) -> Examined:
    """The report as JSON.

    prefix: a command that runs it. without, variables: environment variables to leave out, to set.
    """
    done = run(*arguments, "--json", prefix=prefix, cwd=cwd, without=without, **variables)
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    about = json.loads(done.stdout)
    assert about["ok"] == (done.returncode == 0) == (not about["failures"])
    for line in about["findings"]:
        assert line["found"], line
        assert line["do"] or line["state"] == "ok", line
    return Examined(done.returncode, about)


def run(
    *arguments: str,
    prefix: tuple[str, ...] = (),
    cwd: Path | None = None,
    without: tuple[str, ...] = (),
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """The command, its output as text."""
    environment = {k: v for k, v in os.environ.items() if k not in without}
    path = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    return subprocess.run(
        [*prefix, sys.executable, "-m", "clients", "doctor", *arguments],
        capture_output=True, text=True, cwd=cwd, timeout=400, check=False,
        env=environment | {"PYTHONPATH": path} | variables,
    )  # fmt: skip
