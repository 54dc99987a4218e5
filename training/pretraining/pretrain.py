"""Train a model on sessions, for causal decoding.

    volition pretrain DIR --preset rt --minutes 10 -o RUN
    torchrun --nproc-per-node 2 -m clients pretrain DIR --steps 10000 -o RUN

Where in its windows a model is asked is its own (docs/ACCURACY.md compares); the validation
score is causal: no query sees its future. The learning
rate is annealed to nothing over the time or the steps allowed; what is kept is a running mean
of the weights, at its best validation score. Ctrl-C keeps the best so far.

Which windows a step sees, and what dropout does to them, follows from the seed, the step and
the number of the micro-batch alone. So nothing of a sampler has to be saved, a run that was
killed goes on exactly, and N processes with one micro-batch each do what one process does
that accumulates over N.

It does not know windows (`training.data.windows`) or files (`training.pretraining.runs`).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from decoder.errors import TrainingError
from streaming.sessions.format import Session
from training.pretraining import runs
from training.pretraining.fabric import launch
from training.pretraining.memory import keep_freed_memory
from training.pretraining.settings import PretrainSettings, TrainingProgress
from training.pretraining.trainer import Trainer

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def pretrain(
    sessions: Sequence[Session],
    run: Path | str,
    settings: PretrainSettings,
    *,
    session_paths: dict[str, str] | None = None,
    on_step: Callable[[TrainingProgress], None] = lambda progress: None,
    resume: bool = False,
    fabric: Fabric | None = None,
) -> runs.RunRecord:
    """Train on `sessions` and write the run folder; returns its record.

    fabric: a launched one; made here (this process, or torchrun's) where left out.
    """
    run = Path(run)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    keep_freed_memory()
    fabric = fabric or launch(run, settings.precision)
    torch.manual_seed(settings.seed)
    if resume:
        trainer = Trainer.resume(sessions, run, settings, fabric)
    else:
        exists = fabric.broadcast((run / "run.json").exists())
        if exists:
            raise TrainingError(f"{run}: there is a run already; --resume goes on with it")
        trainer = Trainer.start(sessions, run, settings, fabric, session_paths or {})
    with _stopped_by_ctrl_c(trainer):
        trainer.train(on_step)
    trainer.finish()
    return trainer.record


@contextmanager
def _stopped_by_ctrl_c(trainer: Trainer) -> Iterator[None]:
    """SIGINT ends training after the step that runs, so that weights and progress agree."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        trainer.interrupted = True

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
