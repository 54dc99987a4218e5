"""Collects the data of one calibration: records its streams, then turns them into a session.

    python -m server.calibration.collect    takes one line of JSON, see `Order`

It is a separate process, so that disk writes never delay a tick. On `{"finish": true}` it stops
collecting. When its standard input closes it only closes its files, and a later one can continue.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from decoder.errors import SessionError, VolitionError
from decoder.stopwatch import Stopwatch
from server.calibration.blocks import saved
from server.calibration.driven import DaemonLog
from server.schemas import Movement
from streaming.inlets.spikes import StreamKind, StreamQuery
from streaming.recording.record import Recorder, RecordSettings
from streaming.sessions.layout import load_libraries
from streaming.wire.lines import Message, parent_messages, send, send_problem

REPORT_EVERY_S = 0.2
MIN_FREE_BYTES = 200e6


class Order(msgspec.Struct, kw_only=True):
    """What to collect, and where to save it. resume: continue the recording in `folder`.

    needs_labels: whether there must be kinematics.
    frames: address of the daemon's frames, to detect whether the daemon moves the cursor.
    """

    folder: str
    session: str
    seconds: float
    subject: str
    spikes_kind: StreamKind
    spikes: str | None
    kinematics: str | None
    markers: str | None
    wait_s: float
    resume: bool
    needs_labels: bool = True
    frames: str | None = None


class Collector:
    """Carries out one order; `listen` takes the server's messages in the meantime."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.finish = self.abandoned = False
        self.movement: Movement = "none"
        self._reported_at = 0.0
        self._recorder = Recorder(
            Path(order.folder),
            order.session,
            RecordSettings(
                spikes=StreamQuery(kind=order.spikes_kind, name=order.spikes),
                kinematics=order.kinematics,
                markers=order.markers,
                needs_kinematics=order.needs_labels,
                wait_s=order.wait_s,
            ),
            subject=order.subject,
            resume=order.resume,
        )

    def listen(self, messages: Iterator[Message]) -> None:
        """Handle messages until the server is gone."""
        for message in messages:
            self.finish |= bool(message.get("finish"))
            self._recorder.should_stop |= self.finish
        self.abandoned = self._recorder.should_stop = True

    def collect(self) -> Path | None:
        """Collect, and return the session's file; None if the server went away first."""
        check_space(Path(self.order.folder))
        threading.Thread(target=load_libraries, daemon=True).start()
        self._recorder.start()
        address = self.order.frames
        with self._recorder, DaemonLog(self._recorder.path, address) as self._daemon:
            self.movement = "recorded" if self._recorder.has_kinematics else "none"
            self._recorder.run(self.order.seconds, self._report)
            self._send_progress()
            self.stopwatch = Stopwatch()
        if self.abandoned and not self.finish:
            return None
        self.stopwatch.lap("closing the recording")
        path, self.movement = saved(
            self._recorder.path, Path(self.order.folder), needs_labels=self.order.needs_labels
        )
        self.stopwatch.lap("saving the session")
        return path

    def _report(self, recorder: Recorder) -> None:
        self._daemon.poll()
        if time.monotonic() - self._reported_at > REPORT_EVERY_S:
            self._reported_at = time.monotonic()
            self._send_progress()

    def _send_progress(self) -> None:
        recorder = self._recorder
        send(
            collected=recorder.labelled_s, spikes=recorder.n_spikes, movement=self.movement,
        )  # fmt: skip


def check_space(folder: Path) -> None:
    """Raise SessionError if the disk has no room for a calibration."""
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise SessionError(
            f"the disk of {folder} has {free / 1e6:.0f} MB free, expected at least "
            f"{MIN_FREE_BYTES / 1e6:.0f} MB; free some space"
        )


def main() -> None:
    """Read one order and carry it out."""
    messages = parent_messages()
    first: Message | None = next(messages, None)
    if first is None:
        return
    try:
        collector = Collector(msgspec.convert(first, Order))
        threading.Thread(target=collector.listen, args=(messages,), daemon=True).start()
        path = collector.collect()
    except VolitionError as error:
        send_problem(error)
    except OSError as error:
        send_problem(
            SessionError(f"{first.get('folder')}: can't be written ({error}); free some space")
        )
    else:
        if path is not None:
            send(done=str(path), phases_s=collector.stopwatch.phases_s, movement=collector.movement)


if __name__ == "__main__":
    main()
