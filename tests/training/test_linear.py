"""Ridge and Kalman bundles decode like the offline baselines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from decoder.bundles.bundle import Bundle, open_bundle
from decoder.bundles.families import KalmanSizes
from decoder.bundles.manifest import GRAPH
from decoder.errors import TrainingError
from decoder.gate import Evidence
from decoder.runtimes.opening import open_runtime
from streaming.sessions import format as sessions
from streaming.sessions.session import Session
from training.baselines import linear
from training.baselines.kalman import Kalman
from training.baselines.linear import fit_linear
from training.baselines.ridge import Ridge
from training.calibration import worker
from training.data.simulate import simulate
from training.evaluation.offline import decode_split
from training.pretraining import runs

KINDS: dict[linear.Kind, type[Ridge] | type[Kalman]] = {"ridge": Ridge, "kalman": Kalman}
TOLERANCE = 1e-5  # m/s


@pytest.fixture(scope="module")
def session() -> Session:
    return simulate(n_units=40, minutes=2.0, subject=2, seed=12)


@pytest.fixture(scope="module", params=list(KINDS))
def bundle(session: Session, request, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("linear")
    return fit_linear(session, request.param, folder / f"{request.param}.bundle")


@pytest.mark.parametrize("tick_s", [0.01, 0.017])
def test_a_bundle_decodes_like_the_offline_baseline(session, bundle, tick_s) -> None:
    offline = KINDS[bundle.manifest.family](session)
    decoded = decode_split(bundle, session, "test", tick_s=tick_s)
    np.testing.assert_allclose(decoded.velocity, offline.decode(decoded.times), atol=TOLERANCE)
    assert bundle.manifest.metrics["validation_r2"] == pytest.approx(offline.valid_r2)
    assert bundle.manifest.provenance["chosen"] == offline.chosen


@pytest.mark.parametrize("lag", [1, 3])
def test_a_kalman_filter_with_a_lag_decodes_like_the_baseline(
    session, tmp_path, monkeypatch, lag
) -> None:
    monkeypatch.setattr("training.baselines.kalman.LAGS", (lag,))
    bundle = fit_linear(session, "kalman", tmp_path / "led.bundle")
    assert isinstance(bundle.manifest.sizes, KalmanSizes)
    assert bundle.manifest.sizes.lead_bins == lag
    decoded = decode_split(bundle, session, "test", tick_s=0.01)
    expected = Kalman(session).decode(decoded.times)
    np.testing.assert_allclose(decoded.velocity, expected, atol=TOLERANCE)


def test_late_and_unordered_spikes_decode_as_if_on_time(session: Session, bundle: Bundle) -> None:
    straight, late = (open_runtime(bundle, epoch=0.0) for _ in range(2))
    part = session.spikes_between(0.0, 2.0)
    times, units = session.spike_times[part], session.spike_units[part]
    delay_s = np.random.default_rng(0).uniform(0.0, 0.3, len(times))
    for now in np.arange(straight.window_s, 2.0, 0.01):
        for runtime, arrival in ((straight, times), (late, times + delay_s)):
            new = (arrival >= now - 0.01) & (arrival < now)
            new |= (now == straight.window_s) & (arrival < now)
            runtime.append(times[new], units[new])
            runtime.decode(float(now))
    late.append(times[times + delay_s >= now], units[times + delay_s >= now])
    before = straight.decode(float(now))
    np.testing.assert_allclose(late.decode(float(now)), before, atol=1e-6)
    assert late.n_spikes == straight.n_spikes > 100


def test_silence_decodes_and_a_reset_clears_the_state(bundle: Bundle) -> None:
    runtime = open_runtime(bundle, epoch=0.0)
    runtime.warm_up()
    silent = runtime.decode(1.0)
    assert np.isfinite(silent).all()
    assert runtime.n_spikes == 0
    runtime.append(np.array([0.85, 0.86]), np.array([0, 1]))
    assert not np.allclose(runtime.decode(1.0), silent)
    runtime.reset()
    np.testing.assert_array_equal(runtime.decode(1.0), silent)


def test_all_graphs_of_one_kind_are_the_same_file(session, bundle, tmp_path: Path) -> None:
    kind = bundle.manifest.family
    other = simulate(n_units=9, minutes=1.0, subject=5, seed=3)
    another = fit_linear(other, kind, tmp_path / "another.bundle")  # type: ignore[arg-type]
    assert another.manifest.checksums[GRAPH] == bundle.manifest.checksums[GRAPH]
    onnx.checker.check_model(onnx.load(bundle.graph_path), full_check=True)
    runtime = open_runtime(bundle, epoch=0.0)
    assert open_runtime(another, epoch=0.0, graph_from=runtime)._session is runtime._session


def test_a_linear_decoder_cannot_be_adapted(bundle: Bundle) -> None:
    with pytest.raises(TrainingError, match="refitted and can't be adapted; start from"):
        runs.load_model(bundle.path)


def test_a_linear_calibration_records_its_base(tiny, bundle, tmp_path: Path, capfd) -> None:
    """The worker answers, and the next calibration starts from the pretrained decoder."""
    kind = bundle.manifest.family
    today = replace(simulate(n_units=30, minutes=1.0, subject=4, seed=9), session_id="today")
    order = worker.Order(
        sessions=[str(sessions.save(today, tmp_path))], active=None,
        output=str(tmp_path / "candidate.bundle"), method=kind, labels="kinematics",
        allowed_s=10.0, seed=0,
    )  # fmt: skip
    ready = worker.Ready(
        bundle=tiny.bundle, model=tiny.model, record=runs.load_model(tiny.bundle.path)[1]
    )
    done = worker.carry_out(order, ready)
    made = open_bundle(order.output)
    assert done["method"] == made.manifest.family == kind
    assert made.manifest.provenance["base"] == tiny.bundle.manifest.decoder_id
    assert made.manifest.provenance["training_data_s"] == pytest.approx(48.0, abs=0.1)
    assert Evidence.from_lists(done["evidence"]).r2().value > 0.1
