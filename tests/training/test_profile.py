"""Profiles of units, and the network that reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from streaming.sessions.session import Session
from training.calibration.blocks import first_seconds
from training.data.profile import N_PROFILE, OWN, draw_identity, profiles
from training.data.simulate import simulate
from training.data.tuning import N_FEATURES, tuning
from training.models.families import forward
from training.pretraining import runs
from training.pretraining.newcomer import COMPARED_S, STEP_S, with_session
from training.pretraining.pretrain import pretrain
from training.pretraining.scoring import decode_windows, window_source
from training.pretraining.settings import PretrainSettings

TODAY = slice(0, N_PROFILE - N_FEATURES - 1)  # the part that is not about the channel


@pytest.fixture(scope="module")
def session() -> Session:
    return simulate(n_units=24, minutes=4.0, subject=3, seed=5)


@pytest.fixture(scope="module", params=["stream", "rt"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on two sessions of different subjects."""
    folder = tmp_path_factory.mktemp("profiled") / "run"
    known = [simulate(n_units=20, minutes=2.0, subject=n, seed=n) for n in (1, 2)]
    settings = PretrainSettings(
        preset=request.param, minutes=None, steps=8, batch_size=4, profiled_from=2
    )
    pretrain(known, folder, settings)
    return folder


def test_a_profile_has_the_tuning_or_not_and_the_channel_or_not(session: Session) -> None:
    domain = session.train_domain
    labelled = profiles(session, domain, labelled=True)
    unlabelled = profiles(session, domain, labelled=False)
    assert labelled.shape == unlabelled.shape == (24, N_PROFILE)
    np.testing.assert_array_equal(labelled[:, : N_FEATURES - 1], tuning(session)[:, :-1])
    assert (unlabelled[:, : N_FEATURES - 1] == 0).all()
    different = (labelled != unlabelled).any(axis=0)
    assert different.sum() == N_FEATURES, "the coefficients and the flag"

    channels = tuning(session)
    channels[5] = np.nan
    known = profiles(session, domain, labelled=True, channels=channels)
    np.testing.assert_array_equal(known[:, TODAY], labelled[:, TODAY])
    assert known[:, -1].tolist() == [float(unit != 5) for unit in range(24)]
    assert (known[5, TODAY.stop :] == 0).all()


def test_identities_are_drawn_by_their_shares(session: Session) -> None:
    rng = np.random.default_rng(0)
    drawn = [
        draw_identity(rng, session.train_domain, lasts=True, shared_share=0.5, profiled_share=0.4)
        for _ in range(500)
    ]
    plain = [one for one in drawn if one.profiled is None]
    assert all(one.shared for one in plain)
    assert np.mean([one.own for one in plain]) == pytest.approx(0.5, abs=0.08)
    profiled = [one for one in drawn if one.profiled is not None]
    assert len(profiled) / 500 == pytest.approx(0.4, abs=0.08)
    assert 0 < sum(one.labelled for one in profiled) < len(profiled)
    assert 0 < sum(one.shared for one in profiled) < len(profiled)
    assert not any(one.own for one in profiled)
    low, high = session.train_domain[0, 0], session.train_domain[-1, 1]
    for one in profiled:
        (start, end) = one.profiled[0]
        assert low <= start < end <= high
        assert end - start >= 4.99
    strangers = [
        draw_identity(rng, session.train_domain, lasts=False, shared_share=1.0, profiled_share=0.0)
        for _ in range(9)
    ]
    assert all(one == OWN for one in strangers)


def test_profiled_windows_decode_as_the_session_that_starts_from_the_same_profiles(
    run: Path, session: Session
) -> None:
    model, record = runs.load_model(run)
    extended, more = with_session(model, record, session, reads="spikes")
    source = window_source([session], extended, record.config(), more, profiled_share=1.0)
    plans = source.plan(np.random.default_rng(0), 4, keep_units=(1.0, 1.0))
    known = [replace(plan, identity=OWN) for plan in plans]
    whole = replace(plans[0].identity, profiled=session.train_domain, labelled=False)
    batch = source.build([replace(plan, identity=whole) for plan in plans])
    assert batch.parts.tolist() == [[0, 0]] * 24
    assert batch.profile.shape == (24, N_PROFILE)
    with torch.no_grad():
        profiled = forward(extended, record.config(), **batch.inputs())
        by_session = forward(extended, record.config(), **source.build(known).inputs())
    torch.testing.assert_close(profiled, by_session, atol=1e-5, rtol=1e-4)


def test_the_network_learns_and_units_of_other_profiles_get_other_embeddings(
    run: Path, session: Session
) -> None:
    model, record = runs.load_model(run)
    fresh = record.build()
    assert not torch.equal(model.identifier.read.weight, fresh.identifier.read.weight)
    by_labels, _ = with_session(model, record, session)
    by_spikes, _ = with_session(model, record, session, reads="spikes")
    labelled, unlabelled = by_labels.unit_emb.weight[-24:], by_spikes.unit_emb.weight[-24:]
    assert (labelled != unlabelled).any(dim=1).all()
    assert len(torch.unique(labelled, dim=0)) == 24


def test_units_of_unknown_channels_start_from_what_decodes_the_labels_better(
    run: Path, session: Session
) -> None:
    model, record = runs.load_model(run)
    session = first_seconds(session, COMPARED_S)
    best = with_session(model, record, session)
    by_tuning = with_session(model, record.model_copy(update={"n_profile": 0}), session)
    source = window_source([session], best[0], record.config(), best[1])
    errors = []
    for extended, _ in (best, by_tuning):
        true, decoded = decode_windows(extended, record.config(), source, 0, "train", step_s=STEP_S)
        errors.append(np.square(true - decoded).mean())
    assert errors[0] <= errors[1]
