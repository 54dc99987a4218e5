"""Metrics of cursor control over trials, each with its definition and source.

Void trials (paused, stopped) and returns to the centre are left out. A metric of one trial is
None where it has no value there. numpy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from clients.task.trial import Trial
from clients.task.workspace import Point
from decoder.arrays import Floats

REVERSAL_M = 0.0005  # a smaller reversal is jitter, not a change of direction
Z_95 = 1.959964


def acquisition_s(trial: Trial) -> float | None:
    """Seconds from the target's appearance to the start of the hold that selected it.

    Of successes; the hold itself is not counted (time to target: Gilja et al. 2012, Nature
    Neuroscience 15:1752).
    """
    return None if trial.held is None else trial.held - trial.on


def dial_in_s(trial: Trial) -> float | None:
    """Seconds from the first touch of the target to the start of the hold that selected it.

    0 where the first touch stayed (Gilja et al. 2012; Gilja et al. 2015, Nature Medicine 21:1142).
    """
    if trial.held is None or trial.entered is None:
        return None
    return trial.held - trial.entered


def path_efficiency(trial: Trial) -> float | None:
    """Straight distance over path length, from the target's appearance to the start of the hold.

    1 is straight (Simeral et al. 2011, J. Neural Eng. 8:025027). Of successes that moved.
    """
    path = _until_held(trial)
    if trial.held is None or path is None:
        return None
    length = float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())
    if length == 0.0:
        return None
    return float(np.linalg.norm(path[-1] - path[0])) / length


def direction_changes(trial: Trial) -> int | None:
    """Number of reversals across the task axis (start to target) before the hold.

    Orthogonal direction changes of MacKenzie, Kauppinen & Silfverberg 2001 (CHI '01, p. 9), of
    successes. A turn counts once the cursor came back by half a millimetre.
    """
    path = _until_held(trial)
    if trial.held is None or path is None:
        return None
    axis = np.asarray(trial.target) - path[0]
    length = float(np.linalg.norm(axis))
    if length == 0.0:
        return None
    across = (path - path[0]) @ np.array([-axis[1], axis[0]]) / length
    return _turns(across.tolist())


def angular_error_deg(trial: Trial) -> float | None:
    """Mean angle between the movement and the direction to the target, degrees, 0 to 180.

    Over the steps that began outside the target and moved, until the hold; failures too, or what
    can't reach the target would look straight (Brandman et al. 2018, J. Neural Eng. 15:026007).
    90 is chance.
    """
    path = _until_held(trial)
    if path is None:
        return None
    steps, ways = np.diff(path, axis=0), np.asarray(trial.target) - path[:-1]
    lengths, distances = np.linalg.norm(steps, axis=1), np.linalg.norm(ways, axis=1)
    used = (lengths > 0) & (distances > trial.radius)
    if not used.any():
        return None
    cosines = (steps * ways).sum(axis=1)[used] / (lengths * distances)[used]
    return float(np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0))).mean())


def throughput_bits_s(trial: Trial) -> float | None:
    """Fitts' index of difficulty over acquisition time, bits/s.

    Shannon's formulation, log2(D / W + 1), of ISO 9241-9 (MacKenzie 1992, Human-Computer
    Interaction 7:91; Soukoreff & MacKenzie 2004, Int. J. Hum.-Comput. Stud. 61:751). D: from the
    cursor to the target's centre as it appears; W: its nominal width (after a hold no
    endpoint is outside, so an effective width would mean little). It covers successes only: read it
    together with the success rate.
    """
    time_s = acquisition_s(trial)
    if not time_s:
        return None
    distance = math.dist(trial.path[0], trial.target)
    return math.log2(distance / (2 * trial.radius) + 1.0) / time_s


def bit_rate_bits_s(trials: Sequence[Trial]) -> float | None:
    """Achieved bit rate of the grid: log2(N - 1) * max(correct - incorrect, 0) / t, bits/s.

    N squares; t seconds of all trials together, dwells and timeouts included. A timeout selects
    nothing; a wrong square takes a correct one back, as a delete key would (Nuyujukian et al. 2015,
    IEEE Trans. Biomed. Eng. 62:21).
    """
    grid = [trial for trial in trials if trial.task == "grid" and trial.counts]
    seconds = sum(trial.end - trial.start for trial in grid)
    if not seconds:
        return None
    correct = sum(trial.success for trial in grid)
    incorrect = sum(trial.why == "wrong" for trial in grid)
    return math.log2(grid[0].n_targets - 1) * max(correct - incorrect, 0) / seconds


METRICS: dict[str, Callable[[Trial], float | None]] = {
    "acquisition_s": acquisition_s,
    "dial_in_s": dial_in_s,
    "path_efficiency": path_efficiency,
    "direction_changes": direction_changes,
    "angular_error_deg": angular_error_deg,
    "throughput_bits_s": throughput_bits_s,
}


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean, standard deviation (sample; None for one value) and median of n values."""

    mean: float
    sd: float | None
    median: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """The summary of the values that are not None; None if there are none."""
        there = np.array([value for value in values if value is not None], dtype=np.float64)
        if len(there) == 0:
            return None
        sd = float(there.std(ddof=1)) if len(there) > 1 else None
        return cls(mean=float(there.mean()), sd=sd, median=float(np.median(there)), n=len(there))


