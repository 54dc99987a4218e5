"""What exact spike times are worth.

    python -m training.studies.spike_times sessions/joystick_*.h5 --steps 700 -o docs/spike-times

Models are trained on several sessions with their spike times as they are, rounded up to the end of
bins of 10 and 50 ms (when a system that counts in such bins would report them), and as they are but
25 ms later, which is the mean delay of the longer bins. The seconds of each session are cut into
blocks of 20 s; every fifth one is decoded by a model that never saw it, and another fifth chooses
the checkpoint. Scores are causal R² over all blocks of a session. Ridge regression on bins of 50 ms
has the same folds. Writes a line per session and fold (.jsonl), and continues after an
interruption.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from decoder.arrays import Floats
from streaming.sessions import format as sessions
from streaming.sessions.intervals import intersect
from streaming.sessions.session import Session
from training.baselines.ridge import Ridge, evaluation_times, r2
from training.pretraining import runs
from training.pretraining.pretrain import pretrain
from training.pretraining.scoring import decode_windows, window_source
from training.pretraining.settings import PretrainSettings

N_FOLDS = 5
BLOCK_S = 20.0
STEP_S = 0.01  # all phases of a bin are scored
JUST_BEFORE_S = 1e-6  # a spike at the end of its bin is known there
RIDGE = "ridge"


@dataclass(frozen=True, kw_only=True)
class Times:
    """How spike times are changed. bin_s: rounded up to its multiples; 0 leaves them. later_s."""

    name: str
    bin_s: float = 0.0
    later_s: float = 0.0

    def of(self, session: Session) -> Session:
        """The session with its spike times changed."""
        times = session.spike_times + self.later_s
        if self.bin_s:
            times = (np.floor(times / self.bin_s) + 1.0) * self.bin_s - JUST_BEFORE_S
        return replace(session, spike_times=times)  # still ascending


AS_THEY_ARE = Times(name="as they are")
VARIANTS = (
    AS_THEY_ARE,
    Times(name="10 ms bins", bin_s=0.01),
    Times(name="50 ms bins", bin_s=0.05),
    Times(name="25 ms later", later_s=0.025),
)


def fold_of(session: Session, number: int) -> Session:
    """The session with every `N_FOLDS`th block as test domain, and the next ones as validation."""
    first, last = session.domain[0, 0], session.domain[-1, 1]
    edges = np.arange(first, last, BLOCK_S)
    blocks = np.stack([edges, np.minimum(edges + BLOCK_S, last)], axis=1)
    turn = (np.arange(len(blocks)) - number) % N_FOLDS

    def those(chosen: Any) -> Floats:
        parts = [intersect(session.domain, start, end) for start, end in blocks[chosen]]
        return np.concatenate([part for part in parts if len(part)])

    return replace(
        session,
        test_domain=those(turn == 0),
        valid_domain=those(turn == 1),
        train_domain=those(turn > 1),
    )


def decoded_fold(
    recorded: Sequence[Session], times: Times, number: int, run: Path, settings: PretrainSettings
) -> Iterator[tuple[Session, Floats, Floats]]:
    """Each session with true and decoded velocity (n, 2) of a fold's test domain.

    A model is trained into `run`, or resumed if it is there.
    """
    folds = [times.of(fold_of(session, number)) for session in recorded]
    pretrain(folds, run, settings, resume=(run / "run.json").exists())
    model, record = runs.load_model(run)
    for index, fold in enumerate(folds):
        config = record.config().training_on([fold.train_domain])
        source = window_source(folds, model, config, record)
        true, decoded = decode_windows(model, config, source, index, "test", step_s=STEP_S)
        yield fold, true, decoded


def ridge_fold(
    recorded: Sequence[Session], number: int
) -> Iterator[tuple[Session, Floats, Floats]]:
    """The same for ridge regression, fitted to each session alone."""
    for session in recorded:
        fold = fold_of(session, number)
        times = evaluation_times(fold, "test", step_s=STEP_S)
        yield fold, fold.velocity_at(times), Ridge(fold).decode(times)


def rows_of(
    name: str, number: int, parts: Iterator[tuple[Session, Floats, Floats]]
) -> Iterator[Any]:
    """Sums for R² over all folds: squared errors, squares and sums of the velocity, each (2,)."""
    for session, true, decoded in parts:
        yield {
            "times": name,
            "fold": number,
            "session": session.session_id,
            "r2": r2(true, decoded).r2_mean,
            "n": len(true),
            "sums": np.stack(
                [np.square(true - decoded).sum(0), np.square(true).sum(0), true.sum(0)]
            ).tolist(),
        }


def pooled(rows: Sequence[dict[str, Any]]) -> float:
    """R² over all folds of a session, the mean of both axes."""
    error, square, total = np.sum([row["sums"] for row in rows], axis=0)
    n = sum(row["n"] for row in rows)
    return float(np.mean(1.0 - error / (square - total**2 / n)))


def table(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """R² of each session (`pooled`), by times."""
    names = dict.fromkeys(row["times"] for row in rows)
    known = sorted({row["session"] for row in rows})
    return {
        name: [
            pooled([row for row in rows if (row["times"], row["session"]) == (name, session)])
            for session in known
        ]
        for name in names
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("sessions", type=Path, nargs="+")
    parser.add_argument("--preset", default="stream")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(N_FOLDS)))
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--run", type=Path, default=Path("runs/spike-times"))
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/spike-times"))
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    console = Console(markup=False)
    recorded = [session for path in given.sessions for session in sessions.open_all(path)]
    settings = PretrainSettings(
        preset=given.preset, minutes=None, steps=given.steps, seed=given.seed, threads=given.threads
    )
    path = given.output.with_suffix(".jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["times"], row["fold"]) for row in rows}
    with path.open("a") as file:
        for number in given.folds:
            for times in (None, *VARIANTS):
                name = times.name if times else RIDGE
                if (name, number) in done:
                    continue
                if times is None:
                    parts = ridge_fold(recorded, number)
                else:
                    run = given.run / f"{name.replace(' ', '-')}-{number}"
                    parts = decoded_fold(recorded, times, number, run, settings)
                new = list(rows_of(name, number, parts))
                rows += new
                file.writelines(json.dumps(row) + "\n" for row in new)
                file.flush()
                score = np.mean([row["r2"] for row in new])
                console.print(f"fold {number}, {name}: {score:.3f}")
    for name, scores in table(rows).items():
        console.print(f"{name}: {np.mean(scores):.3f}  {np.round(scores, 3)}")


if __name__ == "__main__":
    main()
