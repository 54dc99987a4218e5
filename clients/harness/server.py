"""A server with its daemon as child processes, on free ports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from clients.control import ControlClient
from clients.harness.daemon import free_port
from clients.rest import UnreachableError
from decoder.errors import StreamError, VolitionError

SHIPPED = {"stream": "possm", "rt": "poyo"}

TIMEOUT_S = 120.0


class Server:
    """`volition serve` as a child process on free ports; stopped with its daemon on exit.

    home: folder of its state. address: ZeroMQ address of its daemon. url: URL of its REST API.
    """

    def __init__(self, bundle: Path, home: Path, stream: str, **more: str) -> None:
        ports = [free_port() for _ in range(3)]
        self.home, self._bundle = home, bundle
        self.url, self.address = f"http://127.0.0.1:{ports[0]}", f"tcp://127.0.0.1:{ports[1]}"
        self.variables = {
            "VOLITION_HOME": str(home),
            "VOLITION_PORT": str(ports[0]),
            "VOLITION_ADDRESS": self.address,
            "VOLITION_CONTROL": f"tcp://127.0.0.1:{ports[2]}",
            "VOLITION_STREAM_NAME": stream,
            **more,
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.stop()

    def start(self) -> None:
        """Start, and wait until the daemon answers. Raises StreamError if it doesn't."""
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "clients", "serve", "--bundle", str(self._bundle)],
                stdout=log, stderr=log, env=os.environ | self.variables,
            )  # fmt: skip
        deadline = time.monotonic() + TIMEOUT_S
        try:
            while not self._answers():
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise StreamError(f"no server: {(self.home / 'server.log').read_text()}")
                time.sleep(0.05)
        except VolitionError:
            self.stop()
            raise

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return client.status().answered
        except UnreachableError:
            return False

    def client(self) -> ControlClient:
        """A client of its REST API."""
        return ControlClient(self.url, token=self.variables.get("VOLITION_TOKEN"))

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Send a signal and wait until the process ends."""
        self.process.send_signal(number)
        try:
            self.process.wait(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
