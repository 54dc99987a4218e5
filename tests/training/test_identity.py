"""Units that keep their identity: embeddings that days share, and new days that start from them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from decoder.errors import TrainingError
from streaming.sessions.session import Session
from training.calibration.adapt import AdaptSettings, calibrate
from training.data.identity import home, lasting_subjects, namesake_rank, shared_words
from training.data.simulate import simulate
from training.data.tuning import tuning
from training.evaluation.offline import decode_split
from training.exports.export import export_model, export_run
from training.pretraining import runs
from training.pretraining.newcomer import with_session
from training.pretraining.pretrain import pretrain
from training.pretraining.scoring import window_source
from training.pretraining.settings import PretrainSettings, settings_of

SUBJECT, WORD = "sim03", "/sim03"


def part(session: Session, start: float, end: float, name: str) -> Session:
    """A stretch of a session as a day of its own, with the same units."""
    edges = start + (end - start) * np.array([0.0, 0.7, 0.85, 1.0])
    train, valid, test = edges[:2][None], edges[1:3][None], edges[2:][None]
    return replace(
        session, session_id=name, domain=edges[[0, 3]][None],
        train_domain=train, valid_domain=valid, test_domain=test,
    )  # fmt: skip


@pytest.fixture(scope="module")
def days() -> list[Session]:
    """Three days of a subject whose units keep their identity."""
    session = simulate(n_units=24, minutes=6.0, subject=3, seed=5)
    return [part(session, 120.0 * day, 120.0 * (day + 1), f"day{day}") for day in range(3)]


@pytest.fixture(scope="module")
def run(days: list[Session], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the first two days."""
    folder = tmp_path_factory.mktemp("shared") / "run"
    settings = PretrainSettings(
        preset="stream", minutes=None, steps=10, batch_size=8, profiled_from=2
    )
    pretrain(days[:2], folder, settings)
    return folder


def test_only_units_that_keep_their_tuning_last(days: list[Session]) -> None:
    renumbered = [simulate(n_units=24, minutes=2.0, subject=7, seed=seed) for seed in range(3)]
    alone = [simulate(n_units=24, minutes=2.0, subject=8, seed=1)]
    unknown = [replace(day, session_id=f"x{day.session_id}", subject_id="unknown") for day in days]
    assert lasting_subjects([*renumbered, *days, *alone, *unknown], tuning) == [SUBJECT]
    first, second, *others = ((day, tuning(day)) for day in (*days[:2], *renumbered[:2]))
    assert namesake_rank(first, second) < 0.2
    assert namesake_rank(*others) == pytest.approx(0.5, abs=0.15)
    renamed = replace(days[1], unit_ids=tuple(f"other{i}" for i in range(24)))
    assert namesake_rank(first, (renamed, second[1])) is None


def test_a_run_shares_embeddings_among_a_subjects_days(run: Path, days: list[Session]) -> None:
    model, record = runs.load_model(run)
    assert record.session_words == ["day0", "day1", WORD]
    assert record.sessions == ["day0", "day1"]
    assert record.unit_words[48:] == shared_words(days[0], WORD)
    assert len(record.unit_tuning) == len(record.unit_words) == len(model.unit_emb.weight) - 1
    of_days = np.array(record.unit_tuning[:48]).reshape(2, 24, -1)
    np.testing.assert_allclose(of_days.mean(axis=0), record.unit_tuning[48:], atol=2e-3)


def test_a_days_units_are_the_shared_ones_and_what_differs(
    run: Path, days: list[Session], tmp_path: Path
) -> None:
    model, _ = runs.load_model(run)
    units = model.unit_emb.weight.detach()
    own, shared = units[1:49].reshape(2, 24, -1), units[49:73]
    assert 0 < (own - shared).norm() < 0.7 * own.norm(), "after ten steps the days differ a little"
    settings = PretrainSettings(
        preset="stream", minutes=None, steps=1, batch_size=8, learning_rate=1e-12, base=str(run)
    )
    pretrain(days, tmp_path / "more", settings)
    again = runs.load_model(tmp_path / "more")[0].unit_emb
    rows = [again.vocab[word] for word in list(model.unit_emb.vocab)[1:]]
    torch.testing.assert_close(again.weight[rows], units[1:])


