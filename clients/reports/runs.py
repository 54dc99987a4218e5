"""Training and simulation with progress: `volition pretrain`, `adapt` and `simulate`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from decoder.bundles.bundle import open_bundle
from decoder.bundles.manifest import MANIFEST
from decoder.errors import TrainingError
from streaming.sessions import format as sessions

if TYPE_CHECKING:
    from training.calibration.adapt import AdaptSettings
    from training.data.simulate import Task
    from training.pretraining.settings import PretrainSettings, TrainingProgress


def run_training(
    console: Console, folder: Path, run: Path, settings: PretrainSettings, *, resume: bool
) -> dict[str, Any] | None:
    """Pretrain with a progress bar: loss, validation R², tokens/s, time left.

    Returns None in all processes of torchrun but the first.
    """
    from training.pretraining.pretrain import pretrain
    from training.pretraining.process import launch

    paths = sessions.find(folder)
    loaded = sessions.open_all(folder)
    if len({session.session_id for session in loaded}) < len(loaded):
        raise TrainingError(f"{folder}: two files have the same session id; keep one of them")
    columns = (
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(), TaskProgressColumn(),
        TextColumn("step {task.fields[step]}  loss {task.fields[loss]:.3f}  "
                   "R² {task.fields[r2]}  {task.fields[rate]:,.0f} tokens/s"),
        TimeRemainingColumn(),
    )  # fmt: skip
    fabric = launch(run, settings.precision)
    with Progress(*columns, console=console, disable=not fabric.is_global_zero) as progress:
        bar = progress.add_task(
            f"pretrain {settings.preset}", total=1.0, step=0, loss=float("nan"), r2="-", rate=0.0
        )

        def show(at: TrainingProgress) -> None:
            progress.update(
                bar, completed=at.share, step=at.step, loss=at.loss, rate=at.tokens_per_s
            )
            if at.r2 is not None:
                progress.update(bar, r2=f"{at.r2:.3f}")

        record = pretrain(
            loaded,
            run,
            settings,
            session_paths={s.session_id: str(p) for s, p in zip(loaded, paths, strict=True)},
            on_step=show,
            resume=resume,
            fabric=fabric,
        )
    if not fabric.is_global_zero:
        return None
    return {
        "run": str(run),
        "steps": record.step,
        "seconds": record.seconds,
        "validation_r2": record.best_r2,
    }


def simulate_corpus(
    console: Console,
    folder: Path,
    count: int,
    *,
    subjects: range,
    n_units: int,
    minutes: float,
    seed: int,
    task: Task | None = None,
) -> None:
    """Write `count` simulated sessions with `n_units` in total, one folder per subject."""
    from training.data.simulate import simulate

    with Progress(console=console) as progress:
        for day in progress.track(range(count), description="simulating"):
            session = simulate(
                n_units=n_units // count + (day < n_units % count),
                minutes=minutes,
                subject=subjects[day % len(subjects)],
                seed=seed + day,
                task=task,
            )
            sessions.save(session, folder / session.subject_id)
    console.print(
        Text.assemble(
            (f"{folder}", "bold"),
            f": {count} sessions of {len(subjects)} subjects, {n_units} units, "
            f"{count * minutes:g} minutes",
        )
    )


def run_adaptation(
    console: Console, run: Path, paths: Sequence[Path], output: Path, settings: AdaptSettings
) -> dict[str, Any]:
    """Adapt to a session or several, with a progress bar. A run gives a run, a bundle a bundle."""
    from training.calibration import adapt
    from training.calibration.blocks import joined
    from training.calibration.excluded import without_copies
    from training.exports.checkpoints import save_run
    from training.exports.reweigh import write_adapted
    from training.pretraining import runs

    model, record = runs.load_model(run)
    blocks = [sessions.load(path) for path in paths]
    began = time.monotonic()
    labelled = [adapt.labelled_by(model, record, block, settings) for block in blocks]
    session, notes = without_copies(joined(labelled))
    for note in notes:
        console.print(Text(note, "yellow"))
    settings = replace(settings, seconds=None, labels="kinematics")  # they are labelled
    columns = (
        TextColumn("{task.description}", style="bold", markup=False),
        BarColumn(), TaskProgressColumn(),
        TextColumn("R² {task.fields[r2]:.3f}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        bars: dict[str, TaskID] = {}

        def show(share: float, r2: float, phase: str) -> None:
            if phase not in bars:
                bars[phase] = progress.add_task(f"learning: {phase}", total=1.0, r2=r2)
            progress.update(bars[phase], completed=share, r2=r2)

        adapted = adapt.calibrate(model, record, session, settings, on_step=show)
    took_s = time.monotonic() - began
    model, record = adapted.model, adapted.record
    if (run / MANIFEST).is_file():
        metrics = {"validation_r2": record.best_r2}
        write_adapted(open_bundle(run), model, record, session.session_id, output, metrics)
    else:
        save_run(output, record, runs.weights(model))
    return {
        "output": str(output),
        "session": session.session_id,
        "method": adapted.method,
        "units": session.n_units,
        "notes": notes,
        "seconds": took_s,
        "validation_r2": record.best_r2 if math.isfinite(record.best_r2) else None,
    }
