"""A decode daemon as a child process; the shipped bundles; free ports."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from decoder.errors import StreamError

BUNDLES = Path(__file__).parents[1] / "demo_data"

TICK_MS = 10.0


def free_port() -> int:
    """A TCP port that is free on loopback and stays reserved until this process ends.

    The socket stays bound without listening. Linux then does not assign the port to another
    socket, but a server can listen on it, because servers set SO_REUSEADDR.
    """
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(("127.0.0.1", 0))
    port = int(probe.getsockname()[1])
    if sys.platform == "linux":
        probe.detach()
    else:
        probe.close()
    return port


@contextmanager
def daemon(bundle: Path, address: str, stream_name: str) -> Iterator[subprocess.Popen[str]]:
    """Run a decode daemon as a child process; SIGINT ends it on exit."""
    command = [
        sys.executable, "-m", "clients", "decode", str(bundle),
        "--tick-ms", str(TICK_MS), "--address", address, "--stream-name", stream_name,
    ]  # fmt: skip
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stderr=log, text=True)
        try:
            yield process
        except StreamError as error:
            if process.poll() is None:
                raise
            log.seek(0)
            said = log.read().strip()
            raise StreamError(
                f"the daemon ended with exit code {process.returncode}: {said}"
            ) from error
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=10.0)
            except subprocess.TimeoutExpired:
                process.kill()
