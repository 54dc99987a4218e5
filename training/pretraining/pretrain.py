"""Train a model on sessions, for causal decoding.

    volition pretrain DIR --preset rt --minutes 10 -o RUN
    torchrun --nproc-per-node 2 -m clients pretrain DIR --steps 10000 -o RUN

The learning rate is annealed to zero over the time or steps allowed. A run keeps an exponential
moving average of the weights, at its best validation score. Ctrl-C ends a run and keeps the best
so far. Each model family chooses its query times in training (docs/ACCURACY.md compares them).
The validation score is causal: no query sees its future.

The windows of a step and their dropout masks depend only on the seed, the step and the number of
the micro-batch. There is no sampler state to save, a killed run resumes exactly, and N processes
with one micro-batch each compute the same as one process that accumulates over N.
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
from streaming.sessions.session import Session
from training.pretraining import runs
from training.pretraining.process import keep_freed_memory, launch
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
    """Train on `sessions`, write the run folder and return its record.

    fabric: a launched Fabric; default: launch one here, for this process or torchrun's.
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
            raise TrainingError(
                f"{run}: there is a run already; continue it with --resume or choose another folder"
            )
        trainer = Trainer.start(sessions, run, settings, fabric, session_paths or {})
    with _stopped_by_ctrl_c(trainer):
        trainer.train(on_step)
    trainer.finish()
    return trainer.record


@contextmanager
def _stopped_by_ctrl_c(trainer: Trainer) -> Iterator[None]:
    """End training on SIGINT after the current step, so that weights and progress agree."""
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
