"""When the daemon dies, hangs or lags, whoever listens is told to stop."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from clients.demo import free_port
from clients.subscriber import CursorSubscriber, StatusSubscriber
from tests.rig import daemon, frames_until, running, wait_for
from tests.streaming.test_live import is_decoding, replay, stream_of


def test_the_cursor_is_told_to_stop_when_frames_stop_and_goes_on_when_they_return(
    tiny, tmp_path: Path
) -> None:
    behind = f"tcp://127.0.0.1:{free_port()}"
    with (
        daemon(tmp_path, tiny.bundle.path, stream_of(tiny)) as (process, address),
        running(
            tmp_path / "watchdog.log", "watchdog", "--address", address, "--publish", behind,
            "--after-ms", "200",
        ) as watchdog,
        CursorSubscriber(behind) as cursor,
        running(tmp_path / "replay.log", *replay(tiny)),
    ):  # fmt: skip
        frames = frames_until(cursor, is_decoding)
        status = StatusSubscriber(behind)
        assert wait_for("the status", status.receive).decoder == frames[-1].decoder
        status.close()
        os.kill(process.popen.pid, signal.SIGSTOP)  # it hangs
        stopped = frames_until(cursor, lambda frame: frame.state == "fault")[-1]
        assert not stopped.valid
        assert stopped.velocity == (0.0, 0.0)
        assert stopped.decoder == frames[-1].decoder
        os.kill(process.popen.pid, signal.SIGCONT)
        after = frames_until(cursor, is_decoding)
        assert all(not f.valid and f.velocity == (0.0, 0.0) for f in after[:-1])
        process.popen.kill()  # it dies
        stopped = frames_until(cursor, lambda frame: frame.state == "fault")[-1]
        assert not stopped.valid
        assert watchdog.stop(signal.SIGTERM) == 0
