"""A server of this machine's own: `volition serve` on free ports, ended with its daemon."""

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
    """`volition serve` in a process of its own, on free ports; stopped with its daemon at the end.

    home: where its state lies. address: where its daemon publishes. url: of its REST interface.
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
        """Begin, and wait until the daemon answers. Raises StreamError where it doesn't."""
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
        """Of its REST interface."""
        return ControlClient(self.url, token=self.variables.get("VOLITION_TOKEN"))

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Send a signal, wait until the process has ended."""
        self.process.send_signal(number)
        try:
            self.process.wait(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
