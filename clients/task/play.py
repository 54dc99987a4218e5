"""A block: trial after trial, stepped by time. Pure code without a clock or sockets.

    play = BlockPlay(block, cursor)
    play.begin(now)
    while not play.done:        # each tick
        play.move(now)          # in observation; otherwise frames move the cursor
        play.judge(now)
    play.markers, play.trials

In centre-out, the return to the centre is a trial of its own (`return`). If it fails, the cursor is
set to the centre, so that every reach begins there.
"""

from __future__ import annotations

import math

import numpy as np

from clients.task.cursor import Cursor, Reach, mixed, toward
from clients.task.trial import DIGITS, Judge, Trial
from clients.task.workspace import CENTRE, Block, Point, Target, Targets

REACTION_S = 0.25  # rest of an observed cursor after a target appears
REACH_S, REACH_S_PER_M = 0.35, 3.0  # as in training.data.simulate: 0.59 s for 8 cm
PACES = (0.8, 1.25)  # range of the random factor on the duration of an observed reach


class BlockPlay:
    """The trials of one block.

    number: number of the first trial.
    target: the target shown; None before `begin`, during an interruption and at the end.
    markers: times and texts of new markers; the publisher empties the list.
    """

    def __init__(self, block: Block, cursor: Cursor, *, number: int = 0) -> None:
        self.block, self.cursor, self.number = block, cursor, number
        self.trials: list[Trial] = []
        self.markers: list[tuple[float, str]] = []
        self.target: Target | None = None
        self.done = self.paused = False
        self.decoder: str | None = None  # of the newest frame, for the log
        self.still_s = 0.0  # in this trial so far
        self._targets = Targets(block)
        self._rng = np.random.default_rng([block.seed, 1])
        self._begun = self._on = 0.0
        self._n_counted = 0
        self._interrupted: Target | None = None

    @property
    def on_target(self) -> bool:
        """Whether the cursor is on the target."""
        return self.target is not None and self._judge.on_target

    @property
    def share(self) -> float:
        """The share of assistance in the velocity; it decays linearly over an assisted block."""
        if self.block.mode != "assisted":
            return 0.0
        spent = [0.0]
        if self.block.trials is not None:
            spent.append(self._n_counted / self.block.trials)
        if self.block.seconds is not None:
            spent.append((self._on - self._begun) / self.block.seconds)
        return self.block.assist * max(0.0, 1.0 - max(spent))

    def begin(self, now: float) -> None:
        """Show the first target; centre-out begins at the centre."""
        self._begun = now
        self._mark(now, f"block {self.block.label}")
        self.cursor.place(self.block.clamped(self.cursor.position))
        if self.block.task == "center-out":
            self._recentre(now)
        self._show(self._targets.draw(self.cursor.position), now)

    def steer(self, decoded: Point, seconds: float, now: float) -> None:
        """Move the cursor by a frame's velocity, with assistance in an assisted block."""
        if self.block.mode == "observation" or self.target is None:
            return
        help_ = toward(self.cursor.position, self.target.position)
        self.cursor.move(self.block, mixed(decoded, help_, self.share), seconds, now)

    def move(self, now: float) -> None:
        """Move the cursor in an observation block."""
        if self.block.mode == "observation" and self.target is not None:
            self.cursor.place(*self._reach.at(now))

    def judge(self, now: float) -> None:
        """Judge the trial by the cursor; when it ends, show the next target."""
        if self.target is None:
            return
        self._note(now)
        outcome = self._judge.see(now, self.cursor.position)
        if outcome is None:
            return
        ended = self.target
        self._end(now, "" if outcome == "success" else outcome)
        if self._is_over(now, ended):
            self.done = True
        elif self.block.task != "center-out":
            self._show(self._targets.draw(self.cursor.position), now)
        elif ended.role == "target":
            self._show(self._targets.centre(), now)
        else:
            if outcome != "success":
                self._recentre(now)
            self._show(self._targets.draw(self.cursor.position), now)

    def interrupt(self, now: float) -> None:
        """Hide the target and stop the cursor; the trial is void."""
        self.paused, self._interrupted = True, self.target
        if self.target is not None:
            self._end(now, "paused")
        self.cursor.place(self.cursor.position)
        self._mark(now, "pause")

    def resume(self, now: float) -> None:
        """Show the hidden target again, in a new trial."""
        self.paused, target = False, self._interrupted
        self._mark(now, "resume")
        if target is not None:
            self._show(target, now)

    def stop(self, now: float) -> None:
        """End the block; the current trial is void."""
        if self.target is not None:
            self._end(now, "stopped")
        self.done = True
        self.cursor.stop()

    def _is_over(self, now: float, ended: Target) -> bool:
        """Whether the trial that has just ended was the last."""
        if self.block.seconds is not None and now - self._begun >= self.block.seconds:
            return True
        return ended.role == "target" and self._n_counted == self.block.trials

    def _show(self, target: Target, now: float) -> None:
        self.target, self._on, self.still_s = target, now, 0.0
        self._judge = Judge(self.block, target, now, self.cursor.position)
        self._times: list[float] = []
        self._path: list[Point] = []
        self._note(now)
        if self.block.mode == "observation":
            self._reach = self._observed(target, now)
        x, y = target.position
        self._mark(now, f"trial_start {self.number}")
        self._mark(now, f"target {self.number} {x:.6f} {y:.6f}")

    def _observed(self, target: Target, now: float) -> Reach:
        way = math.dist(self.cursor.position, target.position)
        pace = float(self._rng.uniform(*PACES))
        return Reach(
            start=self.cursor.position,
            goal=target.position,
            begins=now + REACTION_S,
            duration_s=pace * (REACH_S + REACH_S_PER_M * way),
        )

    def _end(self, now: float, why: str) -> None:
        assert self.target is not None
        target, judge = self.target, self._judge
        trial = Trial(
            number=self.number, block=self.block.label, task=self.block.task, mode=self.block.mode,
            role=target.role, target=target.position, radius=target.half_m,
            n_targets=self.block.n_targets, hold_s=self.block.needed_s, limit_s=self.block.limit_s,
            start=self._on, on=self._on, entered=judge.entered, held=None if why else judge.since,
            end=now, success=not why, why=why, decoder=self.decoder, assist=self.share,
            still_s=round(self.still_s, DIGITS), times=self._times, path=self._path,
        )  # fmt: skip
        self.trials.append(trial)
        self._mark(now, f"failure {self.number} {why}" if why else f"success {self.number}")
        self._mark(now, f"trial_end {self.number}")
        self._n_counted += trial.counts
        self.number += 1
        self.target = None

    def _note(self, now: float) -> None:
        x, y = self.cursor.position
        if not self._times or now > self._times[-1]:
            self._times.append(now)
            self._path.append((round(x, DIGITS), round(y, DIGITS)))

    def _recentre(self, now: float) -> None:
        self.cursor.place(CENTRE)
        self._mark(now, "recentre")

    def _mark(self, now: float, text: str) -> None:
        self.markers.append((now, text))