def test_a_share_of_the_training_windows_uses_the_shared_embeddings(
    run: Path, days: list[Session]
) -> None:
    model, record = runs.load_model(run)
    source = window_source(days[:2], model, record.config(), record, shared_share=0.3)
    n_words = len(model.unit_emb.weight)
    rng = np.random.default_rng(0)
    shared = 0
    for _ in range(200):
        batch = source.draw(rng, 2)
        units = (batch.token % n_words).split(batch.lengths.tolist())
        for rows, session in zip(units, batch.session_index, strict=True):
            assert bool((rows > 48).all()) == (int(session) == 3)
            shared += int(session) == 3
    assert 0.2 < shared / 400 < 0.4
    own = window_source(days[:2], model, record.config(), record).draw(rng, 8)
    assert int(own.session_index.max()) <= 2
    assert len(own.parts) == 0, "whole embeddings"


def test_a_new_day_starts_from_the_shared_embeddings(run: Path, days: list[Session]) -> None:
    model, record = runs.load_model(run)
    extended, more = with_session(model, record, days[2], reads="nothing")
    shared, new = extended.unit_emb.weight[49:73], extended.unit_emb.weight[73:]
    assert torch.equal(shared, new)
    assert torch.equal(extended.session_emb.weight[3], extended.session_emb.weight[4])
    of_subject = record.scale(WORD)
    assert more.output_std["day2"] == record.output_std[WORD]

    extended, more = with_session(model, record, days[2], reads="spikes")
    assert not torch.equal(extended.unit_emb.weight[73:], shared)
    assert more.output_std["day2"] == record.output_std[WORD]

    _, more = with_session(model, record, days[2])
    of_day = more.scale("day2")
    own = days[2].cursor_vel[(days[2].cursor_times >= 240) & (days[2].cursor_times < 324)]
    low, high = sorted([of_subject.std[0], own[:, 0].std()])
    assert low < of_day.std[0] < high

    other = replace(days[2], unit_ids=(*days[2].unit_ids[:20], "n1", "n2", "n3", "n4"))
    extended, _ = with_session(model, record, other, reads="nothing")
    assert torch.equal(extended.unit_emb.weight[73:93], extended.unit_emb.weight[49:69])
    assert not torch.equal(extended.unit_emb.weight[93:], extended.unit_emb.weight[69:73])
    settings = AdaptSettings(method="units", seconds=30, steps=2)
    adapted = calibrate(model, record, other, settings)
    assert adapted.record.session_words[-1] == "day2"
    assert torch.equal(adapted.model.unit_emb.weight[1:73], model.unit_emb.weight[1:])


