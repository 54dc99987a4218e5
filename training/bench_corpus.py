"""`volition bench corpus`: opening and training on a whole corpus, beside one of its sessions.

Says how long the corpus takes to open, how much memory that takes, how much it grows while
training draws from all of it, and the windows/s of both, step by step in turn.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from streaming import sessions
from streaming.sessions import Session
from training.families import PRESETS, build, forward
from training.windows import OutputScale, WindowSource, unit_words


def bench_corpus(
    console: Console, folder: Path, *, preset: str, batch_size: int, steps: int
) -> dict[str, Any]:
    """Measure; one dictionary."""
    torch.manual_seed(0)
    before = anonymous_mb()
    with console.status("opening the corpus…"):
        began = time.perf_counter()
        corpus = [sessions.load(path, lazy=True) for path in sessions.find(folder)]
        opened_s = time.perf_counter() - began
    opened_mb = anonymous_mb() - before
    middle = sorted(corpus, key=lambda session: len(session.spike_times))[len(corpus) // 2]
    runners = {"corpus": _Runner(corpus, preset), "one session": _Runner([middle], preset)}
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    with console.status(f"{steps} steps of {batch_size} windows…"):
        for step in range(3):
            for runner in runners.values():
                runner.step(step, batch_size)
        warm_mb = anonymous_mb()
        for step in range(steps):
            for name, runner in runners.items():
                began = time.perf_counter()
                runner.step(step, batch_size)
                seconds[name].append(time.perf_counter() - began)
    speed = {name: batch_size * steps / sum(values) for name, values in seconds.items()}
    return {
        "sessions": len(corpus),
        "units": sum(session.n_units for session in corpus),
        "hours": sum(sessions.duration_s(session.domain) for session in corpus) / 3600,
        "gigabytes": sum(path.stat().st_size for path in sessions.find(folder)) / 1e9,
        "open_s": opened_s,
        "memory_mb": {"opening": opened_mb, "training": anonymous_mb() - warm_mb},
        "windows_per_s": speed,
        "of_one_session": speed["corpus"] / speed["one session"],
    }


def anonymous_mb() -> float:
    """Memory of this process that no file backs, MB; NaN where the system doesn't say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    (line,) = [line for line in lines if line.startswith("RssAnon:")]
    return float(line.split()[1]) / 1e3


class _Runner:
    def __init__(self, corpus: list[Session], preset: str) -> None:
        self.config = PRESETS[preset]
        words = [word for session in corpus for word in unit_words(session)]
        self.model = build(self.config, words, [session.session_id for session in corpus])
        self.source = WindowSource(
            corpus, self.model.unit_emb.vocab, self.model.session_emb.vocab,
            layout=self.config,
            scales={session.session_id: OutputScale.of(session) for session in corpus},
        )  # fmt: skip
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)

    def step(self, step: int, batch_size: int) -> None:
        batch = self.source.draw(np.random.default_rng(step), batch_size)
        loss = torch.nn.functional.mse_loss(
            forward(self.model, self.config, **batch.inputs()), batch.target
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
