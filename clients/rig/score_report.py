"""Scores as a table, and as an HTML page with paths and learning curves."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from clients.rig.score import (
    METRICS,
    BlockScore,
    Spread,
    acquisition_s,
    bit_rate_bits_s,
    by_block,
    score_trials,
)
from clients.task.trial import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = {  # metric: its heading and digits
    "acquisition_s": ("acquisition, s", 2),
    "dial_in_s": ("dial-in, s", 2),
    "path_efficiency": ("path efficiency", 2),
    "direction_changes": ("direction changes", 1),
    "angular_error_deg": ("angular error, °", 0),
    "throughput_bits_s": ("throughput, bits/s", 2),
}
BIT_RATE = "bit rate, bits/s"
RUNNING = 8  # trials averaged in a point of the success curve
PATHS_SHOWN = 128  # the last ones of a block
FAILED = "#c2702c"


def print_scores(console: Console, scores: Sequence[BlockScore]) -> None:
    """Print one column per block: mean ± standard deviation over trials."""
    table = Table(title="score, mean ± SD over trials", title_justify="left")
    table.add_column("", no_wrap=True)
    for score in scores:
        table.add_column(score.block, justify="right")
    for name, *cells in _rows(scores):
        table.add_row(name, *cells)
    console.print(table)


def print_across(console: Console, phases: Mapping[str, Mapping[str, Spread | None]]) -> None:
    """Print one column per phase: mean ± standard deviation over runs (`score.across`)."""
    table = Table(title="mean ± SD over seeds", title_justify="left")
    table.add_column("", no_wrap=True)
    for phase in phases:
        table.add_column(phase, justify="right")
    names = {"success_rate": ("success", 2), "bit_rate_bits_s": ("bit rate, bits/s", 2), **COLUMNS}
    for key, (name, digits) in names.items():
        table.add_row(name, *(_cell(spreads[key], digits) for spreads in phases.values()))
    console.print(table)


def _rows(scores: Sequence[BlockScore]) -> list[list[str]]:
    """The name of every metric and one cell per block."""
    rows = [
        ["task", *(f"{score.task}, {score.mode}" for score in scores)],
        ["success", *map(_success, scores)],
        ["failures", *map(_failures, scores)],
    ]
    for name, (heading, digits) in COLUMNS.items():
        rows.append([heading, *(_cell(score.metrics[name], digits) for score in scores)])
    if any(score.bit_rate_bits_s is not None for score in scores):
        rates = (score.bit_rate_bits_s for score in scores)
        rows.append([BIT_RATE, *("–" if rate is None else f"{rate:.2f}" for rate in rates)])
    rows.append(["without frames, s", *(f"{score.still_s:.1f}" for score in scores)])
    return rows


def _success(score: BlockScore) -> str:
    least, most = score.success_interval
    return (
        f"{score.success_rate:.0%} of {score.trials} ({100 * least:.0f}–{100 * most:.0f} %)"
    )  # fmt: skip


def _failures(score: BlockScore) -> str:
    return ", ".join(f"{n} {why}" for why, n in score.why.items()) or "none"


def _cell(spread: Spread | None, digits: int) -> str:
    if spread is None:
        return "–"
    sd = "" if spread.sd is None else f" ± {spread.sd:.{digits}f}"
    return f"{spread.mean:.{digits}f}{sd}"


def write_report(trials: Sequence[Trial], path: Path) -> None:
    """Write the page atomically. Needs matplotlib."""
    from training.evaluation.page import write_page

    write_page(render(trials), path)


def save_paths(trials: Sequence[Trial], path: Path) -> None:
    """Save the cursor paths as SVG, one panel per closed-loop block. Needs matplotlib."""
    from matplotlib.figure import Figure

    from training.evaluation.page import svg, write_page

    blocks = by_block([trial for trial in trials if trial.mode == "closed"])
    widest_cm = _widest_cm(blocks.values())
    scores = {(score.block, score.task): score for score in score_trials(trials)}
    figure = Figure(figsize=(3.2 * len(blocks), 3.5))
    panels = figure.subplots(1, len(blocks), sharey=True, squeeze=False)[0]
    for axes, (key, block) in zip(panels, blocks.items(), strict=True):
        _draw_paths(axes, block, widest_cm)
        axes.set_title(f"{key[0]}: {100 * scores[key].success_rate:.0f} %", fontsize=10)
    write_page(svg(figure), path)


def render(trials: Sequence[Trial]) -> str:
    """The page as text: table, learning curves, every block's paths, definitions."""
    from training.evaluation.page import PAGE

    scores, blocks = score_trials(trials), by_block(trials)
    widest_cm = _widest_cm(blocks.values())
    n = sum(score.trials for score in scores)
    body = _table(scores)
    body += "<h2>Success and acquisition time over trials</h2>" + _learning_curves(blocks)
    body += "<h2>Paths of the cursor</h2>" + "".join(
        f'<div class="half"><h2>{html.escape(f"{name}, {task}")}</h2>'
        f"{_paths(block, widest_cm)}</div>"
        for (name, task), block in blocks.items()
    )
    body += "<h2>What the numbers mean</h2>" + _definitions()
    return PAGE.format(
        title="How well the cursor was steered",
        subtitle=f"{n} trials in {len(scores)} blocks; void trials and returns are left out.",
        body=body,
    )


