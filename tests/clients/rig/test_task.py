"""A task over real LSL and ZeroMQ: the cursor's movement and the published streams."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pylsl
import pytest

from clients.task.task import TaskRun, TaskSettings
from clients.task.trial import read_trials
from clients.task.window import ON_TARGET, TARGET, View, Window
from clients.task.workspace import Block, Target
from decoder.errors import SettingsError
from streaming.columns import POSITION, VELOCITY
from streaming.columns import TARGET as TARGET_COLUMNS
from streaming.inlets.kinematics import KinematicsInlet, MarkerInlet, find_kinematics, find_markers
from streaming.inlets.spikes import RESOLVE_S, StreamQuery
from streaming.recording.raw import read_recording
from streaming.recording.record import Recorder, RecordSettings
from streaming.sessions.checks import check
from streaming.wire.publish import Publisher
from tests.clients.test_subscriber import frame
from tests.rig import DEADLINE_S, Pace, wait_for
from training.calibration.labels import relabelled

QUICK = {"hold_s": 0.1, "limit_s": 2.0}
FRAME_S = 0.01
CLOCKS_DIFFER_S = 0.02  # at most: an estimate over a network that waits for a busy machine


class Daemon:
    """A publisher of real frames in a thread, 100 a second; `say` gives each its fields."""

    def __init__(self) -> None:
        self._publisher = Publisher("tcp://127.0.0.1:*")
        self.address = self._publisher.bound_to
        self.say: Callable[[], dict[str, Any] | None] = lambda: {"velocity": (0.0, 0.0)}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        seq = 0
        while not self._stop.wait(FRAME_S):
            if (fields := self.say()) is not None:
                self._publisher.send(msgspec.structs.replace(frame(seq), **fields))
                seq += 1

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._publisher.close()


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    made = Daemon()
    yield made
    made.close()


@pytest.fixture
def settings(daemon: Daemon, tmp_path: Path) -> TaskSettings:
    return TaskSettings(
        address=daemon.address, prefix=f"task-{uuid.uuid4().hex[:8]}", log=tmp_path / "log.jsonl"
    )


class Eyes:
    """Reads a task's streams, and answers with a velocity toward its target."""

    def __init__(self, prefix: str) -> None:
        self.kinematics: KinematicsInlet | None = None
        self.markers: MarkerInlet | None = None
        self.samples: list[np.ndarray] = []
        self.times: list[np.ndarray] = []
        self.texts: list[str] = []
        self._prefix = prefix
        self._opener = threading.Thread(target=self._open)
        self._opener.start()

    def _open(self) -> None:
        self.markers = wait_for(
            "markers", lambda: find_markers(f"{self._prefix}-markers", RESOLVE_S)
        )
        self.kinematics = wait_for(
            "kinematics", lambda: find_kinematics(f"{self._prefix}-kinematics", RESOLVE_S)
        )

    def see(self) -> None:
        if self.kinematics is None or self.markers is None:
            return
        times, values = self.kinematics.drain()
        self.times.append(times)
        self.samples.append(values)
        self.texts += [text for _, text in self.markers.drain()]

    def steer(self) -> dict[str, Any]:
        """Fields of a frame that goes to the target at 0.4 m/s."""
        self.see()
        if not self.samples or not len(self.samples[-1]):
            return {"velocity": (0.0, 0.0)}
        newest = self.samples[-1][-1]
        away = newest[TARGET_COLUMNS] - newest[POSITION]
        distance = float(np.linalg.norm(away))
        if not distance > 0:  # NaN: no target
            return {"velocity": (0.0, 0.0)}
        x, y = away / distance * min(0.4, 10 * distance)
        return {"velocity": (float(x), float(y))}

    def close(self) -> tuple[np.ndarray, np.ndarray]:
        """Every sample's time and values."""
        self._opener.join()
        assert self.kinematics is not None
        assert self.markers is not None
        self.kinematics.close()
        self.markers.close()
        return np.concatenate(self.times), np.concatenate(self.samples)


