"""JSON lines between a process and the one that started it, over standard input and output."""

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
    """One line to the process that started this one; nothing where it is gone."""
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), (json.dumps(message) + "\n").encode())


def send_problem(error: VolitionError) -> None:
    """This process can't go on, and why."""
    send(problem={"error": type(error).__name__, "detail": str(error)})


def parent_messages() -> Iterator[Message]:
    """What the process that started this one says, until it is gone."""
    for line in sys.stdin:
        yield json.loads(line)


def parent_messages_or_exit() -> Iterator[Message]:
    """The same, and this process ends at once when the other is gone, whatever it is doing."""
    waiting: queue.Queue[Message] = queue.Queue()

    def read() -> None:
        for message in parent_messages():
            waiting.put(message)
        os._exit(1)

    threading.Thread(target=read, name="told", daemon=True).start()
    while True:
        yield waiting.get()
