"""The usual states of a streaming model: distances, and units that are found without labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from decoder.bundles.bundle import open_bundle
from decoder.errors import TrainingError
from decoder.runtimes.opening import open_runtime
from decoder.usual import Drift
from streaming.sessions.session import Session
from tests.training.test_identity import SUBJECT, part
from training.calibration.adapt import AdaptSettings, calibrate
from training.data.simulate import simulate
from training.exports.export import export_run
from training.models.states import States, settled_states, short
from training.pretraining import runs
from training.pretraining.newcomer import with_session
from training.pretraining.pretrain import pretrain
from training.pretraining.scoring import decode_windows, window_source
from training.pretraining.settings import PretrainSettings

ALIGN = AdaptSettings(method="align", seconds=None, steps=20)


@pytest.fixture(scope="module")
def days() -> list[Session]:
    """Three days of a subject whose units keep their identity."""
    session = simulate(n_units=24, minutes=6.0, subject=3, seed=5)
    return [part(session, 120.0 * day, 120.0 * (day + 1), f"day{day}") for day in range(3)]


def trained(days: list[Session], folder: Path, steps: int) -> Path:
    settings = PretrainSettings(
        preset="stream", minutes=None, steps=steps, batch_size=8, profiled_from=9
    )
    pretrain(days[:2], folder / "run", settings)
    return folder / "run"


@pytest.fixture(scope="module")
def run(days: list[Session], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the first two days."""
    return trained(days, tmp_path_factory.mktemp("states"), steps=10)


def changed(session: Session, share: float = 0.5) -> Session:
    """A day on which a share of the electrodes record each other's neurons."""
    n = round(share * session.n_units)
    neuron = np.concatenate([np.roll(np.arange(n), 1), np.arange(n, session.n_units)])
    return replace(session, session_id="changed", spike_units=neuron[session.spike_units])


def states_of(model, record, session: Session) -> torch.Tensor:
    """The settled states (n, hidden) of a session that the model knows."""
    config = short(record.config())
    source = window_source([session], model, config, record)
    with torch.no_grad():
        walked = source.walk(0, "train", step_s=config.train_s, layout=config)
        parts = [settled_states(model, config, batch.inputs()) for _, batch in walked]
    return torch.cat(parts).flatten(0, 1)


def test_a_run_knows_the_states_of_its_days(run: Path, days: list[Session]) -> None:
    model, record = runs.load_model(run)
    assert record.states is not None
    assert len(record.states.day_means) == 2
    for number, day in enumerate(days[:2]):
        distances = record.states.distances(states_of(model, record, day))
        assert distances.argmin() == number
        assert distances.min() < record.states.limit


