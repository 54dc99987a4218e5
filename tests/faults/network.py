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

from tests.faults.sender import CLOCK_FILE

ALONE = "FAULTS_ALONE"  # set in a process that has a network of its own


def no_root() -> str | None:
    """Why network namespaces and mounts can't be made here."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        return "needs Linux, root and iproute2"
    name = f"t{uuid.uuid4().hex[:8]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return made.stderr.strip() or None


def move_to_a_network_of_its_own() -> None:
    """Run this command again where nothing but its own processes can be heard, if that is allowed.

    So that a campaign neither hears nor disturbs a rig on the same network.
    """
    if os.environ.get(ALONE) or no_root() is not None or shutil.which("unshare") is None:
        return
    script = (
        "ip link set lo up multicast on && ip route add 224.0.0.0/4 dev lo && "
        'ip -6 route add ff00::/8 dev lo table local; exec "$@"'
    )
    command = ["unshare", "--net", "sh", "-c", script, "sh", sys.executable, *sys.orig_argv[1:]]
    os.environ[ALONE] = "yes"
    os.execvp(command[0], command)


def no_compiler() -> str | None:
    """Why a process's clock can't be moved here."""
    if sys.platform == "linux" and shutil.which("cc"):
        return None
    return "needs Linux and a C compiler (cc)"


class Link:
    """Two hosts (network namespaces): `near` has a switch, to which a cable goes from `far`.

    cuts: when nothing got through, LSL clock, s.
    """

    def __init__(self) -> None:
        tag = uuid.uuid4().hex[:6]
        self.near, self.far = f"n{tag}", f"f{tag}"
        self.cuts: list[tuple[float, float]] = []
        self._ip("netns", "add", self.near)
        self._ip("-n", self.near, "link", "set", "lo", "up")
        self._ip("-n", self.near, "link", "add", "switch", "type", "bridge")
        self._address(self.near, "switch", "10.213.0.1/24")
        self._add_far()

    def _add_far(self) -> None:
        self._ip("netns", "add", self.far)
        self._ip("-n", self.far, "link", "set", "lo", "up")
        self._ip("link", "add", "port", "netns", self.near, "type", "veth", "peer", "cable",
                 "netns", self.far)  # fmt: skip
        self._ip("-n", self.near, "link", "set", "port", "master", "switch", "up")
        self._address(self.far, "cable", "10.213.0.2/24")

    def _address(self, name: str, device: str, address: str) -> None:
        self._ip("-n", name, "addr", "add", address, "dev", device)
        self._ip("-n", name, "link", "set", device, "up")
        self._ip("-n", name, "route", "add", "default", "dev", device)

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def inside(self, name: str) -> tuple[str, ...]:
        """What to put before a command, so that it runs in a namespace."""
        return ("ip", "netns", "exec", name)

    def cut(self) -> None:
        """Nothing arrives from now on, and nobody is told."""
        self._ip("-n", self.far, "link", "set", "cable", "down")
        self.cuts.append((local_clock(), float("inf")))

    def mend(self) -> None:
        """The cable is back."""
        self._ip("-n", self.far, "link", "set", "cable", "up")
        self._ip("-n", self.far, "route", "replace", "default", "dev", "cable")
        self.cuts[-1] = (self.cuts[-1][0], local_clock())

    def lose_far(self) -> None:
        """The far host is gone with its connections, and another is in its place, with its address.

        Its processes must have ended while the link was cut, so that no goodbye was sent.
        """
        self._ip("-n", self.near, "link", "del", "port")
        self._ip("netns", "del", self.far)  # it lives on, unnamed, while its connections linger
        self.far = f"{self.far[:8]}{len(self.cuts)}"
        self._add_far()
        self.cuts[-1] = (self.cuts[-1][0], local_clock())

    def close(self) -> None:
        """Remove both hosts."""
        for name in (self.near, self.far):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


class MovableClock:
    """The monotonic clock of a process that starts with `environment`."""

    def __init__(self, folder: Path) -> None:
        library, self._file = folder / "clock.so", folder / "clock.shift"
        source = Path(__file__).with_name("clock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        self.move(0.0)
        self.environment = {"LD_PRELOAD": str(library), CLOCK_FILE: str(self._file)}

    def move(self, shift_s: float) -> None:
        """Ahead of this host's by so much from now on."""
        with self._file.open("r+b" if self._file.exists() else "wb") as file:
            file.write(struct.pack("d", shift_s))


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
