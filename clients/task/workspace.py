"""The workspace of the cursor: settings of a block, its targets and their order.

The workspace is a square around (0, 0), metres. Pure code without a clock or sockets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from decoder.errors import SettingsError

Point = tuple[float, float]
TaskName = Literal["center-out", "random", "grid"]
Mode = Literal["closed", "assisted", "observation"]
Role = Literal["target", "return"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)
MODES: tuple[Mode, ...] = get_args(Mode)
N_DIRECTIONS = 8
CENTRE: Point = (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block: consecutive trials of one task and mode.

    mode: `closed`: decoded velocity moves the cursor. `assisted`: it is mixed with velocity toward
        the target, whose share decays from `assist` to 0 over the block. `observation`: the cursor
        makes scripted minimum-jerk reaches.
    name: name of the block in markers, log and score; by default the mode.
    trials: number of trials without returns to the centre; None: as many as `seconds` allow.
    seconds: time after which no new trial begins.
    distance_m: distance of centre-out targets from the centre, and half the side of the square from
        which random targets are drawn.
    radius_m: radius of a round target. hold_s: time on it to select it.
    dwell_s: time on a square of the grid to select it, longer than crossing one takes.
    limit_s: time limit of a trial. half_side_m: half the side of the workspace.
    grid: squares per side.
    latency_s: extra delay of every frame, to measure the cost of delay.
    Raises SettingsError if a value is out of range.
    """

    task: TaskName = "center-out"
    mode: Mode = "closed"
    name: str = ""
    trials: int | None = 64
    seconds: float | None = None
    distance_m: float = 0.08
    radius_m: float = 0.01
    hold_s: float = 0.3
    dwell_s: float = 1.0
    limit_s: float = 4.0
    half_side_m: float = 0.12
    grid: int = 6
    assist: float = 1.0
    latency_s: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        problem = None
        if self.task not in TASKS:
            problem = f"task {self.task!r}; expected {', '.join(TASKS)}"
        elif self.mode not in MODES:
            problem = f"block {self.mode!r}; expected {', '.join(MODES)}"
        elif self.trials is None and self.seconds is None:
            problem = "neither trials nor seconds; expected one of them, or the block never ends"
        elif self.trials is not None and self.trials < 1:
            problem = f"trials {self.trials}; expected 1 or more"
        elif not 2 <= self.grid <= 40:
            problem = f"grid {self.grid}; expected 2 to 40 squares a side"
        elif not 0.0 <= self.assist <= 1.0:
            problem = f"assist {self.assist}; expected 0 to 1"
        elif not 0.0 <= self.needed_s < self.limit_s:
            problem = (
                f"hold {self.needed_s:g} s; expected 0 or more, below limit {self.limit_s:g} s"
            )
        elif not 0.0 <= self.latency_s <= 1.0:
            problem = f"latency {self.latency_s:g} s; expected 0 to 1"
        elif not 0.0 < self.radius_m < self.distance_m:
            problem = f"radius {self.radius_m:g} m; expected less than {self.distance_m:g} m"
        elif not self.distance_m + self.radius_m <= self.half_side_m:
            problem = (
                f"targets reach {self.distance_m + self.radius_m:g} m from the centre, the "
                f"workspace only {self.half_side_m:g} m"
            )
        if problem:
            raise SettingsError(problem)

    @property
    def label(self) -> str:
        """The block's name."""
        return self.name or self.mode

    @property
    def needed_s(self) -> float:
        """Seconds on a target that select it."""
        return self.dwell_s if self.task == "grid" else self.hold_s

    @property
    def square_m(self) -> float:
        """Side of one square of the grid."""
        return 2 * self.half_side_m / self.grid

    @property
    def n_targets(self) -> int:
        """Number of targets that can be selected: squares of the grid, directions, or 1."""
        return {"grid": self.grid**2, "center-out": N_DIRECTIONS, "random": 1}[self.task]

    def cell_of(self, position: Point) -> int:
        """The grid square at a position, counted row by row from the lower left."""
        column, row = (
            min(self.grid - 1, max(0, int((x + self.half_side_m) / self.square_m)))
            for x in position
        )
        return row * self.grid + column

    def centre_of(self, cell: int) -> Point:
        """The centre of a grid square."""
        row, column = divmod(cell, self.grid)
        x, y = ((i + 0.5) * self.square_m - self.half_side_m for i in (column, row))
        return x, y

    def clamped(self, position: Point) -> Point:
        """The nearest position inside the workspace."""
        x, y = (min(self.half_side_m, max(-self.half_side_m, c)) for c in position)
        return x, y


@dataclass(frozen=True, kw_only=True)
class Target:
    """A target. half_m: its radius, or half the side of a square.

    cell: number of its grid square; None if it is round.
    """

    position: Point
    half_m: float
    role: Role = "target"
    cell: int | None = None


class Targets:
    """The block's targets in order; the same seed gives the same order.

    Centre-out: directions in shuffled rounds of eight. Random: uniform, at least three radii
    from the cursor. Grid: any square but the one under the cursor.
    """

    def __init__(self, block: Block) -> None:
        self._block = block
        self._rng = np.random.default_rng([block.seed, TASKS.index(block.task)])
        self._round: list[int] = []

    def draw(self, cursor: Point) -> Target:
        """The next target, for a cursor at a position."""
        block = self._block
        if block.task == "grid":
            cell = int(self._rng.integers(block.grid**2 - 1))
            cell += cell >= block.cell_of(cursor)
            return Target(
                position=block.centre_of(cell), half_m=block.square_m / 2, cell=cell
            )  # fmt: skip
        if block.task == "random":
            return Target(position=self._far_from(cursor), half_m=block.radius_m)
        if not self._round:
            self._round = self._rng.permutation(N_DIRECTIONS).tolist()
        angle = self._round.pop() * 2 * math.pi / N_DIRECTIONS
        position = block.distance_m * math.cos(angle), block.distance_m * math.sin(angle)
        return Target(position=position, half_m=block.radius_m)

    def centre(self) -> Target:
        """The centre, as a target."""
        return Target(position=CENTRE, half_m=self._block.radius_m, role="return")

    def _far_from(self, cursor: Point) -> Point:
        reach = self._block.distance_m
        while True:
            x, y = self._rng.uniform(-reach, reach, 2).tolist()
            if math.dist((x, y), cursor) >= min(3 * self._block.radius_m, reach / 2):
                return x, y
