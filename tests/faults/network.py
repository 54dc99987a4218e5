"""A link that can be cut, a sender's clock that can be moved, a disk that can be filled.

None of it needs more than Linux, root and a C compiler; `no_root` and `no_compiler` say what is
missing.
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
    """Why network namespaces and mounts can't be made here."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        return "needs Linux, root and iproute2"
    name = f"t{uuid.uuid4().hex[:8]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return made.stderr.strip() or None


def no_compiler() -> str | None:
    """Why a process's clock can't be moved here."""
    if sys.platform == "linux" and shutil.which("cc"):
        return None
    return "needs Linux and a C compiler (cc)"


class Link(link.Link):
    """A cable between two hosts (network namespaces) that knows when it was down.

    cuts: when nothing got through, LSL clock, s.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cuts: list[tuple[float, float]] = []

    def inside(self, name: str) -> tuple[str, ...]:
        """What to put before a command, so that it runs in a namespace."""
        return ("ip", "netns", "exec", name)

    def cut(self) -> None:
        """Nothing arrives from now on, and nobody is told."""
        super().cut()
        self.cuts.append((local_clock(), float("inf")))

    def mend(self) -> None:
        """The cable is back."""
        super().mend()
        self.cuts[-1] = (self.cuts[-1][0], local_clock())

    def replace_far(self) -> None:
        """The far host lost its power, and is back with its address and none of its connections."""
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
        """Further ahead of this host's by so much from now on."""
        self._ahead_s += by_s
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("d", self._ahead_s))


class Disk:
    """A small one in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self, but_bytes: int = 0) -> None:
        """Leave no more than so many bytes."""
        free = os.statvfs(self.path)
        size = max(free.f_bavail * free.f_frsize - but_bytes, 0)
        with (self.path / "filler").open("ab") as filler:
            os.posix_fallocate(filler.fileno(), 0, filler.tell() + size)

    def empty(self) -> None:
        """Give the room back."""
        (self.path / "filler").unlink(missing_ok=True)


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Disk]:
    """A disk of its own at `path` until the block ends."""
    path.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True, capture_output=True)
