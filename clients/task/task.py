"""A task in real time: the daemon's frames move a cursor, whose position is sent over LSL.

    volition task center-out --trials 64

    with TaskRun(TaskSettings(prefix="rig")) as run:
        run.rest(1.0)
        trials = run.play(Block(mode="observation", seconds=45.0, trials=None))

A loop at 100 Hz reads the waiting frames, moves the cursor, judges the trial and sends a sample.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import pylsl

from clients.subscriber import CursorSubscriber
from clients.task.cursor import Cursor, FrameClock
from clients.task.outlets import TaskOutlets
from clients.task.play import BlockPlay
from clients.task.trial import Trial, encode
from clients.task.window import View, Window
from clients.task.workspace import Block
from decoder.errors import SessionError, SettingsError
from streaming.clock import Metronome
from streaming.wire.messages import DEFAULT_ADDRESS, CursorFrame

LINGER_S = 0.3  # the outlets stay open for the last marker to arrive
DRAW_EVERY = 2  # ticks
LOCAL = ("tcp://127.", "tcp://localhost", "tcp://[::1]", "ipc://")


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Input and output of a task.

    address: ZeroMQ address of the daemon. prefix: prefix of the LSL stream names.
    rate_hz: rate of the loop and the kinematics. stale_s: older frames do not move the cursor.
    log: file to which a JSON line per trial is appended.
    """

    address: str = DEFAULT_ADDRESS
    prefix: str = "volition-task"
    rate_hz: float = 100.0
    stale_s: float = 0.1
    log: Path | None = None

    def __post_init__(self) -> None:
        for name in ("rate_hz", "stale_s"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} {getattr(self, name)}; expected more than 0")


