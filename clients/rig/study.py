"""Compares decoders, delays and labels in closed loop.

    python -m clients.rig.study decoders --seed 1 --seed 2 -o decoders.json
    python -m clients.rig.study delays --seed 1 -o delays.json
    python -m clients.rig.study labels --seed 1 -o labels.json

Each seed is a loop in real time, as in `volition rig`. The decoders are learned from the same data
(`data` in the REST API) and steered in turns. The order of turns rotates with the seed, to balance
practice. Rows are written as they are done; `--jobs` loops run in parallel.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from clients.participant.drift import Drift
from clients.rig.closed_loop import Loop, LoopSettings, running_loop, side_by_side
from clients.rig.score import BlockScore, Spread, across, score_trials
from clients.task.trial import read_trials
from decoder.files import write_text
from server.schemas import Labels, Method

GRID_S = 90.0
REACHES = 24
COMPARATORS: tuple[Method, ...] = ("ridge", "kalman")
TICKS_MS = (2.0, 5.0, 10.0, 20.0, 50.0)
LATENCIES_MS = (0.0, 25.0, 50.0, 100.0, 200.0)
SHOWN = ("success_rate", "acquisition_s", "path_efficiency", "bit_rate_bits_s")
MILD = Drift(replaced=0.3, turned_deg=30.0)  # the decoder from before the drift still steers, badly
LABELS: tuple[Labels, ...] = ("kinematics", "intention")
Row = dict[str, Any]
Run = Callable[[LoopSettings], Iterator[Row]]

app = typer.Typer(help=__doc__, add_completion=False)
Seeds = Annotated[list[int], typer.Option("--seed", min=0)]
Output = Annotated[Path, typer.Option("-o", "--output", help="JSON; a row a block.")]
Jobs = Annotated[int, typer.Option(min=1, help="Loops at once.")]


@app.command()
def decoders(
    output: Output,
    seed: Seeds = [1, 2, 3, 4, 5],  # noqa: B006
    gain: Annotated[list[float], typer.Option()] = [LoopSettings.gain],  # noqa: B006
    jobs: Jobs = 1,
) -> None:
    """POYO, ridge and a Kalman filter from the same 40 s, on reaches and on the grid."""

    def run(settings: LoopSettings) -> Iterator[Row]:
        with running_loop(settings) as loop:
            made = {settings.method: loop.calibrate(promote="never")}
            data = made[settings.method].id
            made |= {m: loop.learn(method=m, promote="never", data=data) for m in COMPARATORS}
            for method, factor in turns([(m, g) for m in made for g in gain], settings.seed):
                loop.use(made[method])
                loop.set_gain(factor)
                about = {"decoder": method, "gain": factor}
                yield steered(loop, about, task="center-out", trials=REACHES)
                yield steered(loop, about, task="grid", trials=None, seconds=GRID_S)

    study(run, [LoopSettings(folder=Path(), seed=s) for s in seed], output, jobs)


@app.command()
def delays(output: Output, seed: Seeds = [1, 2, 3], jobs: Jobs = 1) -> None:  # noqa: B006
    """The grid at each tick length, and with each added latency between frame and cursor."""

    def run(settings: LoopSettings) -> Iterator[Row]:
        latencies_ms = LATENCIES_MS if settings.tick_ms == LoopSettings.tick_ms else (0.0,)
        with running_loop(settings) as loop:
            loop.calibrate()
            for latency_ms in turns(latencies_ms, settings.seed):
                about = {"tick_ms": settings.tick_ms, "latency_ms": latency_ms}
                yield steered(
                    loop, about, task="grid", trials=None, seconds=GRID_S,
                    latency_s=latency_ms / 1e3,
                )  # fmt: skip

    loops = [LoopSettings(folder=Path(), seed=s, tick_ms=t) for s in seed for t in TICKS_MS]
    rows = study(run, loops, output, jobs)
    plot_delays(rows, output.with_suffix(".svg"))


@app.command()
def labels(output: Output, seed: Seeds = [1, 2, 3, 4, 5], jobs: Jobs = 1) -> None:  # noqa: B006
    """Recalibration after a mild drift from one closed-loop block, with each kind of labels."""

    def run(settings: LoopSettings) -> Iterator[Row]:
        with running_loop(settings) as loop:
            loop.calibrate()
            loop.drift()
            first = loop.calibrate(LABELS[0], mode="closed", promote="never")
            made = {LABELS[0]: first}
            for kind in LABELS[1:]:
                made[kind] = loop.learn(
                    labels=kind, method=settings.method, promote="never", data=first.id
                )
            loop.quicken()
            for kind in turns(LABELS, settings.seed):
                loop.use(made[kind])
                yield steered(loop, {"labels": kind}, task="grid", trials=None, seconds=GRID_S)

    study(run, [LoopSettings(folder=Path(), seed=s, drift=MILD) for s in seed], output, jobs)


def turns(conditions: Any, seed: int) -> list[Any]:
    """The conditions, rotated by the seed."""
    first = seed % len(conditions)
    return [*conditions[first:], *conditions[:first]]


def steered(loop: Loop, about: Row, **block: object) -> Row:
    """Steer a block and return its row."""
    name = ", ".join(str(value) for value in about.values())
    loop.steer(name, **block)
    trials = read_trials(loop.settings.folder / "trials.jsonl")
    (score,) = (s for s in score_trials(trials) if (s.block, s.task) == (name, block["task"]))
    return {"seed": loop.settings.seed, **about, "task": block["task"], "score": score}


def study(run: Run, loops: list[LoopSettings], output: Path, jobs: int) -> list[Row]:
    """Run all loops, write rows as they are done, and print mean and spread over seeds."""
    console, lock = Console(markup=False), threading.Lock()
    rows: list[Row] = []

    def one(settings: LoopSettings) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for row in run(replace(settings, folder=Path(folder))):
                with lock:
                    rows.append(row)
                    write(rows, output)
                    console.print(line(row))

    for _ in side_by_side(one, loops, jobs):
        pass
    console.print(summary(rows))
    return rows


def write(rows: list[Row], path: Path) -> None:
    """Write all rows atomically."""
    done = [row | {"score": row["score"].as_dict()} for row in rows]
    write_text(path, json.dumps(done, indent=1) + "\n")


def line(row: Row) -> str:
    """One line for a row."""
    about = ", ".join(f"{k} {v}" for k, v in row.items() if k != "score")
    score: BlockScore = row["score"]
    rate = score.bit_rate_bits_s
    said = "" if rate is None else f", {rate:.2f} bit/s"
    return f"{about}: {score.successes} of {score.trials}{said}"


def summary(rows: list[Row]) -> Table:
    """A table of mean and standard deviation over seeds, one line per condition."""
    table = Table(title="mean (s.d.) over seeds", title_justify="left")
    for name in ("condition", "seeds", "success", "acquisition, s", "path efficiency", "bit/s"):
        table.add_column(name)
    for condition, scores in by_condition(rows).items():
        spreads = across(scores)
        values = [text(spreads[name]) for name in SHOWN]
        table.add_row(condition, str(len(scores)), *values)
    return table


def by_condition(rows: list[Row]) -> dict[str, list[BlockScore]]:
    """The scores of all seeds by condition."""
    found: dict[str, list[BlockScore]] = {}
    for row in rows:
        name = ", ".join(f"{k} {v}" for k, v in row.items() if k not in ("seed", "score"))
        found.setdefault(name, []).append(row["score"])
    return dict(sorted(found.items()))


def text(spread: Spread | None) -> str:
    """Mean and standard deviation as text."""
    if spread is None:
        return ""
    return f"{spread.mean:.2f}" + ("" if spread.sd is None else f" ({spread.sd:.2f})")


def plot_delays(rows: list[Row], path: Path) -> None:
    """Plot bit rate over tick length and added latency: a point per seed, a line of means."""
    from matplotlib.figure import Figure

    from training.evaluation.page import svg, write_page
    from training.evaluation.plots import COLOURS

    figure = Figure(figsize=(8, 3.4))
    panels = figure.subplots(1, 2, sharey=True)
    usual_ms = LoopSettings.tick_ms
    ticks = [row for row in rows if row["latency_ms"] == 0.0]
    latencies = [row for row in rows if row["tick_ms"] == usual_ms]
    for axes, some, name, label in (
        (panels[0], ticks, "tick_ms", "time between decodes, ms"),
        (panels[1], latencies, "latency_ms", f"latency added at ticks of {usual_ms:g} ms, ms"),
    ):
        x = np.array([row[name] for row in some])
        y = np.array([row["score"].bit_rate_bits_s for row in some], dtype=np.float64)
        values = np.unique(x)
        axes.plot(x, y, "o", color=COLOURS[1], ms=4, alpha=0.5, label="a seed")
        means = [y[x == value].mean() for value in values]
        axes.plot(values, means, color=COLOURS[1], label="mean")
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    highest = max(row["score"].bit_rate_bits_s for row in rows)
    panels[0].set_ylim(0.0, 1.1 * max(highest, 1e-9))  # shared by both plots
    panels[0].set_ylabel("achieved bit rate, bit/s")
    panels[0].legend(frameon=False, fontsize="small")
    write_page(svg(figure), path)


if __name__ == "__main__":
    app()
