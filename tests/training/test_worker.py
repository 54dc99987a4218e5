"""The server's training process prepares before the data arrive."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from clients.harness.daemon import BUNDLES
from decoder.bundles.bundle import Bundle, open_bundle
from decoder.gate import Evidence, Unlabelled
from decoder.score import pooled_r2
from decoder.traces import TRACES, Traces
from streaming.sessions import format as sessions
from streaming.sessions.intervals import duration_s
from tests.conftest import TinyDecoder, identifying
from tests.training.test_states import states_of
from training.calibration import worker
from training.calibration.candidate import WARM_UP, prepare, train_candidate
from training.calibration.labels import Labels
from training.data.simulate import simulate
from training.exports.export import export_model
from training.pretraining import runs
from training.pretraining.newcomer import with_session
from training.pretraining.scoring import usual_states


def test_a_base_that_knows_the_warm_up_session_can_be_prepared(tmp_path: Path) -> None:
    known = simulate(**WARM_UP)  # type: ignore[arg-type]
    model, record = with_session(*runs.load_model(BUNDLES / "possm.bundle"), known)
    bundle = export_model(model, record, known.session_id, tmp_path / "base.bundle")
    ready = prepare(bundle.path)
    assert known.session_id in ready.record.session_words


def carried_out(
    tiny: TinyDecoder, folder: Path, labels: Labels, excluded: tuple[str, ...] = ()
) -> dict[str, Any]:
    """An instant calibration on a minute of units that the active decoder knows."""
    today = replace(tiny.session, session_id="today")
    base = identifying(tiny, folder)
    order = worker.Order(
        sessions=[str(sessions.save(today, folder))], active=str(base.path),
        output=str(folder / "candidate.bundle"), method="instant", labels=labels,
        allowed_s=10.0, seed=0, excluded=list(excluded), traces=str(folder / TRACES),
    )  # fmt: skip
    model, record = runs.load_model(base.path)
    return worker.carry_out(order, worker.Ready(bundle=base, model=model, record=record))


def check_traces(folder: Path, done: dict[str, Any]) -> None:
    """The traces of a calibration amount to its held-out scores."""
    evidence, traces = Evidence.from_lists(done["evidence"]), Traces.load(folder / TRACES)
    assert traces.true is not None
    assert traces.active is not None
    assert pooled_r2(traces.true, traces.candidate) == pytest.approx(evidence.r2().value, abs=1e-5)
    active = pooled_r2(traces.true, traces.active)
    assert active == pytest.approx(evidence.active_r2(), abs=1e-5)
    assert len(traces.times) * traces.tick_s == pytest.approx(evidence.compared_s)
    assert (np.diff(traces.times) > 0).all()
    assert 0.0 < traces.times[0] < 5.0
    assert done["notes"] == []


def test_an_instant_candidate_is_compared_without_a_gradient_step(
    tiny: TinyDecoder, tmp_path: Path
) -> None:
    done = carried_out(tiny, tmp_path, "kinematics")
    assert done["method"] == "instant"
    assert Evidence.from_lists(done["evidence"]).compared_s > 10.0
    check_traces(tmp_path, done)
    made, base = (open_bundle(tmp_path / f"{n}.bundle") for n in ("candidate", "identifying"))
    assert made.manifest.checksums["graph.onnx"] == base.manifest.checksums["graph.onnx"]
    assert "validation_r2" not in made.manifest.metrics


@pytest.mark.parametrize("tiny", ["possm"], indirect=True)
def test_a_candidate_does_not_know_the_excluded_units(tiny: TinyDecoder, tmp_path: Path) -> None:
    first, *others = tiny.session.unit_ids
    done = carried_out(tiny, tmp_path, "kinematics", excluded=(first, "not recorded"))
    assert done["notes"] == [f"units that the operator has excluded were left out: {first}"]
    assert open_bundle(tmp_path / "candidate.bundle").manifest.unit_ids == tuple(others)


def test_labels_of_the_decoders_own_output_prove_nothing(
    tiny: TinyDecoder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / TRACES).write_text("of a training that was cut short")
    done = carried_out(tiny, tmp_path, "decoded")
    assert not (tmp_path / TRACES).exists()
    for line in capfd.readouterr().out.splitlines():
        msgspec.json.decode(line)  # which refuses NaN
    assert Evidence.from_lists(done["evidence"]).compared_s == 0.0
    assert "can't show whether the candidate is better" in done["doubts"][-1]


def aligned(tiny: TinyDecoder, tmp_path: Path, *, labelled: bool) -> tuple[Bundle, dict[str, Any]]:
    """The base and the result of `align`, on a day whose neurons have all changed."""
    model, record = runs.load_model(tiny.bundle.path)
    usual = usual_states(model, record, [tiny.session])
    assert usual is not None
    record.states = usual.model_copy(update={"limit": 0.0})  # so that any day is unusual
    base = export_model(model, record, tiny.session.session_id, tmp_path / "base.bundle")
    assert base.usual is not None
    today = replace(
        tiny.session, session_id="today", spike_units=tiny.session.spike_units[::-1].copy()
    )
    order = worker.Order(
        sessions=[str(sessions.save(today, tmp_path))], active=str(base.path),
        output=str(tmp_path / "candidate.bundle"), method="align", labels="kinematics",
        allowed_s=2.0, seed=0, labelled=labelled, traces=str(tmp_path / TRACES),
    )  # fmt: skip
    return base, worker.carry_out(order, worker.Ready(bundle=base, model=model, record=record))


@pytest.mark.parametrize("tiny", ["possm"], indirect=True)
def test_an_aligned_candidate_is_compared_on_labels_that_it_has_not_seen(
    tiny: TinyDecoder, tmp_path: Path
) -> None:
    base, done = aligned(tiny, tmp_path, labelled=True)
    assert done["method"] == "align"
    assert done["unlabelled"] is None
    assert Evidence.from_lists(done["evidence"]).compared_s > 20.0
    check_traces(tmp_path, done)
    made = open_bundle(tmp_path / "candidate.bundle")
    assert made.manifest.checksums["graph.onnx"] == base.manifest.checksums["graph.onnx"]
    assert not np.array_equal(made.tables.tokens, base.tables.tokens)
    assert np.array_equal(made.usual.axes, base.usual.axes)


@pytest.mark.parametrize("tiny", ["possm"], indirect=True)
def test_without_labels_an_aligned_candidate_is_judged_on_the_last_third(
    tiny: TinyDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned_from = []

    def noted(session, *arguments, **options):
        learned_from.append(session)
        return train_candidate(session, *arguments, **options)

    monkeypatch.setattr(worker, "train_candidate", noted)
    base, done = aligned(tiny, tmp_path, labelled=False)
    (session,) = learned_from
    assert session.train_domain[-1, 1] < session.test_domain[0, 0]
    assert duration_s(session.test_domain) == pytest.approx(duration_s(session.domain) / 3)
    found = Unlabelled(**done["unlabelled"])
    assert found.seconds == pytest.approx(duration_s(session.test_domain), abs=2.0)
    model, record = runs.load_model(base.path)
    named = replace(session, session_id=tiny.session.session_id, train_domain=session.test_domain)
    expected = record.states.distances(states_of(model, record, named)).min()
    assert found.active == pytest.approx(float(expected), rel=0.3, abs=0.1)
    assert found.candidate > 0.0
    assert found.active_all == pytest.approx(found.active, abs=0.2)
    assert found.active_limit == found.candidate_limit == 0.0
    assert found.agreement > 0.0
    assert 0.1 < found.speed_ratio < 10.0
    assert Evidence.from_lists(done["evidence"]).compared_s == 0.0
    assert done["doubts"] == []
    traces = Traces.load(tmp_path / TRACES)
    assert traces.true is None
    assert traces.active is not None
    assert len(traces.times) * traces.tick_s == pytest.approx(found.seconds)
    held_out_s = session.test_domain - session.domain[0, 0]
    assert held_out_s[0, 0] < traces.times[0] < traces.times[-1] <= held_out_s[-1, 1] + 1e-6
    both = np.array([traces.candidate, traces.active])
    speeds = np.linalg.norm(both, axis=2).mean(axis=1)
    assert speeds[0] / speeds[1] == pytest.approx(found.speed_ratio, rel=1e-4)