@dataclass(frozen=True, kw_only=True)
class BlockScore:
    """The score of one block.

    success_rate: share of its trials that acquired their target; success_interval: 95 % by
    Wilson 1927. metrics: over trials, by their names in `METRICS`. bit_rate_bits_s: of the
    grid only. still_s: time in which no valid, fresh frame came.
    """

    block: str
    task: str
    mode: str
    decoders: tuple[str, ...]
    trials: int
    successes: int
    success_rate: float
    success_interval: tuple[float, float]
    why: dict[str, int]  # failures by reason
    seconds: float  # total of all trials
    still_s: float
    metrics: dict[str, Spread | None]
    bit_rate_bits_s: float | None

    @classmethod
    def of(cls, trials: Sequence[Trial]) -> BlockScore:
        """Score the counted trials of a block, at least one."""
        first, n = trials[0], len(trials)
        successes = sum(trial.success for trial in trials)
        failed = [trial.why for trial in trials if not trial.success]
        return cls(
            block=first.block, task=first.task, mode=first.mode,
            decoders=tuple(dict.fromkeys(t.decoder for t in trials if t.decoder is not None)),
            trials=n, successes=successes, success_rate=successes / n,
            success_interval=wilson(successes, n),
            why={why: failed.count(why) for why in sorted(set(failed))},
            seconds=sum(trial.end - trial.start for trial in trials),
            still_s=sum(trial.still_s for trial in trials),
            metrics={name: Spread.of(map(f, trials)) for name, f in METRICS.items()},
            bit_rate_bits_s=bit_rate_bits_s(trials),
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def by_block(trials: Iterable[Trial]) -> dict[tuple[str, str], list[Trial]]:
    """The counted trials by name and task of their block, in order of appearance."""
    blocks: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        if trial.counts:
            blocks.setdefault((trial.block, trial.task), []).append(trial)
    return blocks


def score_trials(trials: Iterable[Trial]) -> list[BlockScore]:
    """The score of each block, in order of appearance."""
    return [BlockScore.of(block) for block in by_block(trials).values()]


def across(scores: Sequence[BlockScore]) -> dict[str, Spread | None]:
    """Mean and spread of each metric over runs of the same block, such as seeds.

    They are computed from the success rates, bit rates and means of the runs.
    """
    spreads = {
        "success_rate": Spread.of(score.success_rate for score in scores),
        "bit_rate_bits_s": Spread.of(score.bit_rate_bits_s for score in scores),
    }
    for name in METRICS:
        found = [score.metrics[name] for score in scores]
        spreads[name] = Spread.of(None if one is None else one.mean for one in found)
    return spreads


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion (Wilson 1927)."""
    share, z2 = successes / n, Z_95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def _until_held(trial: Trial) -> Floats | None:
    """Positions (n, 2), m, until the selecting hold or the end; None for fewer than two."""
    end = trial.end if trial.held is None else trial.held
    path: list[Point] = [p for t, p in zip(trial.times, trial.path, strict=True) if t <= end]
    return np.asarray(path, dtype=np.float64) if len(path) > 1 else None


def _turns(across: list[float]) -> int:
    """Number of reversals larger than jitter."""
    turns, direction, extreme = 0, 0, across[0]
    for value in across:
        step = value - extreme
        if direction == 0:
            if abs(step) >= REVERSAL_M:
                direction, extreme = (1 if step > 0 else -1), value
        elif step * direction > 0:
            extreme = value
        elif abs(step) >= REVERSAL_M:
            turns, direction, extreme = turns + 1, -direction, value
    return turns
