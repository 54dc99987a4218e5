"""Run the jobs of a study of other days: one after another, at the same time, or over Ray.

volition study days sessions --train 10 -o study
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

from decoder.errors import TrainingError
from training.days.plan import Job, Plan, Row
from training.days.scores import run_job


def study(plan: Plan, *, jobs: int = 1, ray: str | None = None) -> Iterator[tuple[Job, list[Row]]]:
    """Run the jobs of a study; yields each with its rows as it ends.

    jobs: at the same time on this machine. ray: address of a Ray cluster whose machines share the
    plan's folders, or `auto`.
    """
    waiting = plan.jobs()
    plan.keep()
    if ray is not None:
        yield from _over_ray(waiting, ray)
    elif jobs == 1:
        for job in waiting:
            yield job, run_job(job)
    else:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            running = {pool.submit(run_job, job): job for job in waiting}
            try:
                for done in as_completed(running):
                    yield running[done], done.result()
            finally:
                pool.shutdown(cancel_futures=True)


def _over_ray(waiting: list[Job], address: str) -> Iterator[tuple[Job, list[Row]]]:
    try:
        import ray
    except ImportError as error:
        raise TrainingError("--ray needs Ray; install it with: pip install ray") from error

    ray.init(address=address, log_to_driver=False)
    try:
        remote = ray.remote(run_job)
        running = {remote.options(num_cpus=job.plan.threads).remote(job): job for job in waiting}
        left = list(running)
        while left:
            (done,), left = ray.wait(left, num_returns=1)
            yield running[done], ray.get(done)
    finally:
        ray.shutdown()
