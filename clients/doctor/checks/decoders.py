"""Decoders: the provider that really runs them, and a bundle's decode time next to the tick."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

import numpy as np

from clients.doctor.finding import Asked, Finding, failure, ok, warning
from clients.doctor.settings import usable_settings
from clients.harness.daemon import BUNDLES
from decoder.arrays import Floats
from decoder.bundles.bundle import Bundle, open_bundle
from decoder.errors import BundleError, SettingsError
from decoder.runtimes.base import Runtime
from decoder.runtimes.onnx import CUDA, RuntimeSettings
from decoder.runtimes.opening import open_runtime
from decoder.runtimes.proof import prove
from streaming.priority import real_time

DEMO = BUNDLES / "possm.bundle"
N_DECODES, TIMED_S = 500, 10.0  # the first of the two limits ends the timing
RATE_HZ = 20.0  # spikes per second and unit
DRIVER = "install the NVIDIA driver (in a container: docker run --gpus all)"


def provider(asked: Asked) -> list[Finding]:
    """What ONNX Runtime offers, and what a session of the bundle really runs on."""
    import onnxruntime as ort

    name = "provider"
    wanted = usable_settings(asked).daemon.provider
    offered = ort.get_available_providers()
    opened, which = _any_bundle(asked)
    runs_on = open_runtime(opened, epoch=0.0, settings=RuntimeSettings(provider=wanted)).provider
    found = (
        f"{which} runs on {_short(runs_on)} ({wanted} was asked for; this build of ONNX Runtime "
        f"offers {', '.join(map(_short, offered))})"
    )
    problem = cuda_problem()
    if wanted == "cpu" or runs_on == CUDA or (wanted == "auto" and problem):
        return [ok(name, found)]
    if problem:
        do = f"{DRIVER}, or ask for --provider cpu"
        return [failure(name, f"CUDA was asked for, but {problem}; {found}", do)]
    bad = failure if wanted == "cuda" else warning
    if CUDA not in offered:
        do = "pip uninstall -y onnxruntime, then pip install 'volition[cuda]'"
        return [bad(name, f"there is a GPU, but this build has no CUDA; {found}", do)]
    do = "pip install 'volition[cuda]', whose CUDA and cuDNN fit ONNX Runtime; update the driver"
    return [bad(name, f"there is a GPU, but CUDA doesn't start; {found}", do)]


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


def _any_bundle(asked: Asked) -> tuple[Bundle, str]:
    """The bundle that was asked for if it opens, else the demo's, and its name."""
    if asked.bundle is not None:
        try:
            return open_bundle(Path(asked.bundle)), Path(asked.bundle).name
        except BundleError:  # named by the check of the bundle
            pass
    return open_bundle(DEMO), "the demo's decoder"


def cuda_problem() -> str | None:
    """Why CUDA can't be used, asked of the NVIDIA driver itself; None if there is a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "the NVIDIA driver is missing (libcuda.so.1 doesn't load)"
    if code := driver.cuInit(0):
        return f"the NVIDIA driver doesn't start (cuInit: error {code}): it finds no GPU"
    count = ctypes.c_int(0)
    if (code := driver.cuDeviceGetCount(ctypes.byref(count))) or not count.value:
        return f"the NVIDIA driver finds no GPU (cuDeviceGetCount: error {code})"
    return None


def bundle(asked: Asked) -> list[Finding]:
    """A bundle's files and checksums, a decode, and its time next to the tick."""
    if asked.bundle is None:
        raise SettingsError("no bundle was given")
    daemon = usable_settings(asked).daemon
    settings = RuntimeSettings(provider=daemon.provider, threads=daemon.threads)
    try:
        opened = open_bundle(Path(asked.bundle))
        runtime = open_runtime(opened, epoch=0.0, settings=settings)
        prove(runtime, epoch=0.0)
    except BundleError as error:
        return [failure("bundle", str(error), "export it again, or give another")]
    with real_time(daemon.realtime):
        took_ms = decode_times(runtime, daemon.tick_ms / 1e3) * 1e3
    manifest = opened.manifest
    n_units = len(manifest.unit_ids)
    whole = f"{manifest.decoder_id} ({manifest.family}, {n_units} units): checksums fit, it decodes"
    return [ok("bundle", whole), _timing(took_ms, daemon.tick_ms, n_units)]


def _timing(took_ms: Floats, tick_ms: float, n_units: int) -> Finding:
    name = "decode time"
    p50, p99 = np.percentile(took_ms, (50, 99))
    found = (
        f"p50 {p50:.2f}, p99 {p99:.2f} ms of a tick of {tick_ms:g} ms, "
        f"at {RATE_HZ * n_units:,.0f} spikes/s"
    )
    do = "choose a longer --tick-ms, or a smaller preset"
    if p50 > tick_ms:
        return failure(name, f"{found}: every tick would be skipped", do)
    if p99 > tick_ms:
        return warning(name, f"{found}: some ticks would be skipped", do)
    return ok(name, found)


def decode_times(runtime: Runtime, tick_s: float) -> Floats:
    """Durations of consecutive ticks, (n_ticks,) s: the spikes since the last tick, and a decode.

    Spikes are random, `RATE_HZ` per unit.
    """
    n_units, window_s = len(runtime.bundle.manifest.unit_ids), runtime.window_s
    rng = np.random.default_rng(0)
    took: list[float] = []
    runtime.reset()
    end, left_s = 0.0, TIMED_S
    spikes_s = window_s  # the first tick fills the window, and isn't timed
    while len(took) <= N_DECODES and left_s > 0:
        count = rng.poisson(RATE_HZ * n_units * spikes_s)
        times = np.sort(rng.uniform(end, end + spikes_s, count))
        units = rng.integers(0, n_units, count)
        end, spikes_s = end + spikes_s, tick_s
        began = time.perf_counter()
        runtime.append(times, units)
        runtime.decode(end)
        took.append(time.perf_counter() - began)
        left_s -= took[-1]
    return np.array(took[1:] or took)
