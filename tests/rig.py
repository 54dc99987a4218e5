"""A rig in processes of its own: a daemon, a replay, and waiting for conditions with a deadline."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from clients.demo import free_port
from clients.subscriber import CursorSubscriber
from streaming import wire

T = TypeVar("T")
DEADLINE_S = 90.0  # waiting costs nothing when all is well; a busy machine needs it
FAILED = AssertionError


class Process:
    """A `volition` command in a process of its own, its output kept in a file.

    prefix: a command that runs it, such as `ip netns exec NAME`.
    """

    def __init__(self, log: Path, *arguments: str, prefix: tuple[str, ...] = ()) -> None:
        self.log = log
        with log.open("w") as output:
            self.popen = subprocess.Popen(
                [*prefix, sys.executable, "-W", "ignore", "-m", "clients.cli", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def stop(self, number: signal.Signals = signal.SIGINT, timeout_s: float = 60.0) -> int:
        """Send a signal and wait; returns the exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            raise FAILED(f"did not stop within {timeout_s} s:\n{self.output()}") from None

    def output(self) -> str:
        return self.log.read_text()


@contextmanager
def running(log: Path, *arguments: str) -> Iterator[Process]:
    """A process that is gone afterwards, whatever happens."""
    process = Process(log, *arguments)
    try:
        yield process
    finally:
        process.popen.kill()
        process.popen.wait()


@contextmanager
def daemon(folder: Path, bundle: Path, stream: str, *more: str) -> Iterator[tuple[Process, str]]:
    """A decode daemon on a free port, and its address."""
    address = f"tcp://127.0.0.1:{free_port()}"
    arguments = ("decode", str(bundle), "--stream-name", stream, "--address", address, *more)
    with running(folder / "daemon.log", *arguments) as process:
        yield process, address


def wait_for(what: str, condition: Callable[[], T | None], timeout_s: float = DEADLINE_S) -> T:
    """The first result of `condition` that is true, or an AssertionError after the deadline."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.005)
    raise FAILED(f"{what}: not within {timeout_s} s")


def frames_until(
    cursor: CursorSubscriber,
    enough: Callable[[wire.CursorFrame], bool],
    timeout_s: float = DEADLINE_S,
) -> list[wire.CursorFrame]:
    """Every frame up to the first that is enough."""
    frames: list[wire.CursorFrame] = []
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        frame = cursor.receive(timeout_s=1.0)
        if frame is None:
            continue
        frames.append(frame)
        if enough(frame):
            return frames
    seen = sorted({frame.state for frame in frames})
    raise FAILED(f"no such frame within {timeout_s} s; {len(frames)} frames, states {seen}")
