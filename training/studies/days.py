"""Accuracy on other days of a subject, by seconds of labels, next to what else could decode them.

    volition study days sessions --train 10 -o study

Models are pretrained on the first days (the last ones with `backward`). Every other day is then
decoded as it is, and after adaptation to its first seconds. The baselines are a GRU that was
trained on the same days as if they were one, with and without fine-tuning, and ridge regression, a
Kalman filter, a GRU and a model from scratch that know only the same seconds of that day.

A job is one model and one seed. It appends a row for each score to a file of its own, so a study
that was interrupted goes on where it stopped. R² is causal, on each day's test domain.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decoder.errors import TrainingError
from streaming.sessions import format as sessions
from streaming.sessions.session import Session
from training.baselines.gru import Gru
from training.baselines.kalman import Kalman
from training.baselines.multiday import N_STEPS, MultiDayGru
from training.baselines.ridge import Ridge, evaluation_times, r2
from training.calibration.adapt import (
    AdaptSettings,
    Method,
    calibrate,
    first_seconds,
    hold_out_last_fifth,
)
from training.evaluation.plots import COLOURS, finish
from training.models.families import Model
from training.pretraining import runs
from training.pretraining.newcomer import with_session
from training.pretraining.pretrain import pretrain
from training.pretraining.scoring import decode_windows, window_source
from training.pretraining.settings import PretrainSettings

STEP_S = 0.05  # between scored instants
AT_ZERO, AT_ALL = 5.0, 960.0  # where a logarithmic axis has "0" and "all"
STYLES = ("-", "--", ":")
BASELINES: dict[str, Callable[[Session], Any]] = {"ridge": Ridge, "kalman": Kalman, "gru": Gru}
MULTI_DAY, OWN_DAY = "multi-day gru", "own day"
AS_IS, FINE_TUNED = "as is", "fine-tuned"

Row = dict[str, Any]
Network = Callable[[], MultiDayGru]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study trains and scores.

    folder: sessions of one subject. output: folder for runs and rows.
    n_train: number of days to pretrain on: the first, or with `backward` the last.
    without: ids of sessions to leave out of pretraining, though they are among those days.
    seconds: labelled seconds of a new day; None for its whole training domain.
    """

    folder: Path
    output: Path
    n_train: int
    backward: bool = False
    without: tuple[str, ...] = ()
    presets: tuple[str, ...] = ("stream", "rt")
    seeds: tuple[int, ...] = (0, 1)
    seconds: tuple[float | None, ...] = (20.0, 60.0, 240.0, None)
    methods: tuple[Method, ...] = ("units", "full", "scratch")
    minutes: float | None = 20.0
    steps: int | None = None
    network_steps: int = N_STEPS  # of the multi-day GRU
    threads: int = 1

    def days(self) -> list[Session]:
        """The sessions in order of their dates. Raises TrainingError if a date is missing."""
        found = sessions.open_all(self.folder)
        if undated := [day.session_id for day in found if day.recorded_at is None]:
            raise TrainingError(f"{undated[0]} has no date; expected sessions of known days")
        ordered = sorted(found, key=lambda day: day.recorded_at)  # type: ignore[arg-type, return-value]
        return ordered[::-1] if self.backward else ordered

    def train(self) -> list[Session]:
        """The days that models are pretrained on."""
        return [d for d in self.days()[: self.n_train] if d.session_id not in self.without]

    def test(self) -> list[Session]:
        """The days that are decoded."""
        if not (days := self.days()[self.n_train :]):
            raise TrainingError(f"{self.folder} has no day after the first {self.n_train}")
        return [day for day in days if day.session_id not in self.without]


@dataclass(frozen=True)
class Job:
    """One model and one seed of a study. model: a preset, `multi-day gru`, or `own day`."""

    plan: Plan
    model: str
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.model.replace(' ', '-')}-{self.seed}"


