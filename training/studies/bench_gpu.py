"""`make test-gpu`: checks and times decoders on a GPU.

    python -m training.studies.bench_gpu --json gpu.json

For every preset, with random weights, the outputs of the graph that embeds spikes itself
(`training.exports.device`) and of the streaming graph are compared with the CPU's output. Then both
are timed, with and without CUDA graphs, next to the CPU with one thread. Each run decodes the
spikes of one model window (for a streaming model, of the open chunk) at each rate, all of them new:
graphs that take token rows embed the whole window, while the daemon embeds each spike once. Finally
training windows per second in bf16 are measured, ours and torch_brain's
(`training.studies.bench_train`). The exit code is 1 if an output differs from the CPU's by more
than `TOLERANCE` of the output scale.

`--device cpu` runs the same on the CPU provider, with the same buckets.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decoder.arrays import Floats, Ints
from decoder.memory.tokens import embed
from decoder.runtimes.device import BucketedGraph
from decoder.runtimes.onnx import RuntimeSettings
from decoder.runtimes.opening import open_runtime

PRESETS = ("rt", "poyo-1.3m", "poyo-11.8m", "stream", "stream-8m")
RATES_HZ = (2_000, 20_000)
N_UNITS = 96
TOLERANCE = 1e-3  # of the output scale, which is 1 for random models
N_PARITY = (0, 1, 777, 4_096, 20_000)  # spikes
GRAPH = "device.onnx"

Decode = Callable[[Ints, Floats], NDArray[Any]]


def prepare(preset: str, folder: Path) -> None:
    """Export a preset with random weights, as a bundle and as a device graph."""
    import torch

    from training.evaluation.reference import random_bundle
    from training.exports.device import export_device_graph

    torch.set_num_threads(2)
    model, config, bundle = random_bundle(preset, N_UNITS, folder, seed=0)
    export_device_graph(model, config, bundle.path / GRAPH)


class Candidates:
    """The ways to decode a preset: functions of (unit_index, seconds since start), by name."""

    def __init__(self, folder: Path, preset: str, device: str) -> None:
        from decoder.bundles.bundle import open_bundle

        self.bundle = open_bundle(folder / f"{preset}.bundle")
        sizes = self.bundle.manifest.sizes
        self.reads_s = float(getattr(sizes, "chunk_s", sizes.window_s))
        self.small = {}
        if self.bundle.manifest.family == "possm":
            hidden = int(sizes.hidden)  # type: ignore[union-attr]
            self.small = {
                "state": np.zeros(hidden, np.float32),
                "share": np.ones((), np.float32),
            }
        self.ways: dict[str, Decode] = {"cpu": self._streaming("cpu")}
        if device == "cuda":
            self.ways["cuda, rows from the host"] = self._streaming("cuda")
        self.ways[f"{device}, spikes embedded there"] = self._device(device, graphs=False)
        if device == "cuda":
            self.ways["cuda, CUDA graphs"] = self._device(device, graphs=True)

    def _streaming(self, provider: str) -> Decode:
        settings = RuntimeSettings(provider=provider, require_provider=True)
        runtime: Any = open_runtime(self.bundle, epoch=0.0, settings=settings)
        runtime.warm_up()

        def decode(unit_index: Ints, since: Floats) -> NDArray[Any]:
            tables = self.bundle.tables
            rows = embed(tables.tokens, unit_index, since, tables.omega)  # type: ignore[attr-defined]
            output: NDArray[Any] = runtime._run(rows, 0.0, **self.small)[0]
            return output

        return decode

    def _device(self, device: str, *, graphs: bool) -> Decode:
        from training.exports.device import device_tables

        graph = BucketedGraph(
            self.bundle.path / GRAPH,
            tables=device_tables(self.bundle.tables),  # type: ignore[arg-type]
            small=self.small,
            device=device,
            cuda_graphs=graphs,
        )
        graph.warm_up()
        return lambda unit_index, since: graph.run(unit_index, since, self.small)[0]


def made_up(n_spikes: int, reads_s: float, rng: np.random.Generator) -> tuple[Ints, Floats]:
    """Random units and ascending times of spikes in one window."""
    return rng.integers(0, N_UNITS, n_spikes), np.sort(rng.uniform(0.0, reads_s, n_spikes))


def parity(candidates: Candidates) -> dict[str, float]:
    """The largest difference from the CPU's output, by way, over several spike counts."""
    rng = np.random.default_rng(0)
    worst = dict.fromkeys(candidates.ways, 0.0)
    for n_spikes in N_PARITY:
        spikes = made_up(n_spikes, candidates.reads_s, rng)
        expected = candidates.ways["cpu"](*spikes)
        for name, decode in candidates.ways.items():
            difference = float(np.abs(decode(*spikes) - expected).max())
            worst[name] = max(worst[name], difference if np.isfinite(difference) else np.inf)
    return worst


