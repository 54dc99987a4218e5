"""What breaks in mid-reach stops the cursor in time, moves nothing stale, and is recovered from."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pylsl
import pytest

from clients.rig.closed_loop import Loop, LoopSettings, running_loop, start_participant
from clients.subscriber import CursorSubscriber
from clients.task.trial import read_trials
from streaming.columns import POSITION, TARGET
from streaming.daemon.settings import DaemonSettings
from streaming.inlets.kinematics import find_kinematics
from streaming.wire.messages import CursorFrame
from tests.rig import Pace, wait_for

TICK_S = 0.01  # of the daemon, and of the task
STALE_S = DaemonSettings().stale_after_ms / 1e3
ON_THE_WAY_S = 0.05  # a frame and a sample to who watches, on a machine that has more to do
STILL_S = 1.0


class Onlooker:
    """Sees the cursor over LSL and the frames over ZeroMQ, as anybody could."""

    def __init__(self, loop: Loop) -> None:
        self.kinematics = wait_for(
            "kinematics", lambda: find_kinematics(f"{loop.prefix}-kinematics", 1.0)
        )
        self.cursor = CursorSubscriber(loop.server.address, max_age_s=None)
        self.times, self.positions, self.targets = np.empty(0), np.empty((0, 2)), np.empty((0, 2))
        self.frames: list[CursorFrame] = []

    def look(self) -> None:
        times, values = self.kinematics.drain()
        self.times = np.append(self.times, times)
        self.positions = np.concatenate([self.positions, values[:, POSITION]])
        self.targets = np.concatenate([self.targets, values[:, TARGET]])
        while (frame := self.cursor.receive(timeout_s=0.0)) is not None:
            self.frames.append(frame)

    def close(self) -> None:
        self.kinematics.close()
        self.cursor.close()

    def moves(self, since: float) -> np.ndarray:
        """Times of the samples, later than `since`, at which the cursor stood elsewhere."""
        moved = (np.diff(self.positions, axis=0) != 0).any(axis=1)
        times = self.times[1:][moved]
        return times[times > since]

    def in_mid_reach(self) -> bool:
        """Whether the cursor moves, toward a target that isn't reached."""
        self.look()
        begun = len(self.times) > 100 and len(self.moves(self.times[-1] - 0.1)) >= 8
        return bool(begun and np.linalg.norm(self.targets[-1] - self.positions[-1]) > 0.02)

    def first(self, wanted: Callable[[CursorFrame], bool]) -> CursorFrame:
        """The first frame that is wanted, waited for."""
        return wait_for(
            "such a frame", lambda: self.look() or next(filter(wanted, self.frames), None)
        )

    def looks_for(self, seconds: float) -> None:
        end = pylsl.local_clock() + seconds
        wait_for("time", lambda: self.look() or pylsl.local_clock() > end)

    def sees_no_move(self, since: float) -> None:
        self.looks_for(STILL_S)
        assert self.times[-1] > since + STILL_S / 2  # the task goes on sending
        late = self.moves(since)
        assert not len(late), f"moved until {late[-1] - since:.3f} s after it must stand still"


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Loop, Onlooker]]:
    """A block of random targets, steered by a decoder that was made for other units."""
    settings = LoopSettings(folder=tmp_path_factory.mktemp("rig"), seed=3, gain=1.0)
    with running_loop(settings) as loop:
        onlooker = Onlooker(loop)
        loop.begin("closed", "steered", task="random", trials=None, seconds=600.0, limit_s=3.0)
        yield loop, onlooker
        onlooker.close()
        loop.end()
        loop.participant.stop()  # it may be another than the loop began with


def cut_the_stream(loop: Loop) -> Callable[[], object]:
    loop.participant.kill()

    def again() -> None:
        loop.participant = start_participant(loop.settings, loop.prefix)

    return again


def kill_the_daemon(loop: Loop) -> Callable[[], object]:
    with loop.server.client() as client:
        status = client.status().daemon
    assert status is not None
    os.kill(status.pid, signal.SIGKILL)
    return lambda: None  # the server starts another one


def pause(loop: Loop) -> Callable[[], object]:
    with loop.server.client() as client:
        client.pause("in mid-reach")

    def again() -> None:
        with loop.server.client() as client:
            client.resume()

    return again


@pytest.mark.timing
@pytest.mark.parametrize(
    ("break_it", "within_s"),
    [(cut_the_stream, STALE_S + TICK_S), (kill_the_daemon, TICK_S), (pause, TICK_S)],
)
def test_the_cursor_stops_in_time_and_the_task_goes_on(
    steered: tuple[Loop, Onlooker], break_it: Callable[[Loop], Callable[[], object]],
    within_s: float,
) -> None:  # fmt: skip
    loop, onlooker = steered
    wait_for("a reach", onlooker.in_mid_reach)
    with Pace() as pace:
        mend = break_it(loop)
        broken = pylsl.local_clock()
        onlooker.looks_for(within_s + STILL_S)
    still = broken + within_s + ON_THE_WAY_S + 2 * pace.worst_s  # of the task, and of this process
    if break_it is kill_the_daemon:  # another is there before a second is over
        back = onlooker.first(lambda frame: frame.started > broken and frame.valid).published
        moves = onlooker.moves(still)
        assert not (moves < back).any(), moves - broken
    else:
        onlooker.sees_no_move(still)
        mend()
    mended = pylsl.local_clock()
    wait_for("a reach after it", lambda: onlooker.look() or len(onlooker.moves(mended)) > 50)
    trials = Path(loop.settings.folder / "trials.jsonl")
    wait_for(
        "a whole trial after it",
        lambda: any(t.on > broken and t.counts for t in read_trials(trials)), 60.0,
    )  # fmt: skip
    assert all(f.window_end - f.newest_spike <= STALE_S for f in onlooker.frames if f.valid)
    assert all(f.velocity == (0.0, 0.0) for f in onlooker.frames if not f.valid)
