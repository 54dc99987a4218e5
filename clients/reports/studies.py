"""`volition study`: progress, and the scores as a table and a plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from training.studies.days import Plan


def run_study(console: Console, plan: Plan, *, jobs: int) -> list[dict[str, Any]]:
    """Run a study with a progress bar, write `days.json` and `days.svg`, print the table."""
    from decoder.files import write_text
    from training.studies import days

    rows: list[dict[str, Any]] = []
    columns = (
        TextColumn("{task.description}", style="bold", markup=False), BarColumn(),
        MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("study", total=len(days.jobs_of(plan)))
        for job, of_job in days.study(plan, jobs=jobs):
            rows += of_job
            progress.update(bar, advance=1, description=f"study: {job.name} done")
    write_text(plan.output / "days.json", days.as_json(rows))
    days.plot(rows, plan.output / "days.svg")
    print_days(console, days.table(rows))
    return rows


def print_days(console: Console, lines: Sequence[tuple[str, dict[str, float]]]) -> None:
    """Print R² by decoder and seconds of labels, means over days and seeds."""
    columns = sorted({c for _, cells in lines for c in cells}, key=_seconds)
    table = Table(title="causal R² by seconds of labels", title_justify="left")
    table.add_column("decoder")
    for column in columns:
        table.add_column(column, justify="right")
    for name, cells in lines:
        table.add_row(name, *(f"{cells[c]:.3f}" if c in cells else "" for c in columns))
    console.print(table)


def _seconds(column: str) -> float:
    return np.inf if column == "all" else float(column)
