"""Trials: their rules, and their records in the log (one JSON line each)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from clients.task.workspace import Block, Mode, Point, Role, Target, TaskName
from decoder.errors import SessionError

Outcome = Literal["success", "timeout", "wrong"]
VOID = ("paused", "stopped")  # reasons that have nothing to do with the decoder
SLACK_S = 1e-6  # tolerance of a time limit for rounding
DIGITS = 6


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """The record of one trial. Times are seconds on the LSL clock of the task's host."""

    number: int  # of the trial in the run, from 0; the `i` of its markers
    block: str
    task: TaskName
    mode: Mode
    role: Role  # `return`: back to the centre; not scored
    target: Point  # m
    radius: float  # m; half the side of a square
    n_targets: int  # number of targets that could be selected
    hold_s: float
    limit_s: float
    start: float
    on: float  # the target appeared
    entered: float | None  # the cursor first touched the target
    held: float | None  # start of the hold that selected the target
    end: float
    success: bool
    why: str  # empty, or why it failed: timeout, wrong, paused, stopped
    decoder: str | None  # of the newest frame
    assist: float  # share of assistance in the velocity
    still_s: float  # time without a valid, recent frame
    times: list[float]  # one per tick
    path: list[Point]  # m; the cursor's position at each of `times`

    @property
    def counts(self) -> bool:
        """Whether the trial is scored."""
        return self.role == "target" and self.why not in VOID


class Judge:
    """The rules of one trial; `see` is called with the cursor's position every tick.

    Staying on the target for `needed_s` selects it. On the grid, staying on another square selects
    that square, which is wrong. The square under the cursor at the start of the trial counts only
    after the cursor has left it.
    """

    def __init__(self, block: Block, target: Target, now: float, position: Point) -> None:
        self.entered: float | None = None
        self.since = now  # when the cursor reached its current target or square
        self._block, self._target, self._began = block, target, now
        self._goal = 0 if target.cell is None else target.cell
        self._here = self._at(position)
        self._unleft = None if self._here == self._goal else self._here
        self._note(now)

    @property
    def on_target(self) -> bool:
        """Whether the cursor is on the target."""
        return self._here == self._goal

    def see(self, now: float, position: Point) -> Outcome | None:
        """The outcome of the trial, or None while it continues."""
        here = self._at(position)
        if here != self._here:
            self._here, self.since, self._unleft = here, now, None
        self._note(now)
        stays = here is not None and self._unleft is None
        if stays and now - self.since >= self._block.needed_s - SLACK_S:
            return "success" if self.on_target else "wrong"
        return "timeout" if now - self._began >= self._block.limit_s - SLACK_S else None

    def _note(self, now: float) -> None:
        if self.on_target and self.entered is None:
            self.entered = now

    def _at(self, position: Point) -> int | None:
        """The target or square at a position."""
        if self._target.cell is not None:
            return self._block.cell_of(position)
        (x, y), (goal_x, goal_y) = position, self._target.position
        inside = (x - goal_x) ** 2 + (y - goal_y) ** 2 <= self._target.half_m**2
        return 0 if inside else None


encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Trial).decode


def read_trials(path: Path | str) -> list[Trial]:
    """The trials of a log, less an incomplete last line. Raises SessionError if unreadable."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise SessionError(f"{path}: can't be read ({error.strerror})") from error
    return list(_trials(path, lines))


def _trials(path: Path | str, lines: list[bytes]) -> Iterator[Trial]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield _decode(line)
        except msgspec.MsgspecError as error:
            if number == len(lines):
                return  # without a newline: incomplete
            raise SessionError(
                f"{path}, line {number}: not a trial ({error}); expected a log of `volition task`"
            ) from error
