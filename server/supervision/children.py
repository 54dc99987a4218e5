"""Processes that work for the server: JSON lines in, JSON lines out, gone when the server is.

    server.calibration.collect      writes a calibration's streams to disk
    server.calibration.shadow       decodes beside the daemon
    training.calibration.worker     learns; it loads torch while a calibration is still being
    collected

A child ends when its standard input does, so that none outlives a server that was killed; its side
of the lines is `streaming.wire.lines`.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from decoder.errors import VolitionError
from server.problems import error_of
from server.settings import environment
from server.supervision.logs import open_log
from streaming.wire.lines import Message

STOP_TIMEOUT_S = 5.0


class ChildEndedError(VolitionError):
    """A process that worked for the server ended without an answer."""


class Child:
    """`python -m MODULE ARGUMENTS` in a process of its own.

    log: file that its standard error goes to.
    """

    def __init__(self, module: str, *arguments: str, log: Path) -> None:
        self.module, self._log = module, log
        with open_log(log) as output:
            self._process = subprocess.Popen(
                self._command(module, *arguments),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output,
                start_new_session=True, env=environment(),
            )  # fmt: skip
        self._received: queue.Queue[Message | None] = queue.Queue()
        threading.Thread(target=self._read, name=f"{module}-reader", daemon=True).start()

    def _command(self, module: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", module, *arguments]

    def send(self, **message: Any) -> None:
        """Send a line; a child that is gone is noticed by who reads."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write((json.dumps(message) + "\n").encode())
            self._process.stdin.flush()

    def check(self) -> None:
        """Raise the error that it reported meanwhile, if any, or ChildEndedError; never waits.

        What else it said is forgotten.
        """
        while not self._received.empty():
            self._read_one()

    def messages(self, *, silent_s: float, within_s: float = float("inf")) -> Iterator[Message]:
        """What it says, line by line, up to `done`.

        Raises the error that it reports, or ChildEndedError if it ends before. A child that says
        nothing for `silent_s`, or isn't done `within_s`, is ended: it hangs.
        """
        deadline = self._time() + within_s
        while True:
            silent = self._time() + silent_s
            try:
                message = self._read_before(min(silent, deadline))
            except queue.Empty:
                self.kill()
                what = f"said nothing for {silent_s:.0f} s" if silent <= deadline else (
                    f"was not done within {within_s:.0f} s"
                )  # fmt: skip
                raise ChildEndedError(
                    f"{self.module} {what} and was ended; see {self._log}, then try again"
                ) from None
            yield message
            if "done" in message:
                return

    def wait_for(self, name: str, timeout_s: float) -> Message:
        """The next message that has this key; others before it are forgotten.

        Raises the error that it reports, ChildEndedError where it ends before, or is silent.
        """
        deadline = self._time() + timeout_s
        while True:
            try:
                message = self._read_before(deadline)
            except queue.Empty:
                raise ChildEndedError(
                    f"{self.module} did not say {name!r} within {timeout_s:g} s; see {self._log}"
                ) from None
            if name in message:
                return message

    def _time(self) -> float:
        """A clock, s, that stands still while the child is ready to run and gets no core.

        It learns at the lowest priority: on a busy machine minutes may pass before it has loaded
        torch, and that is no hang. Where the system doesn't say how long it waited, time is time.
        """
        try:
            waited_ns = int(Path(f"/proc/{self._process.pid}/schedstat").read_text().split()[1])
        except (OSError, ValueError, IndexError):
            waited_ns = 0
        return time.monotonic() - waited_ns / 1e9

    def _read_before(self, deadline: float) -> Message:
        """The next message before `_time` is that late. Raises queue.Empty if there is none."""
        while True:
            try:
                return self._read_one(max(0.0, deadline - self._time()))
            except queue.Empty:
                if self._time() >= deadline:
                    raise

    def _read_one(self, timeout_s: float | None = None) -> Message:
        message = self._received.get(timeout=timeout_s)
        if message is None:
            self._received.put(None)
            raise ChildEndedError(
                f"{self.module} ended with exit code {self._process.wait()}; see {self._log}"
            )
        if "problem" in message:
            raise error_of(message["problem"]["error"], message["problem"]["detail"])
        return message

    def stop(self) -> None:
        """Let it end; end it where it doesn't."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with contextlib.suppress(json.JSONDecodeError):
                    self._received.put(json.loads(line))
        self._received.put(None)
