"""`volition bench`: the cost of a tick, here and in torch_brain's eager POYO, on the same windows.

Both get the same spikes of the same random model, one thread each, interleaved in one run, so
that noise of the machine affects both. Our tick does what the daemon does: embed the spikes since
the last tick, then decode. torch_brain's is `POYO.forward` on the tokenized
window; its tokenizer is not counted. torch_brain has no streaming model, so
the rows of that family have no comparison.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from decoder.arrays import Floats, Ints

N_UNITS = 96
TICK_S = 0.01
RATES_HZ = (500, 2_000, 20_000)  # spikes/s


def bench(console: Console, *, presets: list[str], runs: int) -> list[dict[str, Any]]:
    """Time every preset at every rate; one dictionary per case."""
    import torch

    torch.set_num_threads(1)
    cases = []
    for name in presets:
        with (
            console.status(f"{name}: exporting a random model…"),
            tempfile.TemporaryDirectory() as f,
        ):
            runner = _Runner(name, Path(f))
            for rate_hz in RATES_HZ:
                console.print(f"{name}, {rate_hz:,} spikes/s")
                cases.append(runner.time(rate_hz, runs))
    return cases


class _Runner:
    """A preset with random weights, as a runtime and, if it exists, as torch_brain's module."""

    def __init__(self, preset: str, folder: Path) -> None:
        from decoder.runtimes.opening import open_runtime
        from training.evaluation.reference import random_bundle

        self.preset = preset
        self.model, self.config, bundle = random_bundle(preset, N_UNITS, folder, seed=0)
        self.runtime = open_runtime(bundle, epoch=0.0)
        self.runtime.warm_up()

    def time(self, rate_hz: int, runs: int) -> dict[str, Any]:
        """Time `runs` consecutive ticks at a steady rate."""
        rng = np.random.default_rng(rate_hz)
        window_s = self.runtime.window_s
        n_ticks = runs + 10
        seconds = window_s + n_ticks * TICK_S
        times = np.sort(rng.uniform(0.0, seconds, round(rate_hz * seconds)))
        units = rng.integers(0, N_UNITS, len(times))
        self.runtime.reset()
        filled = int(np.searchsorted(times, window_s))
        self.runtime.append(times[:filled], units[:filled])
        ours, theirs, worst = [], [], 0.0
        for tick in range(n_ticks):
            end = window_s + (tick + 1) * TICK_S
            stop = int(np.searchsorted(times, end))
            began = time.perf_counter()
            self.runtime.append(times[filled:stop], units[filled:stop])
            velocity = self.runtime.decode(end)
            ours.append(time.perf_counter() - began)
            filled = stop
            inside = slice(int(np.searchsorted(times, end - window_s)), stop)
            if (reference := self._reference(times[inside], units[inside], end)) is not None:
                theirs.append(reference[1])
                worst = max(worst, float(np.abs(velocity - reference[0]).max()))
        return {
            "preset": self.preset,
            "spikes_per_s": rate_hz,
            "runs": runs,
            "provider": self.runtime.provider,
            "runtime_ms": _quantiles(ours[-runs:]),
            "torch_brain_ms": _quantiles(theirs[-runs:]) if theirs else None,
            "largest_difference": worst if theirs else None,
        }

    def _reference(self, times: Floats, units: Ints, end: float) -> tuple[Floats, float] | None:
        """torch_brain's output and its time in seconds; None if it has no such model."""
        from training.evaluation.reference import reference_inputs, reference_output
        from training.models.config import ModelConfig

        if not isinstance(self.config, ModelConfig):
            return None
        inputs = reference_inputs(self.model, self.config, times, units, end, N_UNITS)
        began = time.perf_counter()
        output = reference_output(self.model, inputs)
        return output, time.perf_counter() - began


def _quantiles(seconds: list[float]) -> dict[str, float]:
    p50, p95, p99, p999 = np.percentile(np.array(seconds) * 1e3, (50, 95, 99, 99.9))
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "p99.9": float(p999)}