class TaskRun:
    """A context manager with a cursor and its streams; `play` plays one block after another.

    window: draws the task and reads keys. on_trial: called with every ended trial.
    on_pause: called when the task pauses or resumes. on_tick: called every tick.
    should_stop: ends the block or `rest` after the current tick.
    Any thread may set `should_stop` or call `pause`, `resume` and `end_block`.
    """

    def __init__(
        self,
        settings: TaskSettings,
        *,
        window: Window | None = None,
        on_trial: Callable[[Trial], None] = lambda trial: None,
        on_pause: Callable[[bool], None] = lambda paused: None,
        on_tick: Callable[[TaskRun], None] = lambda run: None,
    ) -> None:
        self.settings = settings
        self.should_stop = False
        self.cursor = Cursor()
        self.frame: CursorFrame | None = None  # the newest
        self.n_trials = 0  # over all blocks; also the number of the next trial
        self._window, self._on_trial = window, on_trial
        self._on_pause, self._on_tick = on_pause, on_tick
        self._asked_to_pause = self._asked_to_end = False
        self._frames = FrameClock(settings.stale_s)
        self._held: deque[tuple[float, CursorFrame, float]] = (
            deque()
        )  # arrival, frame, age on arrival
        self._latency_s = 0.0
        self._n_shown = 0

    def __enter__(self) -> Self:
        self._log = _open(self.settings.log)
        self._subscriber = CursorSubscriber(
            self.settings.address, max_age_s=None
        )  # this class judges ages itself
        self._outlets = TaskOutlets(self.settings.prefix, self.settings.rate_hz)
        self._metronome = Metronome(1.0 / self.settings.rate_hz)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        time.sleep(LINGER_S)
        self._subscriber.close()
        del self._outlets
        if self._log is not None:
            self._log.close()

    @property
    def paused(self) -> bool:
        """Whether the task is paused."""
        return self._asked_to_pause

    def pause(self) -> None:
        """Freeze the cursor and hide the target; the current trial is void and will be repeated."""
        if not self._asked_to_pause:
            self._asked_to_pause = True
            self._on_pause(True)

    def resume(self) -> None:
        """End a pause."""
        if self._asked_to_pause:
            self._asked_to_pause = False
            self._on_pause(False)

    def end_block(self) -> None:
        """End the current block; its last trial is void."""
        self._asked_to_end = True

    def wait_until_heard(self, timeout_s: float) -> None:
        """Send until the kinematics have a consumer. Raises SettingsError if none comes."""
        self.rest(timeout_s, until=self._outlets.heard)
        if not self._outlets.heard() and not self.should_stop:
            raise SettingsError(
                f"nobody listened to {self.settings.prefix}-kinematics for {timeout_s:g} s; start "
                "who records or calibrates, or leave --wait away"
            )

    def rest(
        self, seconds: float | None = None, until: Callable[[], object] = lambda: False
    ) -> None:
        """Send a resting cursor and no target, for a time (None: no limit) or until a condition."""
        self.cursor.place(self.cursor.position)
        end = None if seconds is None else pylsl.local_clock() + seconds
        while not self.should_stop and (end is None or pylsl.local_clock() < end) and not until():
            now = self._metronome.wait()
            for _ in self._arrived():
                pass
            self._outlets.send(now, self.cursor, None)
            self._show(None)

    def play(self, block: Block) -> list[Trial]:
        """Play a block to its end and return its trials, including void ones and returns."""
        play = BlockPlay(block, self.cursor, number=self.n_trials)
        self._latency_s = block.latency_s
        self._asked_to_end = False
        play.begin(self._metronome.wait())
        n_told = 0
        while not play.done:
            self._tick(play)
            for trial in play.trials[n_told:]:
                self._keep(trial)
            n_told = len(play.trials)
        self.n_trials = play.number
        return play.trials

    def _tick(self, play: BlockPlay) -> None:
        now = self._metronome.wait()
        self._take_frames(play, now)
        self._pause_or_go_on(play, now)
        play.move(now)
        self._outlets.send(now, self.cursor, play.target)  # before the target changes
        play.judge(now)
        if self.should_stop or self._asked_to_end:
            play.stop(now)
        for at, text in play.markers:
            self._outlets.mark(at, text)
        play.markers.clear()
        self._show(play)

    def _take_frames(self, play: BlockPlay, now: float) -> None:
        for frame, seconds in self._arrived():
            play.decoder = frame.decoder
            if seconds > 0:
                play.steer(frame.velocity, seconds, now)
        if play.block.mode == "observation":
            return
        if not self._is_trusted():
            self.cursor.stop()
            play.still_s += self._metronome.tick_s
        self.cursor.rest_when_due(now)

    def _arrived(self) -> Iterator[tuple[CursorFrame, float]]:
        """The frames that are due, and the seconds for which each applies."""
        while (frame := self._subscriber.receive(timeout_s=0.0)) is not None:
            self._held.append((pylsl.local_clock(), frame, self._age_s(frame)))
        while self._held and self._held[0][0] + self._latency_s <= pylsl.local_clock():
            _, self.frame, age_s = self._held.popleft()
            yield self.frame, self._frames.seconds(self.frame, age_s)

    def _age_s(self, frame: CursorFrame) -> float:
        """Age of the newest frame without the latency asked for, s.

        It is relative to the shortest transit time; on one host, the clock gives it.
        """
        now = pylsl.local_clock()
        assert self._subscriber.arrived is not None
        age_s = now - self._subscriber.arrived + self._subscriber.backlog_s
        if self.settings.address.startswith(LOCAL):
            age_s = max(age_s, now - frame.published - self._latency_s)
        return float(age_s)

    def _is_trusted(self) -> bool:
        """Whether the newest frame is valid and recent enough to move the cursor."""
        frame = self.frame
        return frame is not None and frame.valid and self._age_s(frame) <= self.settings.stale_s

    def _pause_or_go_on(self, play: BlockPlay, now: float) -> None:
        paused = self._asked_to_pause or (
            play.block.mode != "observation" and self._decoder_is_paused()
        )
        if paused and not play.paused:
            play.interrupt(now)
        elif play.paused and not paused:
            play.resume(now)

    def _decoder_is_paused(self) -> bool:
        frame = self.frame
        if frame is None or frame.state != "paused":
            return False
        return self._age_s(frame) <= self.settings.stale_s

    def _keep(self, trial: Trial) -> None:
        if self._log is not None:
            try:
                self._log.write(encode(trial) + b"\n")
                self._log.flush()
            except OSError as error:
                raise SessionError(
                    f"{self.settings.log}: can't be written ({error.strerror})"
                ) from error
        self._on_trial(trial)

    def _show(self, play: BlockPlay | None) -> None:
        self._on_tick(self)
        if self._window is None:
            return
        for wish in self._window.asked():
            if wish == "quit":
                self.should_stop = True
            elif self.paused:
                self.resume()
            else:
                self.pause()
        self._n_shown += 1
        if self._n_shown % DRAW_EVERY == 0:
            self._window.draw(self._view(play))

    def _view(self, play: BlockPlay | None) -> View:
        frame = self.frame
        if self._asked_to_pause:
            state = "paused: space goes on"
        elif frame is None:
            state = f"no frames on {self.settings.address}"
        elif self._age_s(frame) > self.settings.stale_s:
            state = "frames stopped"
        else:
            state = f"{frame.state}, {frame.decoder}"
        return View(
            cursor=self.cursor.position,
            moves=self._is_trusted() or (play is not None and play.block.mode == "observation"),
            block=play.block if play else None,
            target=play.target if play else None,
            on_target=play is not None and play.on_target,
            state=state,
            n_done=sum(t.counts for t in play.trials) if play else 0,
            n_good=sum(t.counts and t.success for t in play.trials) if play else 0,
        )


def _open(log: Path | None) -> BinaryIO | None:
    if log is None:
        return None
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return log.open("ab")
    except OSError as error:
        raise SessionError(f"{log}: can't be written ({error.strerror})") from error
