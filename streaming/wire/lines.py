"""JSON lines between a child process and its parent, over standard input and output."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
from collections.abc import Iterator
from typing import Any

from decoder.errors import VolitionError

Message = dict[str, Any]


def send(**message: Any) -> None:
    """Send one message to the parent process; does nothing if the parent is gone."""
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), (json.dumps(message) + "\n").encode())


def send_problem(error: VolitionError) -> None:
    """Report the error that ends this process to the parent."""
    send(problem={"error": type(error).__name__, "detail": str(error)})


def parent_messages() -> Iterator[Message]:
    """Messages of the parent process, until it is gone."""
    for line in sys.stdin:
        yield json.loads(line)


def parent_messages_or_exit() -> Iterator[Message]:
    """Like `parent_messages`, but exit at once when the parent is gone, even during other work."""
    waiting: queue.Queue[Message] = queue.Queue()

    def read() -> None:
        for message in parent_messages():
            waiting.put(message)
        os._exit(1)

    threading.Thread(target=read, name="parent-messages", daemon=True).start()
    while True:
        yield waiting.get()
