"""Runs the checks, each in a process of its own with a time limit.

A check that raises, crashes or hangs is a failure of that check, and the others go on: a broken
library or graph can take a whole process down. Checks of time run alone, so that the others don't
disturb them.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from clients.doctor.finding import Asked, Finding, failure, received

# name -> time limit, s, in the order of the report. A check takes a second or two; the limits leave
# room for a busy machine.
LIMITS_S = {
    "packages": 60.0,
    "settings": 60.0,
    "network": 60.0,
    "lsl": 90.0,
    "clocks": 60.0,
    "timer": 60.0,
    "permissions": 60.0,
    "cpu": 60.0,
    "disk": 60.0,
    "ports": 60.0,
    "provider": 120.0,
    "bundle": 180.0,
}
FIRST = ("cpu",)  # before the other checks load it
LAST = ("timer", "bundle")
AT_ONCE = 4
REPORT_IT = "run it again; if it stays, report this line with your operating system"

Found = dict[str, list[Finding]]


def examine(
    names: Sequence[str],
    asked: Asked,
    *,
    limits_s: dict[str, float] = LIMITS_S,
    on_start: Callable[[str], None] = lambda name: None,
) -> Found:
    """The findings of each check, in the order of `LIMITS_S`.

    limits_s: time limit of each check, s. on_start: called with the name of a check that starts,
    from any thread.
    """
    children = _Children()
    found: Found = {}

    def run(name: str) -> None:
        on_start(name)
        found[name] = children.run(name, asked, limits_s[name])

    try:
        for name in [name for name in FIRST if name in names]:
            run(name)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            together = [name for name in names if name not in (*FIRST, *LAST)]
            futures = [pool.submit(run, name) for name in together]
            try:
                for future in futures:
                    future.result()
            except BaseException:  # Ctrl-C: the pool would wait for the children
                children.end()
                raise
        for name in [name for name in LAST if name in names]:
            run(name)
    finally:
        children.end()
    return {name: found[name] for name in LIMITS_S if name in found}


class _Children:
    """The processes that run checks. After `end`, no further ones start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._ended = False

    def run(self, name: str, asked: Asked, limit_s: float) -> list[Finding]:
        """The findings of one check; never raises an Exception."""
        try:
            process = self._start(name, asked)
        except OSError as error:
            return [failure(name, f"the check can't be started: {error}", REPORT_IT)]
        if process is None:
            return []
        with process:
            try:
                output, said = process.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired:
                return [failure(name, f"no result within {limit_s:g} s", _when_slow(name))]
            finally:
                process.kill()
                with self._lock:
                    self._running.discard(process)
        try:
            return received(output)
        except ValueError:
            return [failure(name, f"the check {_ending(process.returncode, said)}", REPORT_IT)]

    def end(self) -> None:
        """Kill what still runs."""
        with self._lock:
            self._ended = True
            for process in self._running:
                process.kill()

    def _start(self, name: str, asked: Asked) -> subprocess.Popen[str] | None:
        with self._lock:
            if self._ended:
                return None
            process = subprocess.Popen(
                [sys.executable, "-m", "clients.doctor.checks", name, asked.to_json()],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                text=True, errors="replace",
            )  # fmt: skip
            self._running.add(process)
        return process


def _when_slow(name: str) -> str:
    if name == "bundle":
        return "the decoder hangs or is too large for this machine: export it again, or train a " \
            "smaller preset"  # fmt: skip
    return "end other programs and run it again; see if a network drive or a driver hangs"


def _ending(code: int, said: str) -> str:
    """How a process ended that gave no findings: signal or exit code, and its last words."""
    last = said.strip().splitlines()[-1:] or [""]
    if code < 0:
        try:
            how = f"crashed ({signal.Signals(-code).name})"
        except ValueError:
            how = f"crashed (signal {-code})"
    else:
        how = f"ended with exit code {code}"
    return f"{how}: {last[0]}" if last[0] else how