def jobs_of(plan: Plan) -> list[Job]:
    """The jobs of a study, the longest first."""
    presets = [Job(plan, preset, seed) for seed in plan.seeds for preset in plan.presets]
    networks = [Job(plan, MULTI_DAY, seed) for seed in plan.seeds]
    return [*presets, *networks, Job(plan, OWN_DAY)]


@dataclass
class _Rows:
    """The rows of one job on disk."""

    path: Path
    known: dict[tuple[Any, ...], Row] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> _Rows:
        """Read what an earlier run of the job wrote; a line that was cut off is dropped."""
        rows = cls(path)
        if path.exists():
            whole = path.read_bytes().rpartition(b"\n")[0]
            path.write_bytes(whole + b"\n" if whole else b"")
            for line in whole.splitlines():
                row = json.loads(line)
                rows.known[row["day"], row["seconds"], row["method"]] = row
        return rows

    def add(
        self, day: Session, seconds: float | None, method: str,
        score: Callable[..., float], *given: Any,
    ) -> None:  # fmt: skip
        """Append the row of `score(*given)`, unless it is there."""
        key = (day.session_id, seconds, method)
        if key in self.known:
            return
        began = time.perf_counter()
        value = score(*given)
        row = {
            "day": day.session_id, "seconds": seconds, "method": method, "r2": round(value, 4),
            "took_s": round(time.perf_counter() - began, 2),
        }  # fmt: skip
        self.known[key] = row
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def run_job(job: Job) -> list[Row]:
    """Train and score one model; returns its rows."""
    torch.set_num_threads(job.plan.threads)
    job.plan.output.mkdir(parents=True, exist_ok=True)
    rows = _Rows.open(job.plan.output / f"{job.name}.jsonl")
    if job.model == MULTI_DAY:
        _score_network(job, rows)
    elif job.model == OWN_DAY:
        _score_own_day(job, rows)
    else:
        _score_model(job, rows)
    apart = _days_apart(job.plan)
    return [
        row | {"model": job.model, "seed": job.seed, "apart": apart[row["day"]]}
        for row in rows.known.values()
    ]


def _score_model(job: Job, rows: _Rows) -> None:
    model, record = _pretrained(job)
    for day in job.plan.test():
        rows.add(day, 0.0, AS_IS, _as_is, model, record, day)
        for seconds in job.plan.seconds:
            for method in job.plan.methods:
                settings = AdaptSettings(method=method, seconds=seconds, seed=job.seed)
                rows.add(day, seconds, method, _adapted, model, record, day, settings)


def _as_is(model: Model, record: runs.RunRecord, day: Session) -> float:
    return scored(*with_session(model, record, day, reads="nothing"), day)


def _adapted(model: Model, record: runs.RunRecord, day: Session, settings: AdaptSettings) -> float:
    adapted = calibrate(model, record, day, settings)
    return scored(adapted.model, adapted.record, day)


def _pretrained(job: Job) -> tuple[Model, runs.RunRecord]:
    """The job's pretrained model; an unfinished run is resumed."""
    plan, run = job.plan, job.plan.output / "runs" / job.name
    settings = PretrainSettings(
        preset=job.model, minutes=plan.minutes, steps=plan.steps, seed=job.seed,
        threads=plan.threads,
    )  # fmt: skip
    exists = (run / "run.json").exists()
    if not exists or not runs.load_record(run).unit_tuning:  # which is written at its end
        pretrain(plan.train(), run, settings, resume=exists)
    return runs.load_model(run)


def scored(model: Model, record: runs.RunRecord, day: Session) -> float:
    """Mean causal R² on a day's test domain."""
    source = window_source([day], model, record.config(), record)
    true, decoded = decode_windows(model, record.config(), source, 0, "test", step_s=STEP_S)
    return r2(true, decoded).r2_mean


