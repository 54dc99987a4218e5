"""The report of an evaluation: a self-contained HTML file with a table and inline SVG plots."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np

from decoder.arrays import Floats
from training.evaluation.evaluate import Evaluation
from training.evaluation.page import PAGE, svg, write_page

SHOWN_S = 12.0  # length of the velocity plot
SCATTERED = 2000  # points in a scatter plot
TRUE, OURS, OTHER = "#222222", "#1b7f5c", "#c2702c"


def write_report(evaluation: Evaluation, path: Path) -> None:
    """Write the report atomically."""
    write_page(render(evaluation), path)


def render(evaluation: Evaluation) -> str:
    """The report as HTML."""
    import matplotlib as mpl

    mpl.use("Agg")
    result = evaluation.as_dict()
    manifest = evaluation.bundle.manifest
    tail = result["tick_ms"]
    subtitle = (
        f"decoder {manifest.decoder_id}, {manifest.family} {manifest.preset}; {evaluation.split} "
        f"domain, {result['seconds']:.0f} s, causal, every 50 ms. A tick of "
        f"{1e3 * evaluation.tick_s:g} ms took p50 {tail['p50']:.2f}, p99 {tail['p99']:.2f}, "
        f"p99.9 {tail['p99.9']:.2f} ms on this machine; normalized latency "
        f"{result['normalized_latency']:.2f}. R² at every tick: "
        f"{result['r2_mean_every_tick']:.3f}."
    )
    plots = [("Decoded and true velocity", _traces(evaluation)), ("", _scatter(evaluation))]
    small = []
    if evaluation.unit_counts:
        small.append(("R² with fewer units, not retrained", _unit_counts(evaluation)))
    if len(manifest.history) > 1:
        small.append(("Learning curve: causal validation R²", _learning_curve(evaluation)))
    body = _table(result["decoders"])
    body += "".join(f"<h2>{name}</h2>{svg}" if name else svg for name, svg in plots)
    body += "".join(f'<div class="half"><h2>{name}</h2>{svg}</div>' for name, svg in small)
    title = f"Decoding of {evaluation.session}"
    return PAGE.format(title=html.escape(title), subtitle=html.escape(subtitle), body=body)


def _table(decoders: list[dict[str, Any]]) -> str:
    best = max(row["r2_mean"] for row in decoders)
    rows = [
        "<table><tr><th>decoder</th><th>R² x</th><th>R² y</th><th>R² mean</th>"
        "<th>correlation</th><th>chosen on validation</th></tr>"
    ]
    for row in decoders:
        mark = ' class="best"' if row["r2_mean"] == best else ""
        cells = "".join(
            f"<td>{row[key]:.3f}</td>" for key in ("r2_x", "r2_y", "r2_mean", "correlation_mean")
        )
        rows.append(
            f"<tr{mark}><td>{html.escape(row['name'])}</td>{cells}"
            f"<td>{html.escape(row['chosen'])}</td></tr>"
        )
    return "\n".join([*rows, "</table>"])


def _traces(evaluation: Evaluation) -> str:
    from matplotlib.figure import Figure

    times = evaluation.times
    start = _busiest(times, evaluation.true)
    shown = (times >= start) & (times < start + SHOWN_S)
    figure = Figure(figsize=(10, 4.6))
    axes = figure.subplots(2, 1, sharex=True)
    ours, others = evaluation.entries[0], evaluation.entries[1:]
    rival = max(others, key=lambda entry: entry.score.r2_mean) if others else None
    for axis, name in enumerate("xy"):
        plot = axes[axis]
        since = times[shown] - start
        plot.plot(since, evaluation.true[shown, axis], color=TRUE, lw=1.4, label="true")
        if rival:
            plot.plot(since, rival.decoded[shown, axis], color=OTHER, lw=1.0, label=rival.name)
        plot.plot(since, ours.decoded[shown, axis], color=OURS, lw=1.6, label=ours.name)
        plot.set_ylabel(f"{name} velocity, m/s")
        plot.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    axes[1].set_xlabel("seconds")
    return svg(figure)


def _busiest(times: Floats, true: Floats) -> float:
    """Start of the `SHOWN_S` with the most movement."""
    speed = np.linalg.norm(true, axis=1)
    starts = np.arange(times[0], max(times[-1] - SHOWN_S, times[0]) + 1e-6, SHOWN_S / 4)
    moved = [speed[(times >= s) & (times < s + SHOWN_S)].sum() for s in starts]
    return float(starts[int(np.argmax(moved))])


def _scatter(evaluation: Evaluation) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2))
    axes = figure.subplots(1, 2)
    rows = np.random.default_rng(0).permutation(len(evaluation.times))[:SCATTERED]
    ours = evaluation.entries[0]
    for axis, name in enumerate("xy"):
        true, decoded = evaluation.true[rows, axis], ours.decoded[rows, axis]
        limit = float(np.abs(true).max())
        axes[axis].plot([-limit, limit], [-limit, limit], color="#bbbbbb", lw=1)
        axes[axis].scatter(true, decoded, s=5, color=OURS, alpha=0.4, linewidths=0)
        axes[axis].set_xlabel(f"true {name} velocity, m/s")
        axes[axis].set_ylabel(f"decoded {name} velocity, m/s")
        axes[axis].spines[["top", "right"]].set_visible(False)
    return svg(figure)


def _unit_counts(evaluation: Evaluation) -> str:
    counts, scores = zip(*evaluation.unit_counts, strict=True)
    return _curve(counts, scores, "units used", "R², mean of x and y")


def _learning_curve(evaluation: Evaluation) -> str:
    history = evaluation.bundle.manifest.history
    return _curve(
        [point.seconds / 60 for point in history],
        [point.r2 for point in history],
        "minutes of training",
        "R², mean of x and y",
    )


def _curve(x: Any, y: Any, x_label: str, y_label: str) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4))
    plot = figure.subplots()
    plot.plot(x, y, color=OURS, marker="o", ms=4)
    plot.set_xlabel(x_label)
    plot.set_ylabel(y_label)
    plot.spines[["top", "right"]].set_visible(False)
    return svg(figure)
