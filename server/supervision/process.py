"""Processes that this server started, adopted or only watches: liveness and termination."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from typing import Protocol


class Process(Protocol):
    """The daemon's process, as the supervisor sees it."""

    pid: int

    def lives(self) -> bool:
        """Whether the process is still running."""

    def kill(self) -> None:
        """Kill the process; does nothing if it has ended."""


class Own:
    """A child process of this server."""

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
    """A process that an earlier server started, held by its pidfd because pids are reused.

    Raises ProcessLookupError if no process has this pid.
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
    """A process that another supervisor manages, perhaps in another container."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def lives(self) -> bool:
        """Always True: liveness can't be checked from here, so only its answers count."""
        return True

    def kill(self) -> None:
        """Does nothing: the other supervisor ends it."""
