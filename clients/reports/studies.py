"""`volition study`: progress, and the scores as a table and a plot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from training.days.plan import Plan


def run_study(
    console: Console, plan: Plan, *, jobs: int, ray: str | None = None
) -> list[dict[str, Any]]:
    """Run a study with a progress bar, write `days.json` and `days.svg`, print the table."""
    from decoder.files import write_text
    from training.days import report
    from training.days.study import study

    rows: list[dict[str, Any]] = []
    columns = (
        TextColumn("{task.description}", style="bold", markup=False), BarColumn(),
        MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("study", total=len(plan.jobs()))
        for job, of_job in study(plan, jobs=jobs, ray=ray):
            rows += of_job
            progress.update(bar, advance=1, description=f"study: {job.name} done")
    write_text(plan.output / "days.json", report.as_json(rows))
    report.plot(rows, plan.output / "days.svg")
    print_days(console, report.table(rows))
    return rows


def print_days(console: Console, lines: Mapping[str, Mapping[str, float]]) -> None:
    """Print R² by decoder and seconds of labels, means over days and seeds."""
    from training.days.report import column_place

    columns = sorted({c for cells in lines.values() for c in cells}, key=column_place)
    table = Table(title="causal R² by seconds of labels", title_justify="left")
    table.add_column("decoder")
    for column in columns:
        table.add_column(column, justify="right")
    for name, cells in lines.items():
        table.add_row(name, *(f"{cells[c]:.3f}" if c in cells else "" for c in columns))
    console.print(table)
