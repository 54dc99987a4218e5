"""The watchdog stops the cursor if the daemon dies, hangs or lags."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import msgspec
import pytest
from pylsl import local_clock

from clients.harness.daemon import free_port
from clients.subscriber import CursorSubscriber, StatusSubscriber
from streaming.daemon.watchdog import Watchdog
from streaming.wire import messages as wire
from streaming.wire.publish import Publisher
from tests.clients.test_subscriber import frame
from tests.rig import daemon, frames_until, running, wait_for
from tests.streaming.test_live import is_decoding, replay, stream_of


def test_the_cursor_stops_when_frames_stop_and_resumes_when_they_return(
    tiny, tmp_path: Path
) -> None:
    behind = f"tcp://127.0.0.1:{free_port()}"
    with (
        daemon(tmp_path, tiny.bundle.path, stream_of(tiny)) as (process, address),
        running(
            tmp_path / "watchdog.log", "watchdog", "--address", address, "--publish", behind,
            "--after-ms", "200",
        ) as watchdog,
        CursorSubscriber(behind, max_age_s=None) as cursor,
        running(tmp_path / "replay.log", *replay(tiny)),
    ):  # fmt: skip
        frames = frames_until(cursor, is_decoding)
        status = StatusSubscriber(behind)
        assert wait_for("the status", status.receive).decoder == frames[-1].decoder
        status.close()
        os.kill(process.popen.pid, signal.SIGSTOP)  # the daemon hangs
        stopped = frames_until(cursor, lambda frame: frame.state == "fault")[-1]
        assert not stopped.valid
        assert stopped.velocity == (0.0, 0.0)
        assert stopped.decoder == frames[-1].decoder
        os.kill(process.popen.pid, signal.SIGCONT)
        after = frames_until(cursor, is_decoding)
        assert all(not f.valid and f.velocity == (0.0, 0.0) for f in after[:-1])
        process.popen.kill()  # the daemon dies
        stopped = frames_until(cursor, lambda frame: frame.state == "fault")[-1]
        assert not stopped.valid
        assert watchdog.stop(signal.SIGTERM) == 0


CURSOR = wire.TOPICS["cursor"].prefix
UNREADABLE = {
    "another schema": CURSOR
    + wire.encode_frame(
        msgspec.structs.replace(
            frame(0, published=local_clock() + 3600.0), schema=wire.SCHEMA_VERSION + 1
        )
    ),  # never too old, so that only its schema is wrong
    "another map": CURSOR + b"\x81\xa3abc\x01",
    "not UTF-8": CURSOR + wire.encode_frame(frame(0)).replace(b"decoding", b"\xff" * 8),
    "nested too deep": CURSOR + b"\x91" * 100_000,
    "nothing": CURSOR,
    "a status": wire.TOPICS["status"].prefix + b"\xc1",
}


@pytest.mark.parametrize("message", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_unreadable_frames_are_a_fault_until_readable_ones_return(message: bytes) -> None:
    source = Publisher("tcp://127.0.0.1:*")
    watchdog = Watchdog(source.bound_to, "tcp://127.0.0.1:*", after_s=0.5)
    with CursorSubscriber(watchdog.publisher.bound_to, max_age_s=None) as cursor:

        def step(send: bytes) -> wire.CursorFrame | None:
            source.see_subscribers()
            source.pass_on(send)
            watchdog.step()
            return cursor.receive(timeout_s=0.0)

        def passed() -> bool:
            came = step(CURSOR + wire.encode_frame(frame(7)))
            return came is not None and came.valid

        def stop_frame() -> wire.CursorFrame | None:
            came = step(message)
            return came if came is not None and not came.valid else None

        wait_for("a frame that is passed on", passed)
        stopped = wait_for("the fault", stop_frame)
        assert (stopped.state, stopped.velocity) == ("fault", (0.0, 0.0))
        wait_for("a frame that is passed on again", passed)
    watchdog.publisher.close()
    watchdog._context.destroy(linger=0)
    source.close()
