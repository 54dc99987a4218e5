"""A link that can be cut, a sender's clock that can be moved, a disk that can be filled.

They need Linux, root and a C compiler; `no_root` and `no_compiler` return what is missing.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pylsl import local_clock

from tests import link
from tests.faults.sender import CLOCK_FILE


def no_root() -> str | None:
    """Why network namespaces and mounts are not available here; None if they are."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        return "needs Linux, root and iproute2"
    name = f"t{uuid.uuid4().hex[:8]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return made.stderr.strip() or None


def no_compiler() -> str | None:
    """Why the clock of a process can't be moved here; None if it can."""
    if sys.platform == "linux" and shutil.which("cc"):
        return None
    return "needs Linux and a C compiler (cc)"


class Link(link.Link):
    """A cable between two hosts (network namespaces) that records when it was down.

    cuts: spans without a connection (LSL clock, s).
    """

    def __init__(self) -> None:
        super().__init__()
        self.cuts: list[tuple[float, float]] = []

    def inside(self, name: str) -> tuple[str, ...]:
        """The prefix of a command that makes it run in a namespace."""
        return ("ip", "netns", "exec", name)

    def cut(self) -> None:
        """Cut the cable; neither side is notified."""
        super().cut()
        self.cuts.append((local_clock(), float("inf")))

    def mend(self) -> None:
        """Restore the cable."""
        super().mend()
        self.cuts[-1] = (self.cuts[-1][0], local_clock())

    def replace_far(self) -> None:
        """Power-cycle the far host: it keeps its address but loses its connections."""
        self.power_cut()
        self.power_up()
        self.cuts[-1] = (self.cuts[-1][0], local_clock())


class MovableClock:
    """The monotonic clock of a process that starts with `environment`."""

    def __init__(self, folder: Path) -> None:
        library, self._file = folder / "clock.so", folder / "clock.shift"
        source = Path(__file__).with_name("clock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        self._ahead_s = 0.0
        self.step(0.0)
        self.environment = {"LD_PRELOAD": str(library), CLOCK_FILE: str(self._file)}

    def step(self, by_s: float) -> None:
        """Move the clock ahead by `by_s`."""
        self._ahead_s += by_s
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("d", self._ahead_s))


class Disk:
    """A small disk in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self, but_bytes: int = 0) -> None:
        """Fill the disk up to `but_bytes` free bytes."""
        free = os.statvfs(self.path)
        size = max(free.f_bavail * free.f_frsize - but_bytes, 0)
        with (self.path / "filler").open("ab") as filler:
            os.posix_fallocate(filler.fileno(), 0, filler.tell() + size)

    def empty(self) -> None:
        """Delete the filler."""
        (self.path / "filler").unlink(missing_ok=True)


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Disk]:
    """Mount a small disk at `path` during the `with` block."""
    path.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True, capture_output=True)
