"""The runtime equals torch_brain's POYO for any clock time and number of spikes and units."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from decoder.errors import BundleError, ProviderError
from decoder.runtimes.onnx import CPU, RuntimeSettings
from decoder.runtimes.opening import open_runtime
from training.evaluation.reference import random_bundle, reference_inputs, reference_output

OUTPUT_SCALE = 1.0  # of random_bundle
TOLERANCE = 1e-5 * OUTPUT_SCALE
SLOW = (("rt", 1), ("rt", 300), ("poyo-1.3m", 96), ("poyo-11.8m", 300))
CLOCKS_S = {"poyo-11.8m": (1e6,)}  # the largest model takes minutes
CASES = [
    ("rt", 96),
    *(pytest.param(preset, n_units, marks=pytest.mark.slow) for preset, n_units in SLOW),
]


@pytest.mark.parametrize(("preset", "n_units"), CASES)
def test_the_runtime_equals_torch_brain(preset: str, n_units: int, tmp_path: Path) -> None:
    model, config, bundle = random_bundle(preset, n_units, tmp_path, seed=n_units)
    rng = np.random.default_rng(n_units)
    for clock_s in CLOCKS_S.get(preset, (0.0, 3.6e3, 1e6)):
        runtime = open_runtime(bundle, epoch=clock_s + 0.3)
        for n_spikes in (0, 1, 777, 10_000):
            end = clock_s + config.sequence_length
            times = rng.uniform(clock_s, end, n_spikes)
            units = rng.integers(0, n_units, n_spikes)
            inputs = reference_inputs(model, config, times, units, end, n_units)
            runtime.reset()
            runtime.append(times, units)
            difference = np.abs(runtime.decode(end) - reference_output(model, inputs))
            assert difference.max() <= TOLERANCE, (clock_s, n_spikes)
            assert runtime.n_spikes == n_spikes


def test_a_sliding_window_equals_a_fresh_one(tiny) -> None:
    """Spikes embedded on arrival decode like spikes embedded now."""
    if tiny.bundle.manifest.family != "poyo":
        pytest.skip("for the window model; the streaming model is in tests/training/test_possm.py")
    sliding = open_runtime(tiny.bundle, epoch=0.0)
    session = tiny.session
    last = 0.0
    for end in np.arange(1.0, 3.0, 0.037):
        part = session.spikes_between(last, end)
        sliding.append(session.spike_times[part], session.spike_units[part])
        last = float(end)
        fresh = open_runtime(tiny.bundle, epoch=float(end))
        part = session.spikes_between(end - 1.0, end)
        fresh.append(session.spike_times[part], session.spike_units[part])
        np.testing.assert_allclose(sliding.decode(end), fresh.decode(end), atol=1e-6)


def test_the_order_of_arrival_does_not_matter(tiny) -> None:
    part = tiny.session.spikes_between(0.0, 1.0)
    times, units = tiny.session.spike_times[part], tiny.session.spike_units[part]
    order = np.random.default_rng(0).permutation(len(times))
    straight, shuffled = (open_runtime(tiny.bundle, epoch=0.0) for _ in range(2))
    straight.append(times, units)
    for chunk in np.array_split(order, 7):
        shuffled.append(times[chunk], units[chunk])
    np.testing.assert_allclose(straight.decode(1.0), shuffled.decode(1.0), atol=1e-6)


def test_reset_forgets_every_spike(tiny) -> None:
    runtime = open_runtime(tiny.bundle, epoch=0.0)
    silent = runtime.decode(1.0)
    runtime.append(np.array([0.5, 0.7]), np.array([0, 1]))
    assert not np.allclose(runtime.decode(1.0), silent)
    runtime.reset()
    np.testing.assert_array_equal(runtime.decode(1.0), silent)


@pytest.mark.parametrize("wanted", ["auto", "cpu", "cuda"])
def test_the_reported_provider_is_the_one_that_runs(
    tiny, wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For any setting and installation, according to ONNX Runtime's own profile."""
    options = ort.SessionOptions

    def profiled() -> ort.SessionOptions:
        made = options()
        made.enable_profiling = True
        made.profile_file_prefix = str(tmp_path / "profile")
        return made

    monkeypatch.setattr(ort, "SessionOptions", profiled)
    runtime = open_runtime(tiny.bundle, epoch=0.0, settings=RuntimeSettings(provider=wanted))
    runtime.warm_up()
    events = json.loads(Path(runtime._session.end_profiling()).read_text())
    ran_on = Counter(e["args"]["provider"] for e in events if "provider" in e.get("args", {}))
    assert ran_on.total() > 20
    assert ran_on.most_common(1)[0][0] == runtime.provider
    if wanted == "cpu":
        assert runtime.provider == CPU


def test_a_missing_required_provider_is_refused(tiny) -> None:
    runs_on = open_runtime(tiny.bundle, epoch=0.0).provider
    if runs_on != CPU:
        pytest.skip("this machine has CUDA, so no provider is missing")
    settings = RuntimeSettings(provider="cuda", require_provider=True)
    with pytest.raises(ProviderError, match=r"CUDAExecutionProvider is required.*uses CPU"):
        open_runtime(tiny.bundle, epoch=0.0, settings=settings)


def test_an_unknown_provider_is_refused(tiny) -> None:
    with pytest.raises(ProviderError, match="expected auto"):
        open_runtime(tiny.bundle, epoch=0.0, settings=RuntimeSettings(provider="tpu"))


def test_an_invalid_graph_is_refused(tiny, tmp_path: Path) -> None:
    from dataclasses import replace

    (tmp_path / "graph.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match="can't open it"):
        open_runtime(replace(tiny.bundle, path=tmp_path), epoch=0.0)
