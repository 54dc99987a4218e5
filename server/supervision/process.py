"""A process that may be ours or somebody else's: whether it lives, and its end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from typing import Protocol


class Process(Protocol):
    """What the supervisor needs of a daemon's process."""

    pid: int

    def lives(self) -> bool:
        """Whether it has not ended."""

    def kill(self) -> None:
        """End it at once; nothing where it has ended."""


class Own:
    """A child of this process."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen, self.pid = popen, popen.pid

    def lives(self) -> bool:
        """See `Process`."""
        return self._popen.poll() is None

    def kill(self) -> None:
        """See `Process`."""
        self._popen.kill()
        self._popen.wait()


class Adopted:
    """A process that was here before; by its pidfd, since a pid may be given to another.

    Raises ProcessLookupError where none has this pid.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def lives(self) -> bool:
        """See `Process`."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return not poll.poll(0)

    def kill(self) -> None:
        """See `Process`."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._fd)


class Foreign:
    """A process that somebody else starts and ends, perhaps in another container."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def lives(self) -> bool:
        """Nobody here can say; only its answers count."""
        return True

    def kill(self) -> None:
        """Not ours to end."""