def test_a_checkpoint_of_an_older_version_has_whole_embeddings(
    run: Path, days: list[Session], tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    state = runs.load_tensors(run / runs.LAST)
    rows = state.pop("differences")
    for kind in ("weights", "average"):
        state[f"{kind}.unit_emb.weight"][rows[:, 0]] += state[f"{kind}.unit_emb.weight"][rows[:, 1]]
    runs.save_tensors(tmp_path / "run" / runs.LAST, state)
    pretrain(days[:2], run, settings_of(run, steps=11), resume=True)
    pretrain(days[:2], tmp_path / "run", settings_of(run, steps=11), resume=True)
    again, once = (runs.load_tensors(one / runs.LAST) for one in (tmp_path / "run", run))
    for name, tensor in once.items():
        if name != "progress":
            torch.testing.assert_close(again[name], tensor, atol=1e-6, rtol=1e-5)


def test_a_subject_without_a_name_is_found_by_its_units(run: Path, days: list[Session]) -> None:
    _, record = runs.load_model(run)
    nameless = replace(days[2], subject_id="unknown")
    words = record.session_words
    assert home(nameless, words, record.unit_words) == WORD
    assert home(replace(nameless, subject_id="another"), words, record.unit_words) is None
    renamed = replace(nameless, unit_ids=tuple(f"ch{i}" for i in range(24)))
    assert home(renamed, words, record.unit_words) is None
    two = [*record.unit_words, *shared_words(days[2], "/twin")]
    assert home(nameless, [*words, "/twin"], two) is None, "two subjects fit"


def test_a_subjects_bundle_decodes_another_day_as_a_new_session_starts(
    run: Path, days: list[Session], tmp_path: Path
) -> None:
    bundle = export_run(run, None, tmp_path / "subject.bundle", subject=SUBJECT)
    assert bundle.manifest.session_id == SUBJECT
    assert bundle.manifest.unit_ids == days[0].unit_ids
    as_is = decode_split(bundle, days[2], "test", tick_s=0.05).velocity
    extended, more = with_session(*runs.load_model(run), days[2], reads="nothing")
    started = export_model(extended, more, "day2", tmp_path / "day2.bundle")
    again = decode_split(started, days[2], "test", tick_s=0.05).velocity
    np.testing.assert_allclose(as_is, again, atol=1e-5)
    with pytest.raises(TrainingError, match=f"it has those of {SUBJECT}"):
        export_run(run, None, tmp_path / "x.bundle", subject="nobody")


def test_a_subjects_bundle_can_be_recalibrated(
    run: Path, days: list[Session], tmp_path: Path
) -> None:
    bundle = export_run(run, None, tmp_path / "subject.bundle", subject=SUBJECT)
    model, record = runs.load_model(bundle.path)
    adapted = calibrate(model, record, days[2], AdaptSettings(method="units", seconds=30, steps=5))
    assert adapted.record.session_words[-1] == "day2"


def test_a_run_without_shared_embeddings_resumes_without_them(
    days: list[Session], tmp_path: Path
) -> None:
    settings = PretrainSettings(
        preset="stream", minutes=None, steps=2, shared_share=0.0, profiled_share=0.0
    )
    pretrain(days[:2], tmp_path / "run", settings)
    record = runs.load_record(tmp_path / "run")
    assert record.session_words == ["day0", "day1"]
    del record.settings["shared_share"], record.settings["profiled_share"]  # an older version's
    runs.save_record(tmp_path / "run", record)
    again = settings_of(tmp_path / "run", steps=3)
    assert again.shared_share == again.profiled_share == 0.0
    assert pretrain(days[:2], tmp_path / "run", again, resume=True).step == 3


def test_a_run_of_one_day_starts_the_next_from_units_of_the_same_names(
    days: list[Session], tmp_path: Path
) -> None:
    settings = PretrainSettings(preset="stream", minutes=None, steps=2, batch_size=4)
    pretrain(days[:1], tmp_path / "run", settings)
    model, record = runs.load_model(tmp_path / "run")
    assert record.session_words == ["day0"]
    known = model.unit_emb.weight[1:25]
    for reads in ("nothing", "spikes"):
        extended, more = with_session(model, record, days[1], reads=reads)
        assert torch.equal(extended.unit_emb.weight[25:], known)
        assert torch.equal(extended.session_emb.weight[2], model.session_emb.weight[1])
        assert more.output_std["day1"] == record.output_std["day0"]
        assert more.unit_tuning[24:] == record.unit_tuning
    names = tuple(f"other{i}" for i in range(13)) + days[1].unit_ids[13:]
    other = replace(days[1], unit_ids=names)
    extended, _ = with_session(model, record, other, reads="nothing")
    assert not torch.equal(extended.unit_emb.weight[25:][20], known[20]), "fewer than half"
