"""Pretraining on a small session: it learns, resumes exactly, and keeps the best weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from decoder.errors import TrainingError
from streaming.sessions import format as sessions
from tests.rig import wait_for
from tests.streaming.perich import perich_file
from training.data.simulate import simulate
from training.data.tuning import nearest_mean, tuning
from training.data.windows import OutputScale, WindowSource, unit_words
from training.models import possm
from training.models.families import preset
from training.pretraining import runs, trainer
from training.pretraining.pretrain import pretrain
from training.pretraining.settings import PretrainSettings, settings_of


@pytest.fixture(scope="module")
def session():
    return simulate(n_units=20, minutes=1.5, subject=2, seed=3)


def settings(**changes) -> PretrainSettings:
    given = {"preset": "rt", "minutes": None, "steps": 20, "batch_size": 4} | changes
    return PretrainSettings(**given)


def test_a_written_run_can_be_loaded(session, tmp_path: Path) -> None:
    losses: list[float] = []
    record = pretrain(
        [session], tmp_path / "run", settings(), on_step=lambda p: losses.append(p.loss)
    )
    assert record.step == 20
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "best.safetensors", "last.safetensors", "run.json", "tensorboard",
    ]  # fmt: skip
    model, loaded = runs.load_model(tmp_path / "run")
    assert loaded.best_r2 == record.best_r2
    assert loaded.session_words == [session.session_id]
    assert not model.training


def test_a_run_resumes_at_its_last_step(session, tmp_path: Path) -> None:
    pretrain([session], tmp_path / "run", settings(steps=10))
    steps: list[int] = []
    record = pretrain(
        [session], tmp_path / "run", settings(steps=15), resume=True,
        on_step=lambda p: steps.append(p.step),
    )  # fmt: skip
    assert steps == [11, 12, 13, 14, 15]
    assert record.step == 15


def test_a_run_can_start_from_another_runs_weights(session, tmp_path: Path) -> None:
    """Known units keep their embeddings; new ones start as the mean of units tuned like them."""
    pretrain([session], tmp_path / "first", settings(profiled_share=0.0))
    other = simulate(n_units=30, minutes=1.5, subject=1, seed=4)
    begun = settings(steps=1, learning_rate=1e-12, base=str(tmp_path / "first"))
    pretrain([other, session], tmp_path / "second", begun)
    (first, known), (second, record) = (
        runs.load_model(tmp_path / name) for name in ("first", "second")
    )
    weights, after = runs.weights(first), runs.weights(second)
    for name, tensor in weights.items():
        if not name.startswith(("unit_emb", "session_emb")):
            torch.testing.assert_close(after[name], tensor, msg=name)
    torch.testing.assert_close(second.unit_emb.weight[-20:], first.unit_emb.weight[-20:])
    torch.testing.assert_close(second.session_emb.weight[-1], first.session_emb.weight[-1])
    like = nearest_mean(
        tuning(other), np.array(known.unit_tuning), first.unit_emb.weight[1:].detach().numpy()
    )
    np.testing.assert_allclose(second.unit_emb.weight[1:31].detach(), like, atol=1e-5)
    assert record.settings["base"] == str(tmp_path / "first")
    with pytest.raises(TrainingError, match="expected 'stream'"):
        pretrain([session], tmp_path / "third", settings(preset="stream", base=begun.base))


def test_ctrl_c_keeps_the_best_so_far(session, tmp_path: Path) -> None:
    def interrupt(progress) -> None:
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    record = pretrain([session], tmp_path / "run", settings(), on_step=interrupt)
    assert record.step == 5
    runs.load_model(tmp_path / "run")


def test_a_run_is_never_overwritten(session, tmp_path: Path) -> None:
    pretrain([session], tmp_path / "run", settings(steps=2))
    with pytest.raises(TrainingError, match="there is a run already"):
        pretrain([session], tmp_path / "run", settings(steps=2))


def test_a_run_without_an_end_is_refused() -> None:
    with pytest.raises(TrainingError, match="would never end"):
        PretrainSettings(minutes=None, steps=None)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", *arguments]


def pretraining_command(
    session, folder: Path, *arguments: str, launcher: tuple[str, ...] = ()
) -> list[str]:
    """A pretraining command for a session saved in `folder`, with one thread per process."""
    path = sessions.save(session, folder / "sessions")
    return command(
        *launcher, "clients", "pretrain", str(path), "--batch-size", "8", "--threads", "1",
        "--seed", "3", *arguments,
    )  # fmt: skip


def largest_difference(one: Path, other: Path) -> float:
    a, b = (load_file(run / "last.safetensors") for run in (one, other))
    assert set(a) == set(b)
    names = [name for name in a if name.startswith(("weights.", "average."))]
    return max(float((a[name] - b[name]).abs().max()) for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["rt", "stream"])
def test_two_processes_compute_the_same_as_one(session, tmp_path: Path, preset: str) -> None:
    """This includes dropout: masks belong to the micro-batch, not to the process."""
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    shared = ("--preset", preset, "--steps", "20", "-o")
    subprocess.run(
        pretraining_command(session, tmp_path, *shared, str(tmp_path / "two"), launcher=torchrun),
        check=True, capture_output=True, timeout=560,
    )  # fmt: skip
    subprocess.run(
        pretraining_command(session, tmp_path, *shared, str(tmp_path / "one"), "--accumulate", "2"),
        check=True, capture_output=True, timeout=560,
    )  # fmt: skip
    assert largest_difference(tmp_path / "one", tmp_path / "two") <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["rt", "stream"])
def test_a_killed_run_resumes_to_the_same_weights(session, tmp_path: Path, preset: str) -> None:
    run = tmp_path / "killed"
    arguments = ("--preset", preset, "--steps", "100", "-o")
    with running_command(pretraining_command(session, tmp_path, *arguments, str(run))) as process:
        wait_for("a checkpoint", lambda: (run / "last.safetensors").exists(), 120.0)
        process.send_signal(signal.SIGKILL)
        process.wait()
    stopped = runs.load_tensors(run / "last.safetensors")["progress"][0]
    assert 0 < stopped < 100
    for more in (("-o", str(run), "--resume"), (*arguments, str(tmp_path / "whole"))):
        done = subprocess.run(
            pretraining_command(session, tmp_path, *more),
            check=False, capture_output=True, text=True, timeout=560,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert largest_difference(run, tmp_path / "whole") == 0.0


def test_a_run_killed_before_its_first_checkpoint_can_be_resumed(session, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def killed(progress) -> None:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        pretrain([session], run, settings(steps=10_000), on_step=killed)
    assert not (run / "last.safetensors").exists()
    assert pretrain([session], run, settings(steps=4), resume=True).step == 4


@contextmanager
def running_command(arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_learning_curve_is_logged_for_tensorboard(session, tmp_path: Path) -> None:
    pretrain([session], tmp_path / "run", settings(steps=20))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/tokens_per_s", "valid/r2_causal"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")][-1] == 20


def test_a_batch_size_that_cannot_be_split_is_refused(session, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="expected a multiple of 3"):
        pretrain([session], tmp_path / "run", settings(batch_size=4, accumulate=3))


def test_a_mixed_corpus_trains_an_embedding_per_session(session, tmp_path: Path) -> None:
    """Two simulated sessions and one in the layout of `perich_miller_population_2018`."""
    folder = tmp_path / "corpus"
    foreign = perich_file(tmp_path)
    (folder / "monkey").mkdir(parents=True)
    foreign.rename(folder / "monkey" / foreign.name)
    sessions.save(session, folder / "simulated")
    sessions.save(simulate(n_units=12, minutes=1.5, subject=1, seed=8), folder / "simulated")
    mixed = [sessions.load(path, lazy=True) for path in sessions.find(folder)]
    record = pretrain(mixed, tmp_path / "run", settings(steps=4, sampling_power=0.5))
    assert len(record.session_words) == 3
    assert len(record.unit_words) == sum(s.n_units for s in mixed)
    model, _ = runs.load_model(tmp_path / "run")
    assert len(model.session_emb.weight) == 4


def test_worker_processes_read_the_same_windows(session, tmp_path: Path) -> None:
    for name, workers in (("alone", 0), ("workers", 2)):
        pretrain([session], tmp_path / name, settings(steps=6, workers=workers))
    assert largest_difference(tmp_path / "alone", tmp_path / "workers") == 0.0


@pytest.mark.parametrize("preset", ["rt", "stream"])
def test_bf16_is_close_to_float32(session, tmp_path: Path, preset: str) -> None:
    losses: dict[str, list[float]] = {"32-true": [], "bf16-mixed": []}
    for precision, seen in losses.items():
        pretrain(
            [session], tmp_path / precision, settings(preset=preset, steps=10, precision=precision),
            on_step=lambda p, seen=seen: seen.append(p.loss),
        )  # fmt: skip
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.05)


def test_a_lower_sampling_power_favours_short_sessions(session) -> None:
    long = simulate(n_units=12, minutes=6.0, subject=1, seed=8)
    words = [*unit_words(session), *unit_words(long)]

    def share_of_short(power: float) -> float:
        source = WindowSource(
            [session, long], {word: row for row, word in enumerate(["NA", *words])},
            {session.session_id: 1, long.session_id: 2}, layout=preset("rt"),
            scales={s.session_id: OutputScale.of(s) for s in (session, long)},
            sampling_power=power,
        )  # fmt: skip
        plans = source.plan(np.random.default_rng(0), 2000)
        return float(np.mean([plan.index == 0 for plan in plans]))

    assert share_of_short(0.0) == pytest.approx(0.5, abs=0.05)
    assert share_of_short(1.0) == pytest.approx(0.2, abs=0.05)


def test_a_refused_run_leaves_its_folder_free(session, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="expected a multiple"):
        pretrain([session], tmp_path / "run", settings(batch_size=4, accumulate=3))
    assert pretrain([session], tmp_path / "run", settings(steps=2)).step == 2


def test_an_extended_run_keeps_its_new_end(session, tmp_path: Path) -> None:
    pretrain([session], tmp_path / "run", settings(steps=4))
    pretrain([session], tmp_path / "run", settings_of(tmp_path / "run", steps=8), resume=True)
    assert settings_of(tmp_path / "run").steps == 8


def test_an_adapted_or_imported_run_cannot_be_resumed(session, tmp_path: Path) -> None:
    record = pretrain([session], tmp_path / "run", settings(steps=2))
    (tmp_path / "run" / "last.safetensors").unlink()
    with pytest.raises(TrainingError, match="adapted or imported"):
        pretrain([session], tmp_path / "run", settings(steps=4), resume=True)
    record.settings = {"imported_from": "poyo.ckpt"}
    runs.save_record(tmp_path / "run", record)
    with pytest.raises(TrainingError, match="not pretrained here"):
        settings_of(tmp_path / "run")


def test_a_session_without_a_validation_window_is_refused(session, tmp_path: Path) -> None:
    start = float(session.valid_domain[0, 0])
    short = replace(session, valid_domain=np.array([[start, start + 0.2]]))
    with pytest.raises(TrainingError, match=rf"{session.session_id}: no window of 0.5 s"):
        pretrain([short], tmp_path / "run", settings())


def test_validation_takes_a_small_share_of_a_timed_run(
    session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation is due at every step here, but pauses for four times its own duration."""
    monkeypatch.setattr(trainer, "VALIDATE_EVERY_S", 1e-3)
    score, spans = trainer.Trainer._score, []

    def timed(running: trainer.Trainer) -> float:
        began = time.monotonic()
        found = max(score(running) for _ in range(3))
        spans.append((began, time.monotonic()))
        return found

    monkeypatch.setattr(trainer.Trainer, "_score", timed)
    pretrain([session], tmp_path / "run", settings(steps=None, minutes=0.15))
    due = spans[:-1]  # the last validation is at the end of the run
    assert due
    for (began, ended), (again, _) in pairwise(due):
        assert again - ended >= 3 * (ended - began)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(8, 1), (8, 2), (8, 4)])
