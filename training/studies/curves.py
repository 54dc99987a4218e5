"""Plots validation R² over training time.

    python -m training.studies.curves RUN [RUN …] -o docs/compute

Runs with the same preset, sessions and number of threads are seeds of one curve: thin lines for the
runs, a thick line for their mean. Writes the data (.json) and the plot (.svg).
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from decoder.errors import TrainingError
from decoder.files import write_text
from training.evaluation.plots import COLOURS, finish
from training.pretraining import runs

N_POINTS = 60


def curves(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """A dictionary per run: preset, sessions, seed, and history."""
    found = []
    for folder in folders:
        record = runs.load_record(folder)
        sessions = sorted(record.sessions)
        if not record.history:
            raise TrainingError(
                f"{folder}: the history has no validation scores; expected a pretraining run"
            )
        on = sessions[0] if len(sessions) == 1 else f"{len(sessions)} sessions"
        found.append(
            {
                "preset": record.preset,
                "on": on,
                "sessions": sessions,
                "seed": record.seed,
                "threads": record.settings.get("threads"),
                "minutes": [point["seconds"] / 60.0 for point in record.history],
                "steps": [int(point["step"]) for point in record.history],
                "r2": [point["r2"] for point in record.history],
            }
        )
    return found


def plot(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot validation R² over minutes of training."""
    from matplotlib.figure import Figure

    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for run in found:
        groups[run["preset"], run["on"], tuple(run["sessions"]), str(run["threads"])].append(run)
    figure = Figure(figsize=(7, 4.2))
    axes = figure.subplots()
    for colour, (kind, seeds) in zip(COLOURS * len(groups), sorted(groups.items()), strict=False):
        name = f"{kind[0]}, {kind[1]}"
        for run in seeds:
            axes.plot(run["minutes"], run["r2"], color=colour, lw=0.6, alpha=0.5)
        start = max(run["minutes"][0] for run in seeds)
        end = min(run["minutes"][-1] for run in seeds)
        grid = np.linspace(start, end, N_POINTS)
        mean = np.mean([np.interp(grid, run["minutes"], run["r2"]) for run in seeds], axis=0)
        axes.plot(grid, mean, color=colour, lw=2, label=f"{name} ({len(seeds)} seeds)")
    axes.grid(alpha=0.2)
    finish(figure, axes, path, x="minutes of training", y="causal R² on the validation domain")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/compute"))
    given = parser.parse_args()
    found = curves(given.runs)
    write_text(given.output.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    plot(found, given.output.with_suffix(".svg"))


if __name__ == "__main__":
    main()
