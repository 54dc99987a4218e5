"""`volition bench corpus`: opening and training on a corpus, compared with one of its sessions.

Measures the time and memory to open the corpus, the growth of memory during training, and windows/s
for the corpus and for the session, in alternating complete steps of `volition pretrain`.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from streaming.sessions import format as sessions
from streaming.sessions.intervals import duration_s
from training.pretraining.process import keep_freed_memory, launch
from training.pretraining.settings import PretrainSettings
from training.pretraining.trainer import Trainer

WARM_UP = 3  # untimed steps


def bench_corpus(
    console: Console, folder: Path, *, preset: str, batch_size: int, steps: int
) -> dict[str, Any]:
    """Measure, and return the results as a dictionary."""
    torch.manual_seed(0)
    keep_freed_memory()
    before = anonymous_mb()
    with console.status("opening the corpus…"):
        began = time.perf_counter()
        corpus = sessions.open_all(folder)
        opened_s = time.perf_counter() - began
    opened_mb = anonymous_mb() - before
    middle = sorted(corpus, key=lambda session: len(session.spike_times))[len(corpus) // 2]
    seconds: dict[str, list[float]] = {name: [] for name in ("corpus", "one session")}
    with tempfile.TemporaryDirectory() as scratch:
        chosen = dict(zip(seconds, (corpus, [middle]), strict=True))
        settings = PretrainSettings(preset=preset, steps=steps, batch_size=batch_size)
        trainers = [
            Trainer.start(of, Path(scratch) / name, settings, launch(Path(scratch)), {})
            for name, of in chosen.items()
        ]
        batches = [trainer.batches.since(0) for trainer in trainers]
        with console.status(f"{steps} steps of {batch_size} windows…"):
            for step in range(WARM_UP + steps):
                if step == WARM_UP:
                    warm_mb = anonymous_mb()
                for name, trainer, of in zip(seconds, trainers, batches, strict=True):
                    began = time.perf_counter()
                    trainer.step(of)
                    seconds[name].append(time.perf_counter() - began)
        grown_mb = anonymous_mb() - warm_mb
    speed = {name: batch_size * steps / sum(values[WARM_UP:]) for name, values in seconds.items()}
    return {
        "sessions": len(corpus),
        "units": sum(session.n_units for session in corpus),
        "hours": sum(duration_s(session.domain) for session in corpus) / 3600,
        "gigabytes": sum(path.stat().st_size for path in sessions.find(folder)) / 1e9,
        "open_s": opened_s,
        "memory_mb": {"opening": opened_mb, "training": grown_mb},
        "windows_per_s": speed,
        "of_one_session": speed["corpus"] / speed["one session"],
    }


def anonymous_mb() -> float:
    """Anonymous memory of this process (without mapped files) in MB; NaN if not on Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    (line,) = [line for line in lines if line.startswith("RssAnon:")]
    return float(line.split()[1]) / 1e3
