"""Accuracy on unseen subjects by the number of pretraining sessions.

    python -m training.studies.transfer CORPUS UNSEEN --counts 1 4 12 --steps 6000 -o docs/transfer

For each count, a model is pretrained on that number of sessions from CORPUS, always for the same
number of steps. Then the units of each session in UNSEEN are identified on its first 40 s, and its
test domain is decoded causally. Ridge regression is fitted to the same 40 s. Writes the data
(.json) and a plot (.svg). Finished runs in the run folder are reused.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from decoder.errors import TrainingError
from decoder.files import write_text
from streaming.sessions import format as sessions
from streaming.sessions.session import Session
from training.evaluation.plots import finish
from training.pretraining import runs
from training.pretraining.pretrain import pretrain
from training.pretraining.settings import PretrainSettings
from training.studies.fewshot import identified, ridge_on

SECONDS = 40.0


def transfer(
    corpus: Sequence[Session],
    unseen: Sequence[Session],
    counts: Sequence[int],
    *,
    run: Path,
    settings: PretrainSettings,
    console: Console,
) -> dict[str, Any]:
    """Pretrain on the first `count` sessions for each count; returns R² by count."""
    if max(counts) > len(corpus):
        raise TrainingError(
            f"--counts up to {max(counts)}, but the corpus has {len(corpus)} sessions"
        )
    points = []
    for count in counts:
        folder = run / f"{count:03d}"
        _pretrained(corpus[:count], folder, settings)
        model, record = runs.load_model(folder)
        scores = [identified(model, record, session, SECONDS).r2 for session in unseen]
        points.append({"sessions": count, "r2": scores, "pretraining_r2": record.best_r2})
        console.print(f"{count} sessions: {np.mean(scores):.3f}  {np.round(scores, 3)}")
    ridge = [ridge_on(session, SECONDS) for session in unseen]
    console.print(f"ridge on the same {SECONDS:g} s: {np.mean(ridge):.3f}  {np.round(ridge, 3)}")
    return {
        "seconds": SECONDS,
        "unseen": [session.session_id for session in unseen],
        "steps": settings.steps,
        "preset": settings.preset,
        "points": points,
        "ridge_r2": ridge,
    }


def _pretrained(corpus: Sequence[Session], folder: Path, settings: PretrainSettings) -> None:
    """Pretrain into `folder`, unless it has a finished run; resume an unfinished one.

    Raises TrainingError if the folder has a run of another preset, corpus or number of steps.
    """
    if not (folder / "run.json").exists():
        pretrain(corpus, folder, settings)
        return
    record = runs.load_record(folder)
    known = sorted(session.session_id for session in corpus)
    if record.preset != settings.preset or sorted(record.sessions) != known:
        raise TrainingError(f"{folder} has a run of another preset or corpus; choose another --run")
    if record.settings["steps"] != settings.steps:
        raise TrainingError(
            f"{folder} has a run of {record.settings['steps']} steps; expected {settings.steps}. "
            "Choose another --run"
        )
    if record.step < (settings.steps or 0):
        pretrain(corpus, folder, settings, resume=True)


def plot(result: dict[str, Any], path: Path) -> None:
    """Plot R² over the number of pretraining sessions, with a thin line per unseen session."""
    from matplotlib.figure import Figure

    counts = [point["sessions"] for point in result["points"]]
    scores = np.array([point["r2"] for point in result["points"]])
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    axes.plot(counts, scores, color="#1b7f5c", lw=0.7, alpha=0.5)
    axes.plot(
        counts,
        scores.mean(axis=1),
        color="#1b7f5c",
        lw=2,
        marker="o",
        label=f"{result['preset']}, units identified",
    )
    axes.axhline(np.mean(result["ridge_r2"]), color="#c2702c", ls="--", label="ridge, same 40 s")
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    finish(
        figure,
        axes,
        path,
        x="sessions in pretraining",
        y="causal R² on unseen subjects, 40 s of data",
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("corpus", type=Path)
    parser.add_argument("unseen", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 4, 12, 24])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--preset", default="rt")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--run", type=Path, default=Path("runs/transfer"))
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/transfer"))
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    result = transfer(
        _shuffled(sessions.open_all(given.corpus)),
        sessions.open_all(given.unseen),
        given.counts,
        run=given.run,
        settings=PretrainSettings(
            preset=given.preset, minutes=None, steps=given.steps, threads=given.threads
        ),
        console=Console(markup=False),
    )
    write_text(given.output.with_suffix(".json"), json.dumps(result, indent=2) + "\n")
    plot(result, given.output.with_suffix(".svg"))


def _shuffled(corpus: list[Session]) -> list[Session]:
    """The sessions in a fixed random order, which mixes subjects."""
    order = np.random.default_rng(0).permutation(len(corpus))
    return [corpus[index] for index in order]


if __name__ == "__main__":
    main()
