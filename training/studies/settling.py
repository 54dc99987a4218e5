"""Accuracy of a streaming model by the age of its state.

    python -m training.studies.settling RUN SESSION -o docs/settling

Windows of the test domain start with a fresh state, and outputs are scored by its age.
`PossmConfig.warm_up_s` was chosen from the result (docs/ACCURACY.md). Writes the data (.json) and a
plot (.svg).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from decoder.arrays import Floats
from decoder.errors import TrainingError
from decoder.files import write_text
from streaming.sessions import format as sessions
from streaming.sessions.session import Session
from training.baselines.ridge import r2
from training.data.windows import WindowPlan
from training.evaluation.plots import finish
from training.models import families
from training.models.config import PossmConfig
from training.pretraining import runs
from training.pretraining.scoring import window_source

STEP_S = 0.05  # between ages
START_EVERY_S = 0.1  # between fresh states
BATCH = 64


@torch.no_grad()
def settling(run: Path, session: Session, longest_s: float = 2.0) -> tuple[Floats, Floats]:
    """Ages (n,) in seconds, and causal R² at each age, over fresh states in the test domain."""
    model, record = runs.load_model(run)
    config = record.config()
    if not isinstance(config, PossmConfig):
        raise TrainingError(f"{run} is a {record.family} run; expected a streaming model")
    ages: Floats = STEP_S * np.arange(1.0, round(longest_s / STEP_S) + 1)
    config = replace(config, train_s=longest_s)
    if session.session_id not in record.session_words:
        raise TrainingError(f"{run} was not trained on {session.session_id}")
    source = window_source([session], model, config, record)
    ends = np.concatenate(
        [np.arange(a + longest_s, b, START_EVERY_S) for a, b in session.intervals("test")]
    )
    if len(ends) < 2:
        raise TrainingError(
            f"{session.session_id}: the test domain is too short for windows of {longest_s:g} s"
        )
    units = np.arange(session.n_units)
    true, decoded = [], []
    for chunk in np.array_split(ends, -(-len(ends) // BATCH)):
        batch = source.build([WindowPlan(0, float(end), units, ages, longest_s) for end in chunk])
        decoded.append(families.forward(model, config, **batch.inputs()))
        true.append(batch.target)
    truth, output = torch.cat(true).double().numpy(), torch.cat(decoded).double().numpy()
    scores = [r2(truth[:, i], output[:, i]).r2_mean for i in range(len(ages))]
    return ages, np.asarray(scores, dtype=np.float64)


def plot(ages: Floats, scores: Floats, warm_up_s: float, path: Path) -> None:
    """Plot R² over the age of the state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6))
    axes = figure.subplots()
    axes.plot(ages, scores, color="#1b7f5c", lw=2)
    axes.axvline(warm_up_s, color="#c2702c", ls="--", label=f"trusted from {warm_up_s:g} s on")
    axes.grid(alpha=0.2)
    finish(figure, axes, path, x="seconds since the state began", y="causal R²")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("run", type=Path)
    parser.add_argument("session", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/settling"))
    given = parser.parse_args()
    ages, scores = settling(given.run, sessions.load(given.session))
    config = runs.load_record(given.run).config()
    assert isinstance(config, PossmConfig)
    figures = {"ages_s": ages.round(3).tolist(), "r2": scores.round(4).tolist()}
    write_text(given.output.with_suffix(".json"), json.dumps(figures, indent=1) + "\n")
    plot(ages, scores, config.warm_up_s, given.output.with_suffix(".svg"))


if __name__ == "__main__":
    main()
