"""Notes that people write during a session: the request body, and their LSL outlet.

Each note is sent as a marker with the time of the request, so that any recorder of LSL streams
keeps it. The type of the stream is `Notes`, not `Markers`, which carry a task's trials.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import ConfigDict, Field

from server.schemas import Body

if TYPE_CHECKING:
    import pylsl

log = logging.getLogger("volition.server")

STREAM = "volition-notes"
MOST_WAITING = 1000
CLOSE_S = 2.0


class NewNote(Body):
    """A note on the session."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"text": "electrode 12 came loose, fixed"}]}
    )

    text: str = Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")


class NotesOutlet:
    """The outlet of a server's notes, opened in a thread of its own: nobody waits for LSL.

    port: of the server; part of the stream's `source_id`. If the outlet can't be opened, this is
    logged, and the next note tries again.
    """

    def __init__(self, port: int) -> None:
        self._source_id = f"{STREAM}-{socket.gethostname()}-{port}"
        self._waiting: queue.Queue[tuple[float, str] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="notes", daemon=True)
        self._outlet: pylsl.StreamOutlet | None = None

    def start(self) -> None:
        """Open the outlet, so that recorders find it before the first note."""
        self._thread.start()

    def send(self, time_s: float, text: str) -> None:
        """Send a note written at `time_s`, LSL clock. Never blocks or raises."""
        try:
            self._waiting.put_nowait((time_s, text))
        except queue.Full:
            log.error("the outlet of notes is stuck; a note is in the journal only: %s", text)

    def close(self) -> None:
        """Send what waits, and close the outlet."""
        if not self._thread.is_alive():
            return
        try:
            self._waiting.put(None, timeout=CLOSE_S)
        except queue.Full:
            return
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        self._try_to(self._open)
        while (note := self._waiting.get()) is not None:
            time_s, text = note
            self._try_to(lambda: self._open().push_sample([text], time_s))  # noqa: B023
        self._outlet = None

    def _open(self) -> pylsl.StreamOutlet:
        import pylsl

        from streaming.recording.outlets import notes_info

        if self._outlet is None:
            self._outlet = pylsl.StreamOutlet(notes_info(STREAM, self._source_id))
        return self._outlet

    def _try_to(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # liblsl's RuntimeError, or an OSError of its wrapper
            log.error("notes can't be sent over LSL: %r; they are in the journal", error)
