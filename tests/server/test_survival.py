"""Server and daemon die separately; both come back in the state that they were in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clients.harness.daemon import BUNDLES
from clients.harness.server import Server
from clients.rest import ProblemError
from clients.subscriber import CursorSubscriber
from server.schemas import Calibration, CalibrationRequest, FiltersPatch
from streaming.daemon.settings import RESTARTED
from streaming.sessions.session import Session
from tests.rig import DEADLINE_S, POLLED_LATE_S, Process, frames_until, wait_for
from tests.server.conftest import POSSM, Play
from tests.streaming.test_live import assert_only_silence_interrupts, is_decoding


def request_for(session: Session, **given: object) -> CalibrationRequest:
    """A request for 10 s and units only; streams by name, because other tests may stream too."""
    name = session.session_id
    values = {"seconds": 10.0, "method": "units", "promote": "auto"} | given
    return CalibrationRequest(kinematics=f"{name}-kinematics", markers=f"{name}-markers", **values)


def has_collected(calibration: Calibration, seconds: float) -> bool:
    assert calibration.problem is None, calibration
    return calibration.collected_s > seconds


def test_a_killed_daemon_comes_back_with_its_decoder_filters_and_pause(server: Server) -> None:
    with server.client() as client, CursorSubscriber(server.address, max_age_s=None) as cursor:
        client.set_filters(FiltersPatch(gain=1.5, speed_limit=0.4))
        client.pause("between blocks")
        before = client.status().daemon
        first = cursor.receive(timeout_s=DEADLINE_S)
        os.kill(before.pid, signal.SIGKILL)
        restarted = frames_until(cursor, lambda frame: frame.started != first.started)[-1]
        assert restarted.decoder == before.decoder
        assert restarted.state == "paused"  # from its first frame
        status = wait_for("an answer", lambda: (s := client.status()).answered and s)
        assert status.restarts == 1
        assert status.daemon.pid != before.pid
        assert status.daemon.filters.gain == 1.5
        assert status.daemon.filters.speed_limit == 0.4
        assert status.daemon.paused == "between blocks"
        assert [c.what for c in client.journal() if c.what == "daemon died"]
        assert client.resume().daemon.paused is None


@pytest.mark.slow
def test_a_restarted_server_finds_its_daemon_and_calibration(
    server: Server, unseen: Session, play: Play
) -> None:
    with play(unseen), CursorSubscriber(server.address, max_age_s=None) as cursor:
        frames_until(cursor, is_decoding)
        with server.client() as client:
            daemon = client.status().daemon
            begun = client.start_calibration(request_for(unseen, seconds=20.0), "a-key")
            wait_for("data", lambda: has_collected(client.calibration(begun.id), 5.0))
        server.stop(signal.SIGKILL)
        seq = cursor.receive(timeout_s=DEADLINE_S).seq
        frames = frames_until(cursor, lambda frame: frame.seq > seq + 200)
        assert_only_silence_interrupts(frames)
        server.start()
        with server.client() as client:
            assert client.status().daemon.pid == daemon.pid
            found = client.calibration(begun.id)
            assert found.state == "interrupted"
            assert found.collected_s > 3.0
            assert client.start_calibration(request_for(unseen, seconds=20.0), "a-key") == found
            client.resume_calibration(begun.id)
            states = [calibration.state for calibration in client.follow(begun.id)]
            ended = client.calibration(begun.id)
            assert ended.state == "promoted", ended
            assert "training" in states
            assert 19.0 < ended.collected_s < 20.0 + POLLED_LATE_S
            assert frames_until(cursor, lambda frame: frame.decoder == ended.candidate)


def test_an_interrupted_calibration_can_be_discarded(
    server: Server, unseen: Session, play: Play
) -> None:
    with play(unseen), server.client() as client:
        begun = client.start_calibration(request_for(unseen, seconds=60.0))
        wait_for("data", lambda: has_collected(client.calibration(begun.id), 1.0))
        server.stop(signal.SIGKILL)
        server.start()
        folder = server.home / "calibrations" / begun.id
        assert folder.is_dir()
        client.delete_calibration(begun.id)
        assert not folder.exists()
        with pytest.raises(ProblemError, match="no calibration"):
            client.calibration(begun.id)


@pytest.mark.slow
def test_a_running_calibration_can_be_finished_early_or_cancelled(
    server: Server, unseen: Session, play: Play
) -> None:
    with play(unseen), server.client() as client:
        begun = client.start_calibration(request_for(unseen, seconds=600.0, promote="manual"))
        wait_for("data", lambda: has_collected(client.calibration(begun.id), 20.0))
        with pytest.raises(ProblemError, match="wait for it, or cancel it"):
            client.start_calibration(request_for(unseen))
        client.finish_calibration(begun.id)
        ended = list(client.follow(begun.id))[-1]
        assert ended.state == "ready", ended
        assert client.status().daemon.decoder == ended.before
        promoted = client.activate(ended.candidate)
        assert promoted.daemon.decoder == ended.candidate
        assert client.rollback().daemon.decoder == ended.before
        second = client.start_calibration(request_for(unseen, seconds=600.0))
        client.delete_calibration(second.id)
        assert client.calibration(second.id).state == "cancelled"


@pytest.mark.slow
def test_a_shadow_decodes_alongside_the_active_decoder_before_a_promotion(
    server: Server, unseen: Session, play: Play
) -> None:
    with (
        play(unseen),
        server.client() as client,
        CursorSubscriber(server.address, max_age_s=None) as cursor,
    ):
        frames_until(cursor, is_decoding)
        request = request_for(unseen, seconds=25.0, shadow=True, shadow_s=6.0)
        states = [calibration.state for calibration in client.calibrate(request)]
        assert "shadowing" in states
        ended = client.calibrations()[0]
        assert ended.state == "promoted", ended
        assert ended.live.seconds >= 6.0
        assert ended.live.candidate > 0.3 > ended.live.active


def test_a_decoder_that_can_not_start_is_replaced_by_the_last_good_one(
    server: Server,
) -> None:
    with server.client() as client:
        good = client.status().daemon.decoder
        wait_for("trust in the first decoder", lambda: client.status().daemon.uptime_s > 6.0)
        bad = client.add_decoder(str(BUNDLES / "poyo.bundle")).id
        client.activate(bad)
        assert client.status().daemon.decoder == bad
        (server.home / "decoders" / f"{bad}.bundle" / "graph.onnx").write_bytes(b"damaged")
        os.kill(client.status().daemon.pid, signal.SIGKILL)
        status = wait_for(
            "the good decoder",
            lambda: (s := client.status()).answered and s.daemon.decoder == good and s,
        )
        assert status.restarts >= 2
        assert client.decoder(bad).problem
        wait_for("trust in it", lambda: client.status().daemon.uptime_s > 6.0)
        os.kill(client.status().daemon.pid, signal.SIGKILL)  # the bad decoder is not tried again
        wait_for("its death", lambda: client.status().restarts > status.restarts)
        again = wait_for("an answer", lambda: (s := client.status()).answered and s)
        assert (again.daemon.decoder, again.restarts) == (good, status.restarts + 1)


def test_a_pause_that_a_hanging_daemon_misses_holds_for_the_next_one(
    server: Server,
) -> None:
    with server.client() as client, CursorSubscriber(server.address, max_age_s=None) as cursor:
        first = cursor.receive(timeout_s=DEADLINE_S)
        os.kill(client.status().daemon.pid, signal.SIGSTOP)
        with pytest.raises(ProblemError) as refused:
            client.pause("stop!")
        assert refused.value.problem.status == 503
        restarted = frames_until(cursor, lambda frame: frame.started != first.started)[-1]
        assert restarted.state == "paused"
        status = wait_for("an answer", lambda: (s := client.status()).answered and s)
        assert status.daemon.paused == "stop!"


def test_a_daemon_that_is_slow_to_answer_is_adopted(server: Server) -> None:
    with server.client() as client:
        pid = client.status().daemon.pid
    server.stop(signal.SIGKILL)
    os.kill(pid, signal.SIGSTOP)
    awake = threading.Timer(3.0, os.kill, (pid, signal.SIGCONT))
    awake.start()
    server.start()
    awake.join()
    with server.client() as client:
        status = client.status()
        assert (status.daemon.pid, status.restarts) == (pid, 0)


def test_a_server_without_a_free_port_leaves_the_daemon_alone(
    server: Server, tmp_path: Path
) -> None:
    with server.client() as client:
        pid = client.status().daemon.pid
        port = server.url.rpartition(":")[2]
        second = Process(
            tmp_path / "second.log", "serve", "--home", str(tmp_path / "second"), "--port", port
        )
        assert second.popen.wait(DEADLINE_S) == 1
        assert "can't listen" in second.output()
        assert client.status().daemon.pid == pid


def test_concurrent_filter_changes_both_hold(server: Server) -> None:
    with server.client() as client, ThreadPoolExecutor(8) as pool:
        for i in range(10):
            gain, limit = 1.0 + i / 10, 0.1 + i / 100
            changes = [FiltersPatch(gain=gain), FiltersPatch(speed_limit=limit)]
            list(pool.map(client.set_filters, changes))
            filters = client.filters()
            assert (filters.gain, filters.speed_limit) == (gain, limit)


def test_a_daemon_restarted_by_others_is_corrected_before_it_moves(
    tmp_path: Path, unseen: Session, play: Play
) -> None:
    stream = f"{unseen.session_id}-spikes"
    server = Server(POSSM, tmp_path / "home", stream, VOLITION_SUPERVISE="false")
    variables = server.variables | {"VOLITION_PAUSED": RESTARTED}

    def daemon() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "clients", "decode", str(POSSM)]
        return subprocess.Popen(command, env=os.environ | variables)

    first = daemon()
    try:
        with play(unseen), server, CursorSubscriber(server.address, max_age_s=None) as cursor:
            began = frames_until(cursor, is_decoding)[-1].started  # the server has resumed it
            with server.client() as client:
                other = client.add_decoder(str(BUNDLES / "poyo.bundle")).id
                client.activate(other)
                client.set_filters(FiltersPatch(gain=1.5))
                first.kill()
                first.wait()
                first = daemon()
                frames = frames_until(cursor, lambda frame: frame.valid and frame.started != began)
                restarted = [frame for frame in frames if frame.started != began]
                assert restarted[0].state == "paused"
                assert {frame.decoder for frame in restarted if frame.valid} == {other}
                assert client.status().daemon.filters.gain == 1.5
    finally:
        first.kill()
        first.wait()
