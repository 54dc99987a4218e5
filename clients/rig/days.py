"""Steers for many days without labels: every day some units change, and the decoder follows or not.

    python -m clients.rig.days --days 30 --jobs 2 -o docs/closed-days

Simulated time (`clients.rig.stepped`), the shipped streaming decoder. Day one has two calibrations
by `units`: on an observation block, and on closed loop with the labels `retrospective`, from which
the decoder knows its usual states in closed loop. Then no kinematics are known any more. Each day
begins with a drift and a block that is steered, and scored, with the decoder of the day before.
Each way to follow is steered by the same participant, whose units change in the same way:

    nothing     the decoder of day one
    align       `align` on the day's block, promoted if the gate without labels says so
    targets     `units` on the blocks of the last five days, newer ones counting more, with the
                labels `retrospective`, which the task's targets give; promoted if the gate says so

Rows are appended to OUTPUT.jsonl as they are done; run again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.progress import Progress

from clients.harness.daemon import BUNDLES
from clients.harness.server import SHIPPED
from clients.participant.drift import Drift
from clients.participant.simulated import ParticipantSettings
from clients.rig.stepped import SteppedLoop
from clients.task.workspace import Block
from decoder.bundles.bundle import Bundle, open_bundle
from decoder.files import write_text
from decoder.gate import Evidence, decide, judge_unlabelled
from decoder.runtimes.opening import open_runtime
from streaming.sessions.session import Session

if TYPE_CHECKING:
    from training.calibration.candidate import Candidate

OBSERVED_S, LEARNED_TRIALS = 60.0, 96  # of day one
GAIN = 0.4  # as in `volition rig`
# A day: share of the units; standard deviations of a common turn, degrees, and of the log of rates.
REPLACED, TURNED_DEG, RATE = 0.02, 1.0, 0.05
LAST_DAYS = 5  # whose blocks are learned together
WAYS = ("nothing", "align", "targets")
FIRST_DAY = datetime(2000, 1, 1, tzinfo=UTC)
Row = dict[str, Any]


class Days:
    """One participant over the days, followed in one way."""

    def __init__(self, way: str, seed: int, trials: int, folder: Path) -> None:
        self.way, self.seed, self.trials, self.folder = way, seed, trials, folder
        self.loop = SteppedLoop(ParticipantSettings(prefix="days", seed=seed))
        self._rng = np.random.default_rng([seed, 30])
        self._n_made = 0
        self._blocks: list[Session] = []
        self._ready: dict[tuple[Path, str], Any] = {}
        self.base = self.active = open_bundle(BUNDLES / f"{SHIPPED['stream']}.bundle")

    def run(self, n_days: int) -> Iterator[Row]:
        """A row per day."""
        from training.calibration.labels import relabelled

        observed = Block(mode="observation", trials=None, seconds=OBSERVED_S)
        self.active = self._learned(self.loop.play(observed, "watched").session, "units").made
        _, session = self._steered(0, LEARNED_TRIALS)
        self._blocks.append(relabelled(session, "retrospective"))
        self.active = self._learned(self._blocks[0], "units").made
        day_one = self.active
        for day in range(1, n_days + 1):
            if day > 1:
                self._drift()
            row, session = self._steered(day, self.trials)
            answer = ""
            if self.way != "nothing" and day > 1:
                answer = self._follow(session, day_one)
            yield {"way": self.way, "seed": self.seed, "day": day, **row, "answer": answer}

    def _steered(self, day: int, n_trials: int) -> tuple[Row, Session]:
        runtime = open_runtime(self.active, epoch=self.loop.now)
        block = Block(trials=n_trials, seed=100 * self.seed + day)
        trials, session = self.loop.play(block, f"day-{day}", runtime, gain=GAIN)
        scored = [trial for trial in trials if trial.counts]
        row: Row = {"trials": len(scored), "successes": sum(trial.success for trial in scored)}
        if runtime.drift is not None:
            row |= {"distance": runtime.drift.of_few, "limit": runtime.drift.limit}
        return row, replace(session, recorded_at=FIRST_DAY + timedelta(days=max(day, 1)))

    def _drift(self) -> None:
        turned, rate = self._rng.standard_normal(2)
        drift = Drift(
            replaced=REPLACED, turned_deg=TURNED_DEG * float(turned),
            rate_factor=math.exp(RATE * float(rate)),
        )  # fmt: skip
        self.loop.participant.drift(drift)

    def _follow(self, session: Session, day_one: Bundle) -> str:
        """Calibrate on a day's block, and promote if the gate says so. Returns its answer."""
        from training.calibration.blocks import joined
        from training.calibration.crossval import held_out_third, without_labels
        from training.calibration.labels import relabelled

        if self.way == "align":
            session = held_out_third(session)
            done = self._learned(session, "align", base=day_one)
            found, _ = without_labels(done.made, session, self.active)
            verdict = judge_unlabelled(found, done.doubts)
        else:
            self._blocks = [*self._blocks, relabelled(session, "retrospective")][-LAST_DAYS:]
            done = self._learned(joined(self._blocks), "units")
            verdict = decide(done.evidence, Evidence.none(), done.doubts)
        if verdict.answer == "promote":
            self.active = done.made
        return verdict.answer

    def _learned(
        self, session: Session, method: Literal["units", "align"], *, base: Bundle | None = None
    ) -> Candidate:
        from training.calibration.candidate import Plan, prepare, train_candidate

        self._n_made += 1
        made = self.folder / f"{self._n_made}.bundle"
        path = (base or self.base).path
        if (path, method) not in self._ready:
            self._ready[path, method] = prepare(path, method)
        plan = Plan(method=method, allowed_s=None, seed=self.seed, compares=method != "align")
        return train_candidate(session, self.active, made, plan, self._ready[path, method])


def chain(way: str, seed: int, n_days: int, trials: int, path: Path) -> list[Row]:
    """All days of one participant, followed in one way; rows are appended to a file."""
    import torch

    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in Days(way, seed, trials, Path(folder)).run(n_days):
            rows.append(row)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
    return rows


def summary(rows: list[Row]) -> dict[str, dict[str, float]]:
    """For each way: success on day one and on the last ten days, and the share that is kept."""
    found = {}
    for way in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == way]
        last = max(row["day"] for row in own)

        def success(first: int, end: int, own: list[Row] = own) -> float:
            some = [row for row in own if first <= row["day"] <= end]
            return float(sum(r["successes"] for r in some) / sum(r["trials"] for r in some))

        begun, ended = success(1, 1), success(max(1, last - 9), last)
        found[way] = {
            "seeds": len({row["seed"] for row in own}), "days": last, "day_one": begun,
            "all_days": success(1, last), "last_ten": ended, "kept": ended / begun,
        }  # fmt: skip
    return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(1, 11)))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--trials", type=int, default=24, help="of each day")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, default=Path("closed-days"))
    given = parser.parse_args()
    path = given.output.with_suffix(".jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["way"], row["seed"]) for row in rows if row["day"] == given.days}
    left = [(w, s) for s in given.seeds for w in given.ways if (w, s) not in done]
    rows = [row for row in rows if (row["way"], row["seed"]) in done]  # a chain repeats exactly
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    with (
        ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool,
        Progress(*Progress.get_default_columns()) as progress,
    ):
        bar = progress.add_task("chains", total=len(left))
        running = [pool.submit(chain, w, s, given.days, given.trials, path) for w, s in left]
        for each in as_completed(running):
            rows += each.result()
            progress.advance(bar)
    print(json.dumps(summary(rows), indent=1))


if __name__ == "__main__":
    main()