def _table(scores: Sequence[BlockScore]) -> str:
    head = "".join(f"<th>{html.escape(score.block)}</th>" for score in scores)
    rows = [
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
        for cells in _rows(scores)
    ]
    return "\n".join(
        ["<table>", f"<tr><th>mean ± SD over trials</th>{head}</tr>", *rows, "</table>"]
    )


def _definitions() -> str:
    """The metrics' docstrings."""
    described = {COLUMNS[name][0]: metric.__doc__ for name, metric in METRICS.items()}
    items = []
    for heading, text in {**described, BIT_RATE: bit_rate_bits_s.__doc__}.items():
        said = " ".join((text or "").split())
        items.append(f"<dt>{html.escape(heading)}</dt><dd>{html.escape(said)}</dd>")
    return f"<dl>{''.join(items)}</dl>"


def _learning_curves(blocks: dict[tuple[str, str], list[Trial]]) -> str:
    from matplotlib.figure import Figure

    from training.evaluation.page import svg
    from training.evaluation.plots import COLOURS

    figure = Figure(figsize=(10, 5))
    success, time_s = figure.subplots(2, 1, sharex=True)
    first = 1
    for index, ((name, _), trials) in enumerate(blocks.items()):
        x = first + np.arange(len(trials))
        colour = COLOURS[index % len(COLOURS)]
        won = [float(trial.success) for trial in trials]
        running = [np.mean(won[max(0, i + 1 - RUNNING) : i + 1]) for i in range(len(won))]
        success.plot(x, running, color=colour, label=name, marker="o", ms=2)
        times = [acquisition_s(trial) for trial in trials]
        time_s.plot(x, [np.nan if t is None else t for t in times], ".", color=colour)
        first += len(trials)
    success.set_ylim(-0.05, 1.05)
    success.set_ylabel(f"success, last {RUNNING}")
    success.legend(
        frameon=False, fontsize="small", ncols=4, loc="lower left", bbox_to_anchor=(0, 1)
    )
    time_s.set_ylim(bottom=0.0)
    time_s.set_ylabel("acquisition time, s")
    time_s.set_xlabel("trial")
    for axes in (success, time_s):
        axes.spines[["top", "right"]].set_visible(False)
    return svg(figure)


def _paths(trials: Sequence[Trial], widest_cm: float) -> str:
    from matplotlib.figure import Figure

    from training.evaluation.page import svg

    figure = Figure(figsize=(4.6, 4.6))
    _draw_paths(figure.subplots(), trials, widest_cm)
    return svg(figure)


def _widest_cm(blocks: Iterable[Sequence[Trial]]) -> float:
    """Largest distance of the cursor from the centre on either axis."""
    return 100 * max(abs(c) for block in blocks for trial in block for p in trial.path for c in p)


def _draw_paths(axes: Axes, trials: Sequence[Trial], widest_cm: float) -> None:
    from training.evaluation.plots import COLOURS

    for trial in trials[-PATHS_SHOWN:]:
        x, y = 100 * np.array(trial.path).T
        axes.plot(x, y, color=COLOURS[0] if trial.success else FAILED, lw=0.8, alpha=0.7)
    for trial in {(trial.target, trial.radius): trial for trial in trials}.values():
        _draw_target(axes, trial)
    axes.set_aspect("equal")
    axes.set(xlim=(-1.05 * widest_cm, 1.05 * widest_cm), ylim=(-1.05 * widest_cm, 1.05 * widest_cm))
    axes.set_xlabel("cm; green: acquired, orange: not")
    axes.spines[["top", "right"]].set_visible(False)


def _draw_target(axes: Axes, trial: Trial) -> None:
    from matplotlib.patches import Circle, Rectangle

    (x, y), half = (100 * trial.target[0], 100 * trial.target[1]), 100 * trial.radius
    look: dict[str, Any] = {"fill": False, "edgecolor": "#bbbbbb", "linewidth": 0.8}
    if trial.task == "grid":
        axes.add_patch(Rectangle((x - half, y - half), 2 * half, 2 * half, **look))
    else:
        axes.add_patch(Circle((x, y), half, **look))