def test_most_windows_of_a_corpus_start_from_a_carried_state(
    tmp_path: Path, batch_size: int, accumulate: int
) -> None:
    corpus = [simulate(n_units=2, minutes=0.5, subject=0, seed=seed) for seed in range(8)]
    given = settings(preset="stream", steps=10, batch_size=batch_size, accumulate=accumulate)
    shares: list[float] = []
    carried = possm._carried

    def counted(model, config, inputs, session_index):
        state = carried(model, config, inputs, session_index)
        shares.append(float((state != 0).any(dim=1).float().mean()))
        return state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(possm, "_carried", counted)
        patch.setattr(trainer, "N_VALIDATIONS", 1)
        pretrain(corpus, tmp_path / "run", given)
    assert np.mean(shares) > 0.55
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    (logged,) = [event.value for event in events.Scalars("train/carried_share")][:1]
    assert np.isclose(logged, shares).any(), "the logged share is not that of any step"


def test_a_streaming_micro_batch_of_one_window_is_refused(session, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="give --batch-size 8 or more"):
        pretrain([session], tmp_path / "run", settings(preset="stream", accumulate=4))


def test_a_corpus_needs_one_open_file_per_session(session, tmp_path: Path) -> None:
    """120 sessions open under a limit of 160 files; the usual limit is 1,024."""
    path = sessions.save(session, tmp_path)
    for number in range(119):
        os.link(path, tmp_path / f"another-{number}.h5")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))\n"
        "from streaming.sessions import format as sessions\n"
        "opened = sessions.open_all(sys.argv[1])\n"
        "print(len(opened), sum(len(s.spike_times) for s in opened))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["120", str(120 * len(session.spike_times))]


def test_a_corpus_raises_the_limit_on_open_files_or_reports_it(session, tmp_path: Path) -> None:
    path = sessions.save(session, tmp_path)
    for number in range(59):
        os.link(path, tmp_path / f"another-{number}.h5")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (40, int(sys.argv[2])))\n"
        "from decoder.errors import SessionError\n"
        "from streaming.sessions import format as sessions\n"
        "try:\n    print(len(sessions.open_all(sys.argv[1])))\n"
        "except SessionError as error:\n    print(error)"
    )

    def opened(hard: int) -> str:
        arguments = [sys.executable, "-c", code, str(tmp_path), str(hard)]
        return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout

    assert opened(400) == "60\n"
    assert "ulimit -n" in opened(50)