def test_a_decoder_that_aims_at_the_target_acquires_it_and_others_see_how(
    daemon: Daemon, settings: TaskSettings
) -> None:
    eyes = Eyes(settings.prefix)
    with TaskRun(settings) as run:
        run.rest(DEADLINE_S, until=lambda: eyes.kinematics)
        daemon.say = eyes.steer
        trials = run.play(Block(trials=3, **QUICK))
        run.rest(0.2)
        daemon.say = lambda: None
    assert [trial.success for trial in trials] == [True] * 5
    assert {trial.decoder for trial in trials} == {"d"}
    assert read_trials(settings.log) == trials
    times, values = eyes.close()
    steps = np.diff(times)
    assert np.median(steps) == pytest.approx(0.01, abs=1e-3)
    first = trials[0]
    inside = (times > first.start + 0.05) & (times < first.end - 0.05)
    assert inside.sum() >= 5  # some were late where the machine is busy
    np.testing.assert_allclose(
        values[inside][:, TARGET_COLUMNS], np.tile(first.target, (inside.sum(), 1)), atol=1e-9
    )
    assert np.isnan(values[0, TARGET_COLUMNS]).all()
    assert np.isnan(values[-1, TARGET_COLUMNS]).all()
    at = np.interp(times[inside], first.times, [x for x, _ in first.path])
    np.testing.assert_allclose(values[inside, 0], at, atol=0.4 * CLOCKS_DIFFER_S)
    speed = np.linalg.norm(values[inside][:, VELOCITY], axis=1)
    assert speed.max() == pytest.approx(0.4, abs=1e-6)
    assert eyes.texts[:3] == ["block closed", "recentre", "trial_start 0"]
    x, y = first.target
    assert eyes.texts[3:6] == [f"target 0 {x:.6f} {y:.6f}", "success 0", "trial_end 0"]
    assert eyes.texts[-1] == "trial_end 4"


@pytest.mark.timing
def test_the_path_is_the_velocity_times_the_time_between_frames(
    daemon: Daemon, settings: TaskSettings
) -> None:
    daemon.say = lambda: {"velocity": (0.05, 0.0)}
    with TaskRun(settings) as run, Pace() as pace:
        wait_for("frames", lambda: run.rest(0.05) or run.frame)
        (trial,) = run.play(Block(trials=1, hold_s=0.1, limit_s=1.0, seed=1))
    assert trial.why == "timeout"
    travelled = trial.path[-1][0] - trial.path[0][0]
    moving_s = trial.times[-1] - trial.times[0]
    late_m = 0.05 * pace.lost_s  # what frames of a busy machine, that come too late, leave out
    assert travelled == pytest.approx(0.05 * moving_s, abs=0.003 + late_m)
    assert trial.still_s < 0.3 + pace.lost_s


@pytest.mark.timing
def test_requested_latency_delays_every_frame(daemon: Daemon, settings: TaskSettings) -> None:
    sent: list[float] = []

    def go() -> dict[str, Any]:
        sent.append(pylsl.local_clock())
        return {"velocity": (0.05, 0.0), "published": sent[-1]}

    with TaskRun(settings) as run:
        wait_for("frames", lambda: run.rest(0.05) or run.frame)
        daemon.say = go
        (trial,) = run.play(Block(trials=1, hold_s=0.1, limit_s=1.0, seed=1, latency_s=0.3))
    moved = next(t for t, (x, _) in zip(trial.times, trial.path, strict=True) if x != 0.0)
    assert moved - sent[0] >= 0.3
    assert trial.path[-1][0] > 0.02
    with pytest.raises(SettingsError, match="latency 2 s"):
        Block(latency_s=2.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"valid": False, "state": "stale"},
        {"published": lambda: pylsl.local_clock() - 0.2},
        {"velocity": (float("nan"), 0.1)},
    ],
    ids=["invalid", "old", "not a number"],
)
def test_untrusted_frames_move_nothing(
    daemon: Daemon, settings: TaskSettings, wrong: dict[str, Any]
) -> None:
    daemon.say = lambda: {
        "velocity": (0.3, 0.3),
        **{name: value() if callable(value) else value for name, value in wrong.items()},
    }
    with TaskRun(settings) as run:
        wait_for("frames", lambda: run.rest(0.05) or run.frame)
        (trial,) = run.play(Block(trials=1, hold_s=0.1, limit_s=0.5))
        assert run.cursor.position == (0.0, 0.0)
    assert set(trial.path) == {(0.0, 0.0)}
    assert (trial.success, trial.why) == (False, "timeout")


