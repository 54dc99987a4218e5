"""Child processes that talk to their parent in JSON lines and end when it does.

A child ends when its standard input closes, so none outlives a parent that was killed. The child's
side of the protocol is `streaming.wire.lines`.
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
from streaming.logs import open_log
from streaming.wire.lines import Message

STOP_TIMEOUT_S = 5.0


class ChildEndedError(VolitionError):
    """A child process ended before it was done."""


class Child:
    """`python -m MODULE ARGUMENTS` as a child process.

    log: file for its standard error. env: its environment (default: the parent's).
    """

    def __init__(
        self, module: str, *arguments: str, log: Path, env: dict[str, str] | None = None
    ) -> None:
        self.module, self._log = module, log
        with open_log(log) as output:
            self._process = subprocess.Popen(
                self._command(module, *arguments),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output,
                start_new_session=True, env=env,
            )  # fmt: skip
        self._received: queue.Queue[Message | None] = queue.Queue()
        threading.Thread(target=self._read, name=f"{module}-reader", daemon=True).start()

    def _command(self, module: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", module, *arguments]

    def send(self, **message: Any) -> None:
        """Send one message. If the child is gone, the next read raises."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write((json.dumps(message) + "\n").encode())
            self._process.stdin.flush()

    def check(self) -> None:
        """Raise the error that the child has reported, or ChildEndedError if it ended; never waits.

        Other messages are dropped.
        """
        while not self._received.empty():
            self._read_one()

    def messages(self, *, silent_s: float, within_s: float = float("inf")) -> Iterator[Message]:
        """The child's messages up to and including `done`.

        A child that is silent for `silent_s`, or not done `within_s`, counts as hung and is killed.
        Raises the error that the child reports, or ChildEndedError if it ends early or hangs.
        """
        deadline = self._time() + within_s
        while True:
            silent = self._time() + silent_s
            try:
                message = self._read_before(min(silent, deadline))
            except queue.Empty:
                self.kill()
                what = f"was silent for {silent_s:.0f} s" if silent <= deadline else (
                    f"was not done within {within_s:.0f} s"
                )  # fmt: skip
                raise ChildEndedError(
                    f"{self.module} {what} and was killed; see {self._log}, then try again"
                ) from None
            yield message
            if "done" in message:
                return

    def wait_for(self, name: str, timeout_s: float) -> Message:
        """The next message that has this key; earlier messages are dropped.

        Raises the error that the child reports, or ChildEndedError if it ends or is silent.
        """
        deadline = self._time() + timeout_s
        while True:
            try:
                message = self._read_before(deadline)
            except queue.Empty:
                raise ChildEndedError(
                    f"{self.module} sent no {name!r} within {timeout_s:g} s; see {self._log}"
                ) from None
            if name in message:
                return message

    def _time(self) -> float:
        """A clock, s, that stops while the child is runnable but has no core.

        The trainer runs at the lowest priority. On a busy machine it may take minutes to load
        torch, which must not count as a hang. Without /proc/PID/schedstat this is the wall clock.
        """
        try:
            waited_ns = int(Path(f"/proc/{self._process.pid}/schedstat").read_text().split()[1])
        except (OSError, ValueError, IndexError):
            waited_ns = 0
        return time.monotonic() - waited_ns / 1e9

    def _read_before(self, deadline: float) -> Message:
        """The next message. Raises queue.Empty if none comes before `_time` reaches `deadline`."""
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
            raise _error(message["problem"]["error"], message["problem"]["detail"])
        return message

    def stop(self) -> None:
        """Close the child's standard input; kill the child if it does not end in time."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """Kill the child and wait for its end."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with contextlib.suppress(json.JSONDecodeError):
                    self._received.put(json.loads(line))
        self._received.put(None)


def _error(name: str, detail: str) -> VolitionError:
    """The error that a child reported by the name of its class."""
    kinds: list[type[VolitionError]] = [VolitionError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return {kind.__name__: kind for kind in kinds}.get(name, VolitionError)(detail)
