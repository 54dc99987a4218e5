"""Accuracy on a new subject by seconds of labelled data.

    python -m training.studies.fewshot RUN [RUN …] --unseen DIR --seconds 10 20 40 -o docs/fewshot

For every session in DIR and every pretrained RUN, units are identified on the first seconds of the
training domain. For comparison, the same preset is trained from scratch on the same seconds, and
ridge regression is fitted to them. All are scored causally on the test domain, models through the
exported bundle and the runtime. Writes the data (.json) and a plot (.svg).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from decoder.errors import TrainingError
from decoder.files import write_text
from streaming.sessions import format as sessions
from streaming.sessions.session import Session
from training.baselines.ridge import r2, ridge_score
from training.calibration.adapt import AdaptSettings, calibrate
from training.calibration.blocks import first_seconds, hold_out_last_fifth
from training.evaluation.offline import decode_split
from training.evaluation.plots import COLOURS, finish
from training.exports.export import export_model
from training.models.families import Model
from training.pretraining import runs
from training.pretraining.pretrain import pretrain
from training.pretraining.settings import PretrainSettings

TICK_S = 0.05  # between scored instants
STEPS_ON_ALL = 400
SCRATCH_MINUTES = 0.5  # several times the time of unit identification


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """R² on the test domain (mean of x and y), and training time in seconds."""

    r2: float
    took_s: float


def identified(
    model: Model, record: runs.RunRecord, session: Session, seconds: float | None
) -> Outcome:
    """Identify units on the first `seconds`; None for the whole training domain and more steps."""
    settings = AdaptSettings(seconds=seconds, steps=STEPS_ON_ALL if seconds is None else None)
    began = time.perf_counter()
    adapted, extended, _ = calibrate(model, record, session, settings)
    took_s = time.perf_counter() - began
    return Outcome(r2=score(adapted, extended, session), took_s=took_s)


def from_scratch(preset: str, session: Session, seconds: float) -> Outcome:
    """Train the same preset from scratch on the first `seconds` only."""
    labelled = hold_out_last_fifth(first_seconds(session, seconds))
    settings = PretrainSettings(preset=preset, minutes=SCRATCH_MINUTES)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        pretrain([labelled], Path(folder) / "run", settings)
        took_s = time.perf_counter() - began
        return Outcome(r2=score(*runs.load_model(Path(folder) / "run"), session), took_s=took_s)


def ridge_on(session: Session, seconds: float) -> float:
    """Fit ridge regression to the same seconds; the penalty is chosen on their last fifth."""
    labelled = hold_out_last_fifth(first_seconds(session, seconds))
    return ridge_score(replace(labelled, test_domain=session.test_domain)).r2_mean


def score(model: Model, record: runs.RunRecord, session: Session) -> float:
    """Mean causal R² on the test domain, through a bundle and the runtime."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = export_model(model, record, session.session_id, Path(folder) / "one.bundle")
        decoded = decode_split(bundle, session, "test", tick_s=TICK_S)
    return r2(session.velocity_at(decoded.times), decoded.velocity).r2_mean


def fewshot(
    pretrained: Sequence[Path],
    unseen: Sequence[Session],
    seconds: Sequence[float],
    *,
    console: Console,
) -> dict[str, Any]:
    """All results, by preset and seconds, as lists over the unseen sessions."""
    presets = [runs.load_record(run).preset for run in pretrained]
    if len(set(presets)) < len(presets):
        raise TrainingError(f"several runs of one preset ({presets}); expected one run per preset")
    result: dict[str, Any] = {
        "unseen": [session.session_id for session in unseen],
        "seconds": list(seconds),
        "threads": torch.get_num_threads(),
        "ridge": {f"{s:g}": [ridge_on(session, s) for session in unseen] for s in seconds},
        "presets": {},
    }
    for run in pretrained:
        model, record = runs.load_model(run)
        rows: dict[str, Any] = {}
        for part in (*seconds, None):
            name = "all" if part is None else f"{part:g}"
            outcomes = [identified(model, record, session, part) for session in unseen]
            rows[name] = {
                "r2": [outcome.r2 for outcome in outcomes],
                "took_s": [outcome.took_s for outcome in outcomes],
            }
            if part is not None:
                scratch = [from_scratch(record.preset, session, part) for session in unseen]
                rows[name]["scratch_r2"] = [outcome.r2 for outcome in scratch]
            console.print(f"{record.preset}, {name} s: {_said(rows[name])}")
        result["presets"][record.preset] = rows
    return result


def _said(row: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {np.mean(values):.3f}" for name, values in row.items())


def plot(result: dict[str, Any], path: Path) -> None:
    """Plot R² over seconds of labelled data."""
    from matplotlib.figure import Figure

    seconds = result["seconds"]
    figure = Figure(figsize=(6.5, 4))
    axes = figure.subplots()
    presets = result["presets"].items()
    for colour, (preset, rows) in zip(COLOURS * len(presets), presets, strict=False):
        at = [rows[f"{s:g}"] for s in seconds]
        units = [np.mean(row["r2"]) for row in at]
        axes.plot(seconds, units, color=colour, lw=2, marker="o", label=f"{preset}, units only")
        axes.axhline(np.mean(rows["all"]["r2"]), color=colour, lw=0.8, ls=":")
        scratch = [np.mean(row["scratch_r2"]) for row in at]
        axes.plot(seconds, scratch, color=colour, lw=1, ls="--", label=f"{preset}, from scratch")
    ridge = [np.mean(result["ridge"][f"{s:g}"]) for s in seconds]
    axes.plot(seconds, ridge, color="#c2702c", lw=1.5, marker="s", label="ridge")
    axes.set_xscale("log")
    axes.set_xticks(seconds, [f"{s:g}" for s in seconds])
    axes.minorticks_off()
    finish(
        figure,
        axes,
        path,
        x="seconds of labelled data (dotted: all of the training domain)",
        y="causal R² on an unseen subject",
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--unseen", type=Path, required=True)
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 20.0, 40.0, 80.0])
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/fewshot"))
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    unseen = [sessions.load(path) for path in sessions.find(given.unseen)]
    result = fewshot(given.runs, unseen, given.seconds, console=Console(markup=False))
    write_text(given.output.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
    plot(result, given.output.with_suffix(".svg"))


if __name__ == "__main__":
    main()