def latency(candidates: Candidates, rate_hz: int, runs: int) -> dict[str, dict[str, float]]:
    """Milliseconds per tick, by way; the ways alternate, with new spikes for each run."""
    rng = np.random.default_rng(rate_hz)
    n_spikes = round(rate_hz * candidates.reads_s)
    took: dict[str, list[float]] = {name: [] for name in candidates.ways}
    slow = {"cpu"} if candidates.bundle.manifest.preset == "poyo-11.8m" else set()
    for run in range(runs + 20):
        spikes = made_up(n_spikes, candidates.reads_s, rng)
        for name, decode in candidates.ways.items():
            if name in slow and run % 10:
                continue
            began = time.perf_counter()
            decode(*spikes)
            took[name].append(time.perf_counter() - began)
    return {name: _quantiles(seconds[20:]) for name, seconds in took.items() if seconds[20:]}


def _quantiles(seconds: list[float]) -> dict[str, float]:
    ms = np.array(seconds) * 1e3
    p50, p99, p999 = np.percentile(ms, (50, 99, 99.9))
    return {"n": len(ms), "p50": p50, "p99": p99, "p99.9": p999, "max": float(ms.max())}


def training(device: str) -> list[dict[str, Any]] | str:
    """Training windows per second, ours and torch_brain's; or the error that prevented it."""
    from rich.console import Console

    from training.studies.bench_train import bench_train

    try:
        return bench_train(
            Console(quiet=True), presets=["rt", "poyo-1.3m"],
            batch_size=64 if device == "cuda" else 4, spikes=2_000,
            steps=20 if device == "cuda" else 2,
        )  # fmt: skip
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"


def machine(device: str) -> dict[str, str]:
    """The device and the software versions."""
    import onnxruntime
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor()
    return {
        "device": name,
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def measure(folder: Path, preset: str, device: str, runs: int) -> dict[str, Any]:
    """Measure parity and latency of one preset."""
    candidates = Candidates(folder, preset, device)
    case: dict[str, Any] = {"preset": preset, "parity": parity(candidates), "tick_ms": {}}
    for name, worst in case["parity"].items():
        print(f"{preset:11} {name:30} differs from the CPU by {worst:.1e}", flush=True)
    for rate_hz in RATES_HZ:
        case["tick_ms"][str(rate_hz)] = latency(candidates, rate_hz, runs)
        for name, q in case["tick_ms"][str(rate_hz)].items():
            print(
                f"{preset:11} {name:30} {rate_hz:6,}/s  p50 {q['p50']:7.3f}  p99 {q['p99']:7.3f}  "
                f"p99.9 {q['p99.9']:7.3f} ms",
                flush=True,
            )
    return case


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--preset", action="append", choices=PRESETS, help="default: all")
    parser.add_argument("--runs", type=int, default=1000, help="ticks per case")
    arguments = parser.parse_args()
    presets = arguments.preset or PRESETS
    cases: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with ProcessPoolExecutor(len(presets), mp_context=get_context("spawn")) as pool:
            list(pool.map(prepare, presets, [folder] * len(presets)))
        result: dict[str, Any] = {"machine": machine(arguments.device), "cases": cases}
        for preset in presets:
            cases.append(measure(folder, preset, arguments.device, arguments.runs))
            _write(arguments.json, result)
    result["training"] = training(arguments.device)
    print(json.dumps(result["training"], indent=1))
    _write(arguments.json, result)
    worst = max(value for case in cases for value in case["parity"].values())
    print(f"largest difference {worst:.1e}; allowed {TOLERANCE:.0e}")
    return int(worst > TOLERANCE)


def _write(path: Path | None, result: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    raise SystemExit(main())
