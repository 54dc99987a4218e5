"""The scores of one job of a study: a model is trained, and decodes each day with more labels.

R² is causal, on each day's test domain.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from streaming.sessions.session import Session
from training.baselines.gru import Gru
from training.baselines.kalman import Kalman
from training.baselines.multiday import MultiDayGru
from training.baselines.ridge import Ridge, evaluation_times, r2
from training.calibration.adapt import AdaptSettings, calibrate
from training.calibration.blocks import first_seconds, hold_out_last_fifth
from training.days.plan import MULTI_DAY, OWN_DAY, SPIKES, TOGETHER, Job, Row, Rows
from training.models.config import PossmConfig
from training.models.families import Model, preset
from training.pretraining import runs
from training.pretraining.newcomer import with_session
from training.pretraining.pretrain import pretrain
from training.pretraining.scoring import decode_windows, window_source
from training.pretraining.settings import PretrainSettings

STEP_S = 0.05  # between scored instants
BASELINES: dict[str, Callable[[Session], Any]] = {"ridge": Ridge, "kalman": Kalman, "gru": Gru}
AS_IS, FINE_TUNED = "as is", "fine-tuned"
TOGETHER_SHARE = 0.25  # of the time of pretraining

Learned = tuple[Model, runs.RunRecord]
Network = Callable[[], MultiDayGru]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row to compute. seconds: of labels; 0 for none, None for the whole training domain."""

    day: Session
    seconds: float | None
    method: str
    score: Callable[[], float]


def run_job(job: Job) -> list[Row]:
    """Train and score one model; returns its rows, those of earlier runs too."""
    torch.set_num_threads(job.plan.threads)
    job.plan.output.mkdir(parents=True, exist_ok=True)
    rows = Rows(job.plan.output / f"{job.name}.jsonl")
    tasks = {MULTI_DAY: _of_network, OWN_DAY: _of_own_day}.get(job.model, _of_model)
    for task in tasks(job):
        if (task.day.session_id, task.seconds, task.method) in rows:
            continue
        began = time.perf_counter()
        score = task.score()
        rows.add(
            {
                "day": task.day.session_id,
                "seconds": task.seconds,
                "method": task.method,
                "r2": round(score, 4),
                "took_s": round(time.perf_counter() - began, 2),
                "model": job.model,
                "seed": job.seed,
                "apart": job.apart(task.day),
            }
        )
    return list(rows)


def _of_model(job: Job) -> Iterator[Task]:
    @cache
    def pretrained() -> Learned:
        return _pretrained(job, job.name, job.training_days())

    for day in job.days():
        yield Task(day=day, seconds=0.0, method=AS_IS, score=partial(_as_is, pretrained, day))
        for method in _methods(job):
            for seconds in (None,) if method == TOGETHER else job.plan.seconds:
                score = partial(_with_labels, job, pretrained, day, seconds, method)
                yield Task(day=day, seconds=seconds, method=method, score=score)


def _methods(job: Job) -> list[str]:
    """The plan's methods that a job's model can be adapted by."""
    is_streaming = isinstance(preset(job.model), PossmConfig)
    return [method for method in job.plan.methods if method != "align" or is_streaming]


def _as_is(pretrained: Callable[[], Learned], day: Session) -> float:
    return scored(*with_session(*pretrained(), day, reads="nothing"), day)


def _with_labels(
    job: Job, pretrained: Callable[[], Learned], day: Session, seconds: float | None, method: str
) -> float:
    return scored(*_learned(job, pretrained, day, seconds, method), day)


def _learned(
    job: Job,
    pretrained: Callable[[], Learned],
    day: Session,
    seconds: float | None,
    method: str,
) -> Learned:
    """The model after it has learned the first seconds of a day."""
    if method == TOGETHER:
        pretrained()
        return _pretrained(
            job,
            f"{job.name}-{day.session_id}",
            [*job.training_days(), hold_out_last_fifth(day)],
            base=_run(job, job.name),
        )
    if method == SPIKES:
        return with_session(*pretrained(), _labelled(day, seconds), reads="spikes")
    settings = AdaptSettings(method=method, seconds=seconds, seed=job.seed)  # type: ignore[arg-type]
    adapted = calibrate(*pretrained(), day, settings)
    return adapted.model, adapted.record


def _pretrained(job: Job, name: str, days: list[Session], base: Path | None = None) -> Learned:
    """A model pretrained on days; an unfinished run is resumed."""
    plan, run = job.plan, _run(job, name)
    part = 1.0 if base is None else TOGETHER_SHARE
    settings = PretrainSettings(
        preset=job.model,
        minutes=None if plan.minutes is None else part * plan.minutes,
        steps=None if plan.steps is None else max(1, round(part * plan.steps)),
        seed=job.seed, threads=plan.threads, base=None if base is None else str(base),
    )  # fmt: skip
    pretrain(days, run, settings, resume=(run / "run.json").exists())
    return runs.load_model(run)


def _run(job: Job, name: str) -> Path:
    return job.plan.output / "runs" / name


def scored(model: Model, record: runs.RunRecord, day: Session) -> float:
    """Mean causal R² on a day's test domain."""
    config = record.config().training_on([day.train_domain])
    source = window_source([day], model, config, record)
    true, decoded = decode_windows(model, config, source, 0, "test", step_s=STEP_S)
    return r2(true, decoded).r2_mean


def _of_network(job: Job) -> Iterator[Task]:
    @cache
    def network() -> MultiDayGru:
        return MultiDayGru(job.training_days(), steps=job.plan.network_steps, seed=job.seed)

    for day in job.days():
        yield Task(day=day, seconds=0.0, method=AS_IS, score=partial(_decoded, network, day))
        for seconds in job.plan.seconds:
            score = partial(_fine_tuned, network, day, seconds, job.seed)
            yield Task(day=day, seconds=seconds, method=FINE_TUNED, score=score)


def _fine_tuned(network: Network, day: Session, seconds: float | None, seed: int) -> float:
    tuned = network().fine_tuned(_labelled(day, seconds), seed=seed)
    return _decoded(lambda: tuned, day)


def _decoded(network: Network, day: Session) -> float:
    times = evaluation_times(day, "test", step_s=STEP_S)
    return r2(day.velocity_at(times), network().decode(day, times)).r2_mean


def _of_own_day(job: Job) -> Iterator[Task]:
    for day in job.days():
        for seconds in job.plan.seconds:
            for name, baseline in BASELINES.items():
                score = partial(_own_day, baseline, day, seconds)
                yield Task(day=day, seconds=seconds, method=name, score=score)


def _own_day(baseline: Callable[[Session], Any], day: Session, seconds: float | None) -> float:
    labelled = hold_out_last_fifth(_labelled(day, seconds))
    times = evaluation_times(day, "test", step_s=STEP_S)
    decoder = baseline(replace(labelled, test_domain=day.test_domain))
    return r2(day.velocity_at(times), decoder.decode(times)).r2_mean


def _labelled(day: Session, seconds: float | None) -> Session:
    return day if seconds is None else first_seconds(day, seconds)
