"""A rig in processes of its own: a daemon, a replay, and waiting for conditions with a deadline."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeVar

import pylsl

from clients.harness.daemon import free_port
from clients.subscriber import CursorSubscriber
from streaming.inlets.kinematics import KINEMATICS
from streaming.wire import messages as wire

T = TypeVar("T")
DEADLINE_S = 90.0  # long enough for a busy machine; a passing test does not wait for it
POLLED_LATE_S = 5.0  # a recorder on a busy machine may collect this much more than it was asked for
FAILED = AssertionError


class Process:
    """A `volition` command in a process of its own, its output kept in a file.

    prefix: a command that runs it, such as `ip netns exec NAME`.
    """

    def __init__(self, log: Path, *arguments: str, prefix: tuple[str, ...] = ()) -> None:
        self.log = log
        with log.open("w") as output:
            self.popen = subprocess.Popen(
                [*prefix, sys.executable, "-W", "ignore", "-m", "clients", *arguments],
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
    """A process that is killed when the `with` block ends."""
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


@contextmanager
def meanwhile(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """`work(ended)` in a thread during the `with` block, at whose end `ended` is set."""
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def wait_for(what: str, condition: Callable[[], T | None], timeout_s: float = DEADLINE_S) -> T:
    """Return the first true result of `condition`. Raises AssertionError after the deadline."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.005)
    raise FAILED(f"{what}: not within {timeout_s} s")


def no_kinematics() -> None:
    """Wait until no kinematics answer, of an earlier test or another rig."""
    wait_for("no kinematics", lambda: not pylsl.resolve_byprop("type", KINEMATICS, timeout=1.0))


def learning_s() -> float:
    """Seconds in which a busy machine learns at least as many steps as an idle one in 10.

    The measure is how long computing takes now, over the processor's time for it. What is busy now
    may be busier later, hence the power.
    """
    began, cpu = time.monotonic(), time.process_time()
    while time.process_time() - cpu < 0.5:
        pass
    return 10.0 * ((time.monotonic() - began) / 0.5) ** 1.5


class Pace:
    """What this machine gives a thread that asks to run every 5 ms, while its `with` block runs.

    A control for tests that look at time: on a busy machine everything is late.
    worst_s: the largest delay. lost_s: the sum of all delays.
    """

    PERIOD_S = 0.005

    def __init__(self) -> None:
        self.worst_s = self.lost_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            time.sleep(self.PERIOD_S)
            late = time.monotonic() - began - self.PERIOD_S
            self.worst_s, self.lost_s = max(self.worst_s, late), self.lost_s + late

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def frames_until(
    cursor: CursorSubscriber,
    enough: Callable[[wire.CursorFrame], bool],
    timeout_s: float = DEADLINE_S,
) -> list[wire.CursorFrame]:
    """Return every frame up to the first one for which `enough` is true."""
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