@pytest.mark.timing
def test_the_cursor_stops_when_frames_stop_and_resumes_with_them(
    daemon: Daemon, settings: TaskSettings
) -> None:
    silent = threading.Event()
    stopped_at: list[float] = []

    def say() -> dict[str, Any] | None:
        now = pylsl.local_clock()
        if stopped_at and now < stopped_at[0] + 0.5:
            silent.set()
            return None
        return {"velocity": (0.02, 0.01)}

    daemon.say = say
    with TaskRun(settings) as run, Pace() as pace:
        wait_for("frames", lambda: run.rest(0.05) or run.frame)
        began = pylsl.local_clock()
        stopped_at.append(began + 0.5)
        daemon.say = lambda: say() if pylsl.local_clock() >= began + 0.5 else {
            "velocity": (0.02, 0.01)
        }  # fmt: skip
        (trial,) = run.play(Block(trials=1, hold_s=0.1, limit_s=1.8))
    assert silent.is_set()
    times, path = np.array(trial.times), np.array(trial.path)
    during = (times > stopped_at[0] + 0.11) & (times < stopped_at[0] + 0.45)
    assert during.sum() > 10
    assert np.ptp(path[during], axis=0).tolist() == [0.0, 0.0]
    assert path[-1, 0] > path[during][-1, 0] + 0.005
    assert 0.2 < trial.still_s < 0.9 + pace.lost_s


@pytest.mark.timing
def test_a_pause_freezes_the_cursor_and_the_target_comes_again(
    daemon: Daemon, settings: TaskSettings
) -> None:
    eyes = Eyes(settings.prefix)
    daemon.say = lambda: (eyes.see(), {"velocity": (0.02, 0.0)})[1]
    seen: list[tuple[float, float]] = []
    paused: list[bool] = []
    began: list[float] = []

    def tick(run: TaskRun) -> None:
        since = pylsl.local_clock() - began[0] if began else 0.0
        if 0.3 < since < 0.9:
            run.pause()
        elif since >= 0.9:
            run.resume()
        if 0.4 < since < 0.85:
            seen.append(run.cursor.position)

    with TaskRun(settings, on_tick=tick, on_pause=paused.append) as run:
        run.rest(DEADLINE_S, until=lambda: eyes.kinematics)
        began.append(pylsl.local_clock())
        trials = run.play(Block(trials=1, hold_s=0.1, limit_s=0.8, seed=2))
        run.rest(0.2)
        daemon.say = lambda: None
    eyes.close()
    assert len(seen) > 10
    assert len(set(seen)) == 1
    assert paused == [True, False]
    assert [trial.why for trial in trials] == ["paused", "timeout"]
    assert trials[0].target == trials[1].target
    assert [text for text in eyes.texts if text in ("pause", "resume")] == ["pause", "resume"]


@pytest.mark.timing
def test_a_decoder_that_is_paused_pauses_the_task(daemon: Daemon, settings: TaskSettings) -> None:
    began: list[float] = []

    def say() -> dict[str, Any]:
        since = pylsl.local_clock() - began[0] if began else 0.0
        stands = {"state": "paused", "valid": False, "velocity": (0.0, 0.0)}
        return stands if 0.2 < since < 0.6 else {"velocity": (0.01, 0.0)}

    daemon.say = say
    with TaskRun(settings) as run:
        wait_for("frames", lambda: run.rest(0.05) or run.frame)
        began.append(pylsl.local_clock())
        trials = run.play(Block(trials=1, hold_s=0.1, limit_s=0.7))
    assert [trial.why for trial in trials] == ["paused", "timeout"]


def test_a_recording_has_the_trials_with_their_targets(
    daemon: Daemon, settings: TaskSettings, tmp_path: Path
) -> None:
    name = settings.prefix
    spikes = pylsl.StreamOutlet(
        pylsl.StreamInfo(f"{name}-s", "SpikeEvents", 2, 0.0, pylsl.cf_int32, f"{name}-s")
    )
    recorder = Recorder(
        tmp_path, "today",
        RecordSettings(spikes=StreamQuery(name=f"{name}-s"), kinematics=f"{name}-kinematics",
                       markers=f"{name}-markers"),
    )  # fmt: skip
    ready, problems = threading.Event(), []

    def record() -> None:
        try:
            recorder.start()
            with recorder:
                ready.set()
                recorder.run(None)
        except Exception as error:
            problems.append(error)
            ready.set()

    thread = threading.Thread(target=record)
    thread.start()
    with TaskRun(
        settings, on_tick=lambda run: spikes.push_sample([3, 0], pylsl.local_clock())
    ) as run:
        run.rest(DEADLINE_S, until=ready.is_set)
        trials = run.play(Block(task="random", mode="observation", trials=6, **QUICK))
        run.rest(0.2)
        recorder.should_stop = True
        thread.join()
    assert not problems
    session = check(read_recording(recorder.path))
    assert session.trials is not None
    np.testing.assert_allclose(
        session.trials.target_pos, [trial.target for trial in trials], atol=1e-6
    )
    np.testing.assert_allclose(
        session.trials.intervals,
        [(trial.start, trial.end) for trial in trials],
        atol=CLOCKS_DIFFER_S,
    )
    assert np.abs(session.cursor_pos).max() > 0.05
    relabelled(session, "intention")


