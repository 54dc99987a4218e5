"""Runs the cases of a target in a child process with limited memory and time.

A target is a module with two functions:

    prepare(folder)               write intact originals to a folder, once
    case(folder, rng, scratch)    damage one of them in an empty scratch folder, and open it

A case may pass or raise a `VolitionError` with one short line. Anything else is a failure: another
exception, a long message or several lines, a crash, 60 s without an answer, more than 2 GB. A case
depends only on the seed and its number. The child works in batches; after a crash or a hang the
next batch starts with the next case.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

CASE_S = 60.0  # limit of one case, long enough for a busy machine
START_S = 120.0  # limit of the child's imports
MEMORY_BYTES = 2 * 2**30  # limit of a case, in addition to what the child needs to start
LONGEST_LINE = 1000  # characters in an error
BATCH = 2000  # cases per child


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A failed case: its number, the kind of failure, and the traceback or message."""

    number: int
    how: str
    text: str


@dataclass(kw_only=True)
class Report:
    """The outcome of all cases."""

    name: str
    seed: int
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    peak_mb: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        counts = ", ".join(f"{n:,} {outcome}" for outcome, n in sorted(self.outcomes.items()))
        line = (
            f"{self.name}, seed {self.seed}: {self.outcomes.total():,} cases in "
            f"{self.seconds:.0f} s: {counts}; {len(self.failures)} failures, peak "
            f"{self.peak_mb:.0f} MB"
        )
        failed = [f"  case {f.number}: {f.how}\n{f.text}" for f in self.failures[:10]]
        return "\n".join([line, *failed])


def run(target: str, count: int, *, seed: int = 0, first: int = 0) -> Report:
    """Run cases `first` to `first + count` of the module `tests.fuzz.<target>`."""
    report = Report(name=target, seed=seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        originals = Path(folder) / "originals"
        originals.mkdir()
        _prepare(target, originals)
        number, end = first, first + count
        while number < end:
            number = _batch(target, originals, seed, number, min(number + BATCH, end), report)
    report.seconds = time.monotonic() - began
    return report


def _prepare(target: str, folder: Path) -> None:
    """Prepare the originals in a separate process, to keep its imports out of this one."""
    code = (
        f"import sys; from pathlib import Path; from tests.fuzz import {target} as target; "
        "target.prepare(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(folder)], check=True)


def _batch(target: str, originals: Path, seed: int, first: int, end: int, report: Report) -> int:
    """Run a child over [first, end); returns the number of the next case."""
    arguments = [target, str(originals), str(seed), str(first), str(end), str(MEMORY_BYTES)]
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.fuzz.child", *arguments],
            stdout=subprocess.PIPE, stderr=said, text=True,
        )  # fmt: skip
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(child, lines), daemon=True).start()
        number, how = first, ""
        try:
            limit_s = START_S
            while (line := lines.get(timeout=limit_s)) is not None:
                _count(json.loads(line), report)
                number, limit_s = json.loads(line)["number"] + 1, CASE_S
        except queue.Empty:
            how = f"no answer within {limit_s:g} s"
        finally:
            child.kill()
            code = child.wait()
        if number < end:
            said.seek(0)
            how = how or f"the process ended with code {code}"
            text = said.read()[-4000:]
            report.outcomes["failed"] += 1
            report.failures.append(Failure(number=number, how=how, text=text))
            number += 1
    return number


def _read(child: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert child.stdout is not None
    with child.stdout:
        for line in child.stdout:
            lines.put(line)
    lines.put(None)


def _count(answer: dict[str, object], report: Report) -> None:
    report.outcomes[str(answer["outcome"])] += 1
    report.peak_mb = max(report.peak_mb, float(str(answer["peak_mb"])))
    if answer["outcome"] == "failed":
        report.failures.append(
            Failure(
                number=int(str(answer["number"])), how=str(answer["how"]), text=str(answer["text"])
            )
        )
