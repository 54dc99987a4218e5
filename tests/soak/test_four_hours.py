"""Four hours without a break: the state and accuracy of the streaming model stay the same.

The cost of a tick is printed for every ten minutes but not asserted, because machines are noisy.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from decoder.runtimes.possm import PossmRuntime
from training.baselines.ridge import r2
from training.data.simulate import simulate
from training.evaluation.offline import index_in_bundle
from training.exports.export import export_run
from training.pretraining.pretrain import pretrain
from training.pretraining.settings import PretrainSettings

HOURS = 4
TRAINED_S, VALIDATED_S = 500.0, 100.0
TICK_S = 0.02
BLOCK_S = 600.0


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_state_is_stable_for_four_hours(tmp_path: Path) -> None:
    whole = simulate(n_units=96, minutes=60.0 * HOURS, subject=3, seed=11)
    end = float(whole.domain[-1, 1])
    split = np.array([[0.0, TRAINED_S], [TRAINED_S, TRAINED_S + VALIDATED_S], [600.0, end]])
    session = replace(whole, train_domain=split[:1], valid_domain=split[1:2], test_domain=split[2:])
    settings = PretrainSettings(preset="stream", minutes=None, steps=1500, threads=1)
    pretrain([session], tmp_path / "run", settings)
    bundle = export_run(tmp_path / "run", None, tmp_path / "run.bundle")
    runtime = PossmRuntime(bundle, epoch=0.0)
    units = index_in_bundle(bundle, session)[session.spike_units]
    ticks = np.arange(split[2, 0], end, TICK_S)
    stops = np.searchsorted(session.spike_times, ticks)
    velocity, norm, cost = np.empty((len(ticks), 2)), np.empty(len(ticks)), np.empty(len(ticks))
    done = int(np.searchsorted(session.spike_times, ticks[0] - runtime.window_s))
    for i, (tick, stop) in enumerate(zip(ticks.tolist(), stops.tolist(), strict=True)):
        began = time.perf_counter()
        runtime.append(session.spike_times[done:stop], units[done:stop])
        velocity[i] = runtime.decode(tick)
        cost[i] = time.perf_counter() - began
        norm[i] = np.linalg.norm(runtime.state)
        done = stop
    true = session.velocity_at(ticks)
    block = ((ticks - ticks[0]) / BLOCK_S).astype(int)
    n_blocks = int(block.max())  # the last one may be short
    scores = np.array([r2(true[block == b], velocity[block == b]).r2_mean for b in range(n_blocks)])
    norms = np.array([norm[block == b].mean() for b in range(n_blocks)])
    costs = 1e3 * np.array([np.median(cost[block == b]) for b in range(n_blocks)])
    for name, values in (("R2", scores), ("norm", norms), ("tick ms p50", costs)):
        print(f"{name} by ten minutes: {np.round(values, 3).tolist()}")
    hour = round(3600 / BLOCK_S)
    assert scores.min() > 0.6
    assert abs(scores[-hour:].mean() - scores[:hour].mean()) < 0.03
    assert abs(norms[-hour:].mean() / norms[:hour].mean() - 1.0) < 0.05
