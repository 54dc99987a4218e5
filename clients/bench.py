"""`volition bench`: what a tick costs, ours and torch_brain's eager POYO, on the same windows.

Both get the same spikes of the same random model, one thread each, interleaved in one run, so
that a noisy machine is noisy for both. A tick of ours is what the daemon does: embed the spikes
that came since the last tick, then decode. torch_brain's is `POYO.forward` on the tokenized
window; its tokenizer is not counted.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

N_UNITS = 96
TICK_S = 0.01
SPIKE_COUNTS = (500, 2_000, 10_000)


def bench(console: Console, *, presets: list[str], runs: int) -> list[dict[str, Any]]:
    """Time every preset at every number of spikes in the window; one dictionary a case."""
    import torch

    torch.set_num_threads(1)
    cases = []
    for name in presets:
        with (
            console.status(f"{name}: exporting a random model…"),
            tempfile.TemporaryDirectory() as f,
        ):
            runner = _Runner(name, Path(f))
            for n_spikes in SPIKE_COUNTS:
                console.print(f"{name}, {n_spikes:,} spikes in the window")
                cases.append(runner.time(n_spikes, runs))
    return cases


class _Runner:
    """One preset with random weights, as a runtime and as torch_brain's module."""

    def __init__(self, preset: str, folder: Path) -> None:
        from decoder.runtime import PoyoRuntime
        from training.reference import random_bundle

        self.preset = preset
        self.model, self.config, bundle = random_bundle(preset, N_UNITS, folder, seed=0)
        self.runtime = PoyoRuntime(bundle, epoch=0.0)
        self.runtime.warm_up()

    def time(self, n_spikes: int, runs: int) -> dict[str, Any]:
        """Costs of `runs` consecutive ticks at a steady rate of `n_spikes` a window."""
        from training.reference import reference_inputs, reference_output

        rng = np.random.default_rng(n_spikes)
        window_s = self.config.sequence_length
        n_ticks = runs + 10
        seconds = window_s + n_ticks * TICK_S
        times = np.sort(rng.uniform(0.0, seconds, round(n_spikes / window_s * seconds)))
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
            inputs = reference_inputs(
                self.model, self.config, times[inside], units[inside], end, N_UNITS
            )
            began = time.perf_counter()
            expected = reference_output(self.model, inputs)
            theirs.append(time.perf_counter() - began)
            worst = max(worst, float(np.abs(velocity - expected).max()))
        return {
            "preset": self.preset,
            "spikes": n_spikes,
            "runs": runs,
            "provider": self.runtime.provider,
            "runtime_ms": _quantiles(ours[-runs:]),
            "torch_brain_ms": _quantiles(theirs[-runs:]),
            "largest_difference": worst,
        }


def _quantiles(seconds: list[float]) -> dict[str, float]:
    p50, p95, p99, p999 = np.percentile(np.array(seconds) * 1e3, (50, 95, 99, 99.9))
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "p99.9": float(p999)}
