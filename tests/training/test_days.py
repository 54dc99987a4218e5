"""The study of other days: what it trains and scores, and how it goes on where it stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from clients.cli.main import app
from decoder.errors import SettingsError, TrainingError
from streaming.sessions import format as sessions
from tests.training.test_identity import part
from training.baselines.multiday import MultiDayGru
from training.baselines.ridge import evaluation_times, r2
from training.data.simulate import simulate
from training.days import scores
from training.days.plan import METHODS, Plan
from training.days.report import table
from training.days.study import study

CHEAP = ("unlabelled", "together")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three days of one subject whose units keep their identity, of 2 minutes each."""
    made = tmp_path_factory.mktemp("days")
    session = simulate(n_units=24, minutes=6.0, subject=3, seed=5)
    for number in range(3):
        day = part(session, 120.0 * number, 120.0 * (number + 1), f"day{number}")
        recorded = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=7 * number)
        sessions.save(replace(day, recorded_at=recorded), made)
    return made


def plan(folder: Path, output: Path, **changes) -> Plan:
    given = {
        "n_train": 2, "presets": ("stream",), "seeds": (0,), "seconds": (20.0,),
        "methods": ("units", "align"), "minutes": None, "steps": 10, "network_steps": 100,
    } | changes  # fmt: skip
    return Plan(folder=folder, output=output, **given)


