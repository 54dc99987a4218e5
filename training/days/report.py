"""The table and the plots of a study of other days."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from training.days.plan import OWN_DAY, Row
from training.days.scores import AS_IS
from training.evaluation.plots import COLOURS, finish

AT_ZERO, AT_ALL = 5.0, 960.0  # where a logarithmic axis has "0" and "all"
STYLES = ("-", "--", ":")


def column_of(row: Row) -> str:
    """The column of a row in the table: its seconds of labels, or `all`."""
    return "all" if row["seconds"] is None else f"{row['seconds']:g}"


def column_place(column: str) -> float:
    """The order of the table's columns."""
    return np.inf if column == "all" else float(column)


def line_of(row: Row) -> str:
    """The line of a row in the table: its model and method."""
    return str(row["method"] if row["model"] == OWN_DAY else f"{row['model']}, {row['method']}")


def table(
    rows: Sequence[Row], column: Callable[[Row], str] = column_of
) -> dict[str, dict[str, float]]:
    """R² by line and column: means over days and seeds."""
    cells: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        cells.setdefault(line_of(row), {}).setdefault(column(row), []).append(row["r2"])
    return {
        line: {column: float(np.mean(values)) for column, values in of_line.items()}
        for line, of_line in cells.items()
    }


def as_json(rows: Sequence[Row]) -> str:
    """The rows as a JSON document; `seconds` null is the whole training domain."""
    return json.dumps(list(rows), indent=1) + "\n"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Plot R² over the seconds of labels, and as it is over the days apart."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5))
    by_seconds, by_days = figure.subplots(1, 2, width_ratios=(2, 1))
    lines = table(rows)
    styles = {
        line: {"color": COLOURS[i % len(COLOURS)], "ls": STYLES[i // len(COLOURS) % len(STYLES)]}
        for i, line in enumerate(lines)
    }
    for line, cells in lines.items():
        points = sorted((_on_axis(column), score) for column, score in cells.items())
        by_seconds.plot(*zip(*points, strict=True), marker="o", ms=3, label=line, **styles[line])
    by_seconds.set_xscale("log")
    columns = sorted({column for cells in lines.values() for column in cells}, key=column_place)
    by_seconds.set_xticks([_on_axis(column) for column in columns], columns)
    by_seconds.minorticks_off()
    unchanged = [row for row in rows if row["method"] == AS_IS and row["apart"] is not None]
    for line, cells in table(unchanged, column=lambda row: str(row["apart"])).items():
        points = sorted((float(days), score) for days, score in cells.items())
        by_days.plot(*zip(*points, strict=True), marker="o", ms=3, label=line, **styles[line])
    for axes in (by_seconds, by_days):
        axes.set_ylim(bottom=0.0)
    by_days.set_xlabel("days from the nearest day of pretraining")
    by_days.spines[["top", "right"]].set_visible(False)
    finish(figure, by_seconds, path, x="seconds of labels on the new day", y="causal R²")


def _on_axis(column: str) -> float:
    """Where a logarithmic axis shows a column of the table."""
    return AT_ALL if column == "all" else max(float(column), AT_ZERO)