def test_distances_are_those_between_normal_distributions() -> None:
    """Against torch's own divergence, in the space of the axes."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(16, 16, generator=generator)
    day = torch.randn(5000, 16, generator=generator) @ mixed
    states = States.of([[day, day[:100]]])
    today = 1.2 * day[:3000] + 0.5
    axes, mean = torch.tensor(states.axes), torch.tensor(states.mean)
    along = [(one - mean) @ axes.T for one in (today, torch.cat([day, day[:100]]))]
    ours, theirs = (
        torch.distributions.MultivariateNormal(one.mean(dim=0), torch.cov(one.T)) for one in along
    )
    expected = torch.distributions.kl_divergence(ours, theirs)
    torch.testing.assert_close(states.distances(today)[0], expected, rtol=5e-3, atol=1e-3)


def test_a_live_decoder_sees_the_same_distance(
    run: Path, days: list[Session], tmp_path: Path
) -> None:
    model, record = runs.load_model(run)
    for session, is_far in ((days[1], False), (changed(days[1], 1.0), True)):
        bundle = open_bundle(export_run(run, "day1", tmp_path / session.session_id).path)
        runtime = open_runtime(bundle, epoch=0.0)
        start, end = session.domain[0]
        inside = session.spikes_between(start, end)
        times, units = session.spike_times[inside], session.spike_units[inside]
        sent = 0
        for at in np.arange(start + 1.0, end, 0.1):
            stop = int(np.searchsorted(times, at))
            runtime.append(times[sent:stop], units[sent:stop])
            runtime.decode(float(at))
            sent = stop
            if at < start + 30.0:
                assert runtime.drift is not None
                assert runtime.drift.distance is None, "too early"
        assert isinstance(runtime.drift, Drift)
        distance = runtime.drift.distance
        assert distance is not None
        assert record.states is not None
        named = replace(session, session_id="day1")
        expected = record.states.distances(states_of(model, record, named)).min()
        assert distance == pytest.approx(float(expected), rel=0.3, abs=0.1)
        assert (distance > runtime.drift.limit) == is_far
        runtime.reset()
        assert runtime.drift.distance is None


def test_align_reads_no_labels_and_changes_only_the_days_units(
    run: Path, days: list[Session]
) -> None:
    model, record = runs.load_model(run)
    assert record.states is not None
    today = changed(days[2])
    aligned = calibrate(model, record, today, ALIGN)
    blind = replace(today, cursor_vel=np.zeros_like(today.cursor_vel))
    again = calibrate(model, record, blind, ALIGN)
    start, _ = with_session(model, record, today, reads="nothing")
    others = len(model.unit_emb.weight)
    for name, weight in runs.weights(aligned.model).items():
        assert torch.equal(weight, runs.weights(again.model)[name])
        if name == "unit_emb.weight":
            assert torch.equal(weight[:others], start.unit_emb.weight[:others])
            assert not torch.equal(weight[others:], start.unit_emb.weight[others:])
        else:
            assert torch.equal(weight, runs.weights(start)[name])
    before = record.states.distances(states_of(start, aligned.record, today)).min()
    after = record.states.distances(states_of(aligned.model, aligned.record, today)).min()
    assert after < 0.9 * before
    assert aligned.record.states == record.states
    assert np.isnan(aligned.record.best_r2)


def test_align_refuses_what_it_can_not_align(run: Path, days: list[Session]) -> None:
    model, record = runs.load_model(run)
    with pytest.raises(TrainingError, match="usually distributed"):
        calibrate(model, record.model_copy(update={"states": None}), days[2], ALIGN)
    other = replace(days[2], unit_ids=tuple(f"other{i}" for i in range(24)))
    for subject in (SUBJECT, "another"):
        with pytest.raises(TrainingError, match="other units"):
            calibrate(model, record, replace(other, subject_id=subject), ALIGN)


def test_other_weights_have_other_usual_states(run: Path, days: list[Session]) -> None:
    model, record = runs.load_model(run)
    settings = AdaptSettings(method="units", seconds=40.0, steps=1)
    assert calibrate(model, record, days[2], settings).record.states == record.states
    full = calibrate(model, record, days[2], replace(settings, method="full"))
    unknown = record.model_copy(update={"states": None})
    first = calibrate(model, unknown, days[2], settings)
    for made in (full, first):
        assert made.record.states is not None
        assert len(made.record.states.day_means) == 1
    assert record.states is not None
    assert len(record.states.day_means) == 2


@pytest.mark.soak
def test_align_finds_units_that_have_become_quiet(days: list[Session], tmp_path: Path) -> None:
    model, record = runs.load_model(trained(days, tmp_path, steps=400))

    def error(known, session: Session) -> float:
        model, record = known
        config = record.config()
        source = window_source([session], model, config, record)
        true, decoded = decode_windows(model, config, source, 0, "test", step_s=0.1)
        return float(np.square(true - decoded).mean())

    def aligned(session: Session):
        made = calibrate(model, record, session, AdaptSettings(method="align", seconds=None))
        return made.model, made.record

    fires = np.random.default_rng(0).random(len(days[2].spike_units)) < 0.2
    kept = (days[2].spike_units >= 12) | fires
    today = replace(
        days[2], spike_times=days[2].spike_times[kept], spike_units=days[2].spike_units[kept]
    )
    start = with_session(model, record, today, reads="nothing")
    assert error(aligned(today), today) < 0.9 * error(start, today)
    usual = with_session(model, record, days[2], reads="nothing")[0].unit_emb.weight
    assert torch.equal(aligned(days[2])[0].unit_emb.weight, usual), "nothing has changed"