def _score_network(job: Job, rows: _Rows) -> None:
    @cache
    def network() -> MultiDayGru:
        return MultiDayGru(job.plan.train(), steps=job.plan.network_steps, seed=job.seed)

    for day in job.plan.test():
        rows.add(day, 0.0, AS_IS, _decoded, network, day)
        for seconds in job.plan.seconds:
            rows.add(day, seconds, FINE_TUNED, _fine_tuned, network, day, seconds, job.seed)


def _fine_tuned(network: Network, day: Session, seconds: float | None, seed: int) -> float:
    tuned = network().fine_tuned(_labelled(day, seconds), seed=seed)
    return _decoded(lambda: tuned, day)


def _decoded(network: Network, day: Session) -> float:
    times = evaluation_times(day, "test", step_s=STEP_S)
    return r2(day.velocity_at(times), network().decode(day, times)).r2_mean


def _score_own_day(job: Job, rows: _Rows) -> None:
    for day in job.plan.test():
        for seconds in job.plan.seconds:
            for name, baseline in BASELINES.items():
                rows.add(day, seconds, name, _own_day, baseline, day, seconds)


def _own_day(baseline: Callable[[Session], Any], day: Session, seconds: float | None) -> float:
    labelled = hold_out_last_fifth(_labelled(day, seconds))
    times = evaluation_times(day, "test", step_s=STEP_S)
    decoder = baseline(replace(labelled, test_domain=day.test_domain))
    return r2(day.velocity_at(times), decoder.decode(times)).r2_mean


def _labelled(day: Session, seconds: float | None) -> Session:
    return day if seconds is None else first_seconds(day, seconds)


def _days_apart(plan: Plan) -> dict[str, int]:
    """Days between each tested day and the nearest day of pretraining."""
    trained = [day.recorded_at for day in plan.train()]
    return {
        day.session_id: min(abs((day.recorded_at - other).days) for other in trained)  # type: ignore[operator]
        for day in plan.test()
    }


def study(plan: Plan, *, jobs: int = 1) -> Iterator[tuple[Job, list[Row]]]:
    """Run the jobs of a study, `jobs` at a time; yields each with its rows as it ends."""
    waiting = jobs_of(plan)
    plan.test()  # raises before anything is trained
    if jobs == 1:
        for job in waiting:
            yield job, run_job(job)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(run_job, job): job for job in waiting}
        for done in as_completed(running):
            yield running[done], done.result()


def table(rows: Sequence[Row]) -> list[tuple[str, dict[str, float]]]:
    """R² by model and method, each a dictionary by seconds: means over days and seeds."""
    cells: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        column = "all" if row["seconds"] is None else f"{row['seconds']:g}"
        of_model = cells.setdefault((row["model"], row["method"]), {})
        of_model.setdefault(column, []).append(row["r2"])
    merged: dict[str, dict[str, float]] = {}
    for (model, method), columns in cells.items():
        name = method if model == OWN_DAY else f"{model}, {method}"
        merged[name] = {column: float(np.mean(values)) for column, values in columns.items()}
    return list(merged.items())


def as_json(rows: Sequence[Row]) -> str:
    """The rows as a JSON document; `seconds` null is the whole training domain."""
    return json.dumps(list(rows), indent=1) + "\n"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Plot R² over the seconds of labels, means over days and seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for number, (name, cells) in enumerate(table(rows)):
        points = sorted((_place(column), score) for column, score in cells.items())
        axes.plot(
            *zip(*points, strict=True), marker="o", ms=3, label=name,
            color=COLOURS[number % len(COLOURS)], ls=STYLES[number // len(COLOURS) % len(STYLES)],
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_ylim(bottom=0.0)
    columns = sorted({column for _, cells in table(rows) for column in cells}, key=_place)
    axes.set_xticks([_place(column) for column in columns], columns)
    axes.minorticks_off()
    finish(figure, axes, path, x="seconds of labels on the new day", y="causal R²")


def _place(column: str) -> float:
    """Where a logarithmic axis shows a column of the table."""
    return AT_ALL if column == "all" else max(float(column), AT_ZERO)