@pytest.fixture(scope="module")
def studied(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """A study's output folder and rows."""
    output = tmp_path_factory.mktemp("study")
    return output, [row for _, of_job in study(plan(folder, output)) for row in of_job]


def test_a_study_scores_every_decoder(studied) -> None:
    _, rows = studied
    assert {row["day"] for row in rows} == {"day2"}
    assert {row["apart"] for row in rows if row["model"] != "own day"} == {7}
    lines = table(rows)
    assert set(lines) == {
        "stream, as is", "stream, align", "stream, units",
        "multi-day gru, as is", "multi-day gru, fine-tuned",
        "ridge", "kalman", "gru",
    }  # fmt: skip
    assert set(lines["stream, as is"]) == {"0"}
    assert set(lines["ridge"]) == set(lines["stream, units"]) == {"20"}
    assert all(np.isfinite(row["r2"]) for row in rows)


def test_a_study_goes_on_where_it_stopped(
    studied, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, rows = studied
    file = output / "own-day-0.jsonl"
    file.write_bytes(file.read_bytes()[:-20])  # killed while it wrote the last row
    for name in ("calibrate", "MultiDayGru", "pretrain"):  # nothing known is computed again
        monkeypatch.setattr(scores, name, None)
    again = [row for _, of_job in study(plan(folder, output)) for row in of_job]
    assert [row | {"took_s": 0} for row in again] == [row | {"took_s": 0} for row in rows]
    assert len(file.read_text().splitlines()) == 3


def test_a_folder_with_the_rows_of_another_plan_is_refused(studied, folder: Path) -> None:
    output, _ = studied
    with pytest.raises(TrainingError, match="a study with n_train 2, not 1; choose another folder"):
        next(study(plan(folder, output, n_train=1)))
    plan(folder, output, seconds=(20.0, None), methods=METHODS).keep()  # more rows


def test_methods_without_a_gradient_and_together_are_scored(folder: Path, tmp_path: Path) -> None:
    every = plan(folder, tmp_path, presets=("stream", "rt"), methods=CHEAP, steps=4)
    models = [job for job in every.jobs() if job.model in every.presets]
    rows = [row for job in models for row in scores.run_job(job)]
    lines = table(rows)
    for preset in every.presets:
        for method in ("as is", *CHEAP):
            assert np.isfinite(list(lines[f"{preset}, {method}"].values())).all()
    assert list(lines["rt, together"]) == ["all"]
    with pytest.raises(
        TrainingError, match="2 days to train on; the method instant needs at least 4"
    ):
        plan(folder, tmp_path, methods=METHODS).jobs()
    with pytest.raises(TrainingError, match="method 'some'; expected one of unlabelled, align"):
        plan(folder, tmp_path, methods=("some",))


def test_days_are_in_order_and_may_be_left_out(folder: Path, tmp_path: Path) -> None:
    (backward,) = plan(folder, tmp_path, backward=True).splits()
    assert (backward.train, backward.test) == (("day2", "day1"), ("day0",))
    (without,) = plan(folder, tmp_path, without=("day0",), n_train=1).splits()
    assert (without.train, without.test) == (("day1",), ("day2",))
    names = [job.name for job in plan(folder, tmp_path).jobs()]
    assert names == ["stream-0", "multi-day-gru-0", "own-day-0"]
    with pytest.raises(TrainingError, match="expected 1 to 2 of the 3 days"):
        plan(folder, tmp_path, n_train=3).splits()


def test_each_day_is_decoded_by_a_model_of_the_others(folder: Path, tmp_path: Path) -> None:
    jobs = plan(folder, tmp_path, leave_one_out=True).jobs()
    assert [job.name for job in jobs] == [
        *(f"stream-0-without-day{n}" for n in range(3)),
        *(f"multi-day-gru-0-without-day{n}" for n in range(3)),
        "own-day-0",
    ]
    for job in jobs[:3]:
        (day,) = job.days()
        assert {day.session_id, *(d.session_id for d in job.training_days())} == {
            "day0", "day1", "day2",
        }  # fmt: skip
        assert job.apart(day) == 7
    assert jobs[-1].split.test == ("day0", "day1", "day2")


CLUSTER = """
import ray
ray.init(num_cpus=2, include_dashboard=False)
print(ray.get_runtime_context().gcs_address, flush=True)
input()
"""


@pytest.mark.slow
def test_jobs_run_over_ray(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # of a cluster for this test alone
    small = plan(folder, tmp_path, steps=2, network_steps=20)
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as cluster:
        lines = iter(cluster.stdout.readline, "")
        address = next(line.strip() for line in lines if ":" in line.split()[-1])
        done = {job.name: rows for job, rows in study(small, ray=address)}
        cluster.communicate("\n")
    assert set(done) == {"stream-0", "multi-day-gru-0", "own-day-0"}
    assert all(done.values())


def test_a_session_without_a_date_is_refused(tmp_path: Path) -> None:
    sessions.save(simulate(n_units=4, minutes=1.0), tmp_path)
    with pytest.raises(TrainingError, match="has no date"):
        plan(tmp_path, tmp_path).days()


def test_the_command_prints_a_table_and_writes_a_plot(studied, folder: Path) -> None:
    output, rows = studied
    arguments = [str(folder), "-o", str(output), "--train", "2", "--seeds", "1", "--preset",
                 "stream", "--steps", "10", "--network-steps", "100",
                 "--seconds", "20", "--method", "units"]  # fmt: skip
    done = CliRunner().invoke(app, ["study", "days", *arguments])
    assert done.exit_code == 0, done.output
    assert "multi-day gru, fine-tuned" in done.output
    assert len(json.loads((output / "days.json").read_text())) == len(rows)
    assert "causal R²" in (output / "days.svg").read_text()


@pytest.mark.parametrize("seconds", ["2", "nan", "some"])
def test_impossible_seconds_are_refused(folder: Path, tmp_path: Path, seconds: str) -> None:
    arguments = [str(folder), "-o", str(tmp_path), "--train", "2", "--seconds", seconds]
    refused = CliRunner().invoke(app, ["study", "days", *arguments])
    assert isinstance(refused.exception, SettingsError)
    assert "or all" in str(refused.exception)


def test_a_network_of_many_days_decodes_and_is_fine_tuned(folder: Path) -> None:
    first, second, third = (sessions.load(folder / f"day{number}.h5") for number in range(3))
    network = MultiDayGru([first, second], steps=300)
    times = evaluation_times(third, "test")
    true = third.velocity_at(times)
    as_is = r2(true, network.decode(third, times)).r2_mean
    assert as_is > 0.2
    tuned = network.fine_tuned(third, steps=50)
    assert r2(true, tuned.decode(third, times)).r2_mean not in (as_is, pytest.approx(0.0, abs=0.2))
    assert r2(true, network.decode(third, times)).r2_mean == as_is, "fine-tuning changed the first"
    with pytest.raises(TrainingError, match="other units"):
        MultiDayGru([first, replace(second, unit_ids=tuple(f"x{i}" for i in range(24)))])
