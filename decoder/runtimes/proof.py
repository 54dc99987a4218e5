"""Proves a decoder before it is used: made-up and real spikes must give a velocity.

    python -m decoder.runtimes.proof BUNDLE      # in a separate process, as `prove_apart` does

A graph is a program. One that never ends, or that crashes ONNX Runtime, would take the daemon down.
So a new graph is first tried in a separate process with limited time.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from decoder.arrays import Floats, Ints
from decoder.bundles.bundle import Bundle, open_bundle
from decoder.bundles.manifest import MAX_SPEED
from decoder.errors import BundleError, VolitionError, brief
from decoder.runtimes.base import Runtime
from decoder.runtimes.onnx import RuntimeSettings
from decoder.runtimes.opening import open_runtime

ALLOWED_S = 60.0  # of CPU time; a good decoder needs about 1 s
WAIT = 10.0  # wall-clock limit as a multiple of the CPU time, for a busy machine
NICE = 5  # between daemon and training: someone is waiting for it
TOO_LONG = 24  # SIGXCPU, the signal at the limit of CPU time
N_TICKS = 5
TICK_S = 0.01
MADE_UP_HZ = 20.0  # per unit
AT_MOST = 20_000  # made-up spikes


@dataclass(frozen=True, kw_only=True)
class Spikes:
    """times: (n_spikes,) s on the clock, ascending. unit_index: (n_spikes,) into `unit_ids`."""

    times: Floats
    unit_index: Ints


def prove(runtime: Runtime, *, epoch: float, recent: Spikes | None = None) -> float:
    """Warm up a decoder and try it on spikes; returns the duration of the last warm run, s.

    epoch: the runtime's epoch. recent: the last spikes of the stream.
    Raises BundleError unless every decode gives two finite numbers, and with real spikes a speed of
    at most `MAX_SPEED` per axis.
    """
    try:
        took_s = runtime.warm_up()
        _decode(runtime, _none(), epoch, "no spikes")
        _decode(runtime, _made_up(runtime, epoch), epoch, "made-up spikes")
        if recent is not None and len(recent.times):
            _decode(runtime, recent, float(recent.times[-1]), "the last spikes", MAX_SPEED)
    except VolitionError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise BundleError(
            f"{runtime.bundle.path}: the graph can't be run ({brief(error)}); export the run again"
        ) from error
    runtime.reset()
    return took_s


def prove_apart(
    bundle: Bundle,
    settings: RuntimeSettings,
    recent: Spikes | None = None,
    *,
    allowed_s: float = ALLOWED_S,
) -> None:
    """`prove` in a separate process, with `allowed_s` of CPU time.

    Raises BundleError, also if that process crashes or hangs.
    """
    given = b"" if recent is None else recent.times.tobytes() + recent.unit_index.tobytes()
    options = ["--provider", settings.provider, "--threads", str(settings.threads)]
    options += ["--parent", str(os.getpid()), "--allowed-s", str(allowed_s)]
    if settings.require_provider:
        options.append("--require-provider")
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "decoder.runtimes.proof", str(bundle.path), *options],
            input=given, capture_output=True, timeout=WAIT * allowed_s, check=False,
        )  # fmt: skip
        took_too_long = ended.returncode == -TOO_LONG
    except subprocess.TimeoutExpired:
        took_too_long = True
    if took_too_long:
        raise BundleError(
            f"{bundle.path}: it gave no velocity within {allowed_s:g} s; it hangs or is too large "
            "for this machine"
        )
    if ended.returncode == 0:
        return
    said = ended.stderr.decode(errors="replace").strip()
    if ended.returncode == 1 and said:
        raise BundleError(brief(said.splitlines()[-1], 1000))
    raise BundleError(
        f"{bundle.path}: it crashed ONNX Runtime (exit code {ended.returncode}); export the run "
        "again"
    )


def _decode(
    runtime: Runtime, spikes: Spikes, end: float, what: str, at_most: float = np.inf
) -> None:
    runtime.reset()
    runtime.append(spikes.times, spikes.unit_index)
    for tick in range(N_TICKS):
        velocity = runtime.decode(end + tick * TICK_S)
        if velocity.shape != (2,) or not np.isfinite(velocity).all():
            raise BundleError(
                f"{runtime.bundle.path}: from {what} it decodes {brief(str(velocity), 60)}, "
                "expected two finite numbers; export the run again"
            )
        if np.abs(velocity).max() > at_most:
            raise BundleError(
                f"{runtime.bundle.path}: from {what} it decodes {np.abs(velocity).max():.3g} m/s, "
                f"expected at most {at_most:g} m/s; export the run again"
            )


def _none() -> Spikes:
    return Spikes(times=np.empty(0), unit_index=np.empty(0, dtype=np.int64))


def _made_up(runtime: Runtime, epoch: float) -> Spikes:
    """Random spikes of all units, equally often, in the window before `epoch`."""
    n_units, window_s = len(runtime.bundle.manifest.unit_ids), runtime.window_s
    count = int(min(max(MADE_UP_HZ * window_s * n_units, 1), AT_MOST))
    rng = np.random.default_rng(0)
    return Spikes(
        times=np.sort(rng.uniform(epoch - window_s, epoch, count)),
        unit_index=rng.integers(0, n_units, count),
    )


def _step_back(allowed_s: float) -> None:
    """Give priority to the daemon in CPU and memory, and limit the CPU time of the graph."""
    import resource  # not available on Windows

    limit_s = math.ceil(allowed_s)
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s + 1))
    os.nice(NICE)
    Path("/proc/self/oom_score_adj").write_text("1000")


def _end_with(parent: int) -> None:
    """End this process with its parent, which would otherwise have killed a graph that hangs."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prove one bundle with spikes from standard input; the last line of stderr is the error."""
    parser = argparse.ArgumentParser(prog="python -m decoder.runtimes.proof")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--provider", default="auto")
    parser.add_argument("--require-provider", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--allowed-s", type=float, default=ALLOWED_S, help="CPU time, s")
    parser.add_argument("--parent", type=int, help="process id; exit when that process ends")
    given = parser.parse_args(arguments)
    with contextlib.suppress(OSError, ImportError):
        _step_back(given.allowed_s)
    if given.parent is not None:
        threading.Thread(target=_end_with, args=(given.parent,), daemon=True).start()
    content = sys.stdin.buffer.read()
    half = len(content) // 2
    recent = Spikes(
        times=np.frombuffer(content[:half], dtype=np.float64),
        unit_index=np.frombuffer(content[half:], dtype=np.int64),
    )
    settings = RuntimeSettings(
        provider=given.provider, require_provider=given.require_provider, threads=given.threads
    )
    epoch = float(recent.times[-1]) if len(recent.times) else 0.0
    try:
        prove(
            open_runtime(open_bundle(given.bundle), epoch=epoch, settings=settings),
            epoch=epoch,
            recent=recent,
        )
    except VolitionError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