def test_the_command_ends_on_sigterm_and_keeps_the_played_trials(
    daemon: Daemon, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    process = started(
        "task", "random", "--block", "observation", "--hold", "0.1", "--lead", "0", "--log",
        str(log), "--json", "--window", "--prefix", f"task-{uuid.uuid4().hex[:8]}",
        "--address", daemon.address,
    )  # fmt: skip
    wait_for("two trials", lambda: log.exists() and log.read_bytes().count(b"\n") >= 2)
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    (score,) = json.loads(out)
    assert score["success_rate"] == 1.0
    trials = read_trials(log)
    assert score["trials"] == sum(trial.counts for trial in trials)
    assert trials[-1].why in ("stopped", "")


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "clients", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "SDL_VIDEODRIVER": "dummy"},
    )  # fmt: skip


def test_another_process_asks_for_blocks_by_lines(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    process = started(
        "task", "center-out", "--lines", "--hold", "0.1", "--log", str(log),
        "--prefix", f"task-{uuid.uuid4().hex[:8]}",
    )  # fmt: skip

    def ask(**order: Any) -> None:
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()

    def until(key: str) -> Any:
        while line := process.stdout.readline():
            if key in (message := json.loads(line)):
                return message[key]
        raise AssertionError(process.stderr.read())

    try:
        until("ready")
        ask(dance=True)
        assert "not an order" in until("problem")["detail"]
        ask(block={"colour": "red"})
        assert "no field colour" in until("problem")["detail"]
        ask(block={"mode": "observation", "trials": 1, "name": "calibration"})
        assert until("begun") == "calibration"
        trial = until("trial")
        assert trial["success"]
        assert "path" not in trial
        assert until("ended") == "calibration"
        ask(block={"task": "random", "trials": 5, "limit_s": 30.0})
        assert until("begun") == "closed"
        ask(pause=True)
        assert until("paused") is True
        ask(end=True)
        assert until("ended") == "closed"
        process.stdin.close()  # the asking process is gone
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    assert [trial.number for trial in read_trials(log)][:1] == [0]


def test_the_window_shows_cursor_and_target_and_hears_keys(
    monkeypatch: pytest.MonkeyPatch, daemon: Daemon, settings: TaskSettings
) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    window = Window(side=200)
    import pygame

    try:
        block = Block(task="grid", grid=4)
        target = Target(position=block.centre_of(0), half_m=block.square_m / 2, cell=0)
        view = View(
            cursor=block.centre_of(15), moves=True, block=block, target=target, on_target=False,
            state="decoding", n_done=3, n_good=2,
        )  # fmt: skip
        window.draw(view)
        assert window.pixel(target.position) == (25, 175)
        assert window.surface.get_at((25, 175))[:3] == TARGET
        assert window.surface.get_at((175, 25))[:3] == (240, 240, 240)
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_SPACE))
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_ESCAPE))
        assert window.asked() == ["pause", "quit"]
        with TaskRun(settings, window=window) as run:
            run.play(Block(task="random", mode="observation", trials=1, **QUICK))
            pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_SPACE))
            run.rest(0.1)
            assert run.paused
            pygame.event.post(pygame.event.Event(pygame.QUIT))
            run.rest(5.0)
            assert run.should_stop
        assert ON_TARGET != TARGET
    finally:
        window.close()


def test_waiting_for_a_listener_that_never_comes_is_a_clear_error(settings: TaskSettings) -> None:
    with TaskRun(settings) as run, pytest.raises(SettingsError, match="nobody listened"):
        run.wait_until_heard(0.2)
