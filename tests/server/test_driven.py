"""Calibrations in closed loop: the gain of the output filters is removed from the data."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pylsl
import pytest

from clients.harness.daemon import free_port
from clients.harness.server import Server
from clients.subscriber import CursorSubscriber
from decoder.bundles.bundle import open_bundle
from server.calibration.driven import DaemonFrames, Driving, before_filters, read_driving
from server.schemas import CalibrationRequest, FiltersPatch
from streaming.sessions import format as sessions
from streaming.sessions.session import Session
from streaming.wire import messages as wire
from streaming.wire.publish import Publisher
from streaming.wire.states import State
from tests.rig import frames_until, meanwhile, wait_for
from tests.server.conftest import Play
from tests.streaming.test_live import is_decoding
from training.data.simulate import simulate
from training.evaluation.offline import decode_split

GAIN = 0.4


@contextmanager
def cursor_that_follows(server: Server, name: str) -> Iterator[None]:
    """A rig whose kinematics over LSL follow the daemon's own frames."""
    info = pylsl.StreamInfo(name, "Kinematics", 4, 100.0, "double64", name)
    info.set_channel_labels(["pos_x", "pos_y", "vel_x", "vel_y"])
    outlet = pylsl.StreamOutlet(info)

    def follow(ended: threading.Event) -> None:
        pos, before = np.zeros(2), time.monotonic()
        with CursorSubscriber(server.address, latest_only=True) as cursor:
            while not ended.is_set():
                frame = cursor.receive(timeout_s=0.1)
                if frame is None:
                    continue
                velocity = np.array(frame.velocity)
                now = time.monotonic()
                pos, before = pos + velocity * (now - before), now
                outlet.push_sample([*pos, *velocity])

    with meanwhile(follow):
        yield


@pytest.mark.slow
@pytest.mark.timing
def test_a_calibration_in_closed_loop_keeps_the_cursor_speed(
    server: Server, unseen: Session, play: Play
) -> None:
    """And the active decoder, whose own velocity labels the data, is not scored as bad."""
    name = f"{unseen.session_id}-closed"
    request = CalibrationRequest(seconds=12.0, method="units", promote="auto", kinematics=name)
    with play(unseen), server.client() as client, CursorSubscriber(server.address) as cursor:
        client.set_filters(FiltersPatch(gain=GAIN))
        frames_until(cursor, is_decoding)
        with cursor_that_follows(server, name):
            *_, ended = client.calibrate(request)
        assert client.filters().gain == GAIN
    assert ended.held_out is not None, ended
    assert ended.movement == "decoded"
    assert ended.held_out.active > 0.3  # a frame or two late; -7 with the filtered velocity
    folder = server.home / "calibrations" / ended.id
    (path,) = folder.glob("*.h5")
    collected = sessions.load(path)
    recorded = read_driving(folder / f"{ended.id}.recording")
    given = np.percentile(np.linalg.norm(recorded.velocity, axis=1), 90)
    labelled = np.percentile(np.linalg.norm(collected.cursor_vel, axis=1), 90)
    assert labelled * GAIN == pytest.approx(given, rel=0.25)
    made = open_bundle(server.home / "decoders" / f"{ended.candidate}.bundle")
    decoded = decode_split(made, collected, "all", tick_s=0.05)
    through_the_filters = GAIN * np.std(decoded.velocity)
    assert through_the_filters > 0.3 * np.std(recorded.velocity)


def driving(times: np.ndarray, velocity: np.ndarray, **gains: list[float]) -> Driving:
    """The output of a daemon with one gain, or several in turn."""
    return Driving(
        times=times, velocity=velocity,
        gain_times=np.array(gains.get("since", [times[0]])), gains=np.array(gains["gains"]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def session() -> Session:
    return simulate(n_units=4, minutes=1.0, subject=2, seed=3)


def test_each_gain_is_undone_over_the_stretch_it_was_used(session: Session) -> None:
    half = float(session.cursor_times.mean())
    times = session.cursor_times - 0.03  # frames precede the cursor
    frames = driving(times, session.cursor_vel, since=[times[0], half], gains=[0.5, 2.0])
    changed = before_filters(session, frames)
    early = session.cursor_times < half
    np.testing.assert_allclose(changed.cursor_vel[early], session.cursor_vel[early] / 0.5)
    late = session.cursor_times > half + 0.1
    np.testing.assert_allclose(changed.cursor_vel[late], session.cursor_vel[late] / 2.0)
    assert "were divided by it" in changed.notes[-1]
    np.testing.assert_array_equal(changed.cursor_pos, session.cursor_pos)


def test_a_cursor_moved_by_hand_is_unchanged_however_well_it_is_decoded(
    session: Session,
) -> None:
    rng = np.random.default_rng(0)
    n = len(session.cursor_vel)
    noise = np.repeat(rng.standard_normal((n // 10 + 1, 2)), 10, axis=0)[:n]
    decoded = session.cursor_vel + 0.35 * session.cursor_vel.std() * noise  # R² of 0.88
    for gain in (0.4, 0.8, 2.0):
        frames = driving(session.cursor_times, gain * decoded, gains=[gain])
        same = before_filters(session, frames)
        moved = np.abs(same.cursor_vel - session.cursor_vel).max(axis=1) > 0
        assert moved.mean() < 0.05, gain
        assert frames.share_of(session.cursor_times, session.cursor_vel) < 0.05, gain


def test_only_the_seconds_that_the_daemon_drove_change(session: Session) -> None:
    """An observation block first, then closed loop."""
    half = float(np.floor(session.cursor_times.mean()))
    frames = driving(session.cursor_times, session.cursor_vel.copy(), gains=[0.5])
    frames.velocity[session.cursor_times < half] = 0.0  # not valid yet
    changed = before_filters(session, frames).cursor_vel != session.cursor_vel
    at = session.cursor_times[changed.any(axis=1)]
    assert half - 1.0 <= at.min()
    share = frames.share_of(session.cursor_times, session.cursor_vel)
    assert share == pytest.approx(0.5, abs=0.1)
    assert len(at) > 1000


def test_without_a_daemon_nothing_changes(session: Session, tmp_path: Path) -> None:
    nothing = read_driving(tmp_path)
    assert before_filters(session, nothing) is session
    assert nothing.share_of(session.cursor_times, session.cursor_vel) == 0.0


def test_frames_of_another_version_are_ignored() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    publisher, frames = Publisher(address), DaemonFrames(address)
    good = wire.cursor_frame(
        State.DECODING, started=1.0, seq=0, session="s", decoder="d", window_end=1.0, published=2.0
    )

    def received() -> int:
        publisher.pass_on(wire.OBSERVED_CURSOR + b"not a frame")
        publisher.pass_on(wire.TOPICS["status"].prefix + b"not a status")
        publisher.send(good)
        return len(frames.drain()[0])

    try:
        wait_for("a frame", received)
    finally:
        frames.close()
        publisher.close()
