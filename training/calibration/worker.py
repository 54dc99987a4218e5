"""The server's training process: loads torch and the model in advance, then trains on request.

    python -m training.calibration.worker    # JSON lines: `Prepare`, then an `Order`

It runs at the lowest priority and leaves one core free, so that the daemon's ticks are not late.
The candidate is trained on all labelled seconds, of one block or several
(`training.calibration.blocks`). It is compared with the active decoder by cross-validation
(`training.calibration.crossval`), through the runtime that decodes live. `align` without usable
labels learns from the first two thirds instead, and both decoders are compared on the last.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from threadpoolctl import threadpool_limits

from decoder.arrays import Floats
from decoder.bundles.bundle import Bundle, open_bundle
from decoder.errors import TrainingError, VolitionError
from decoder.stopwatch import Stopwatch
from decoder.traces import Traces, TracesError
from streaming.sessions import format as sessions
from streaming.sessions.session import Session
from streaming.wire.lines import Message, parent_messages_or_exit, send, send_problem
from training.baselines.linear import Kind
from training.calibration.adapt import Method
from training.calibration.blocks import joined
from training.calibration.candidate import COMPARING, Plan, Ready, prepare, train_candidate
from training.calibration.crossval import SCORE_TICK_S, held_out_third, without_labels
from training.calibration.excluded import without_excluded
from training.calibration.labels import OWN, Labels, relabelled
from training.evaluation.offline import decode_split
from training.pretraining.process import keep_freed_memory

log = logging.getLogger("volition.worker")

SAY_EVERY_S = 0.2
NO_EVIDENCE = (
    "the labels come from the active decoder's own output, so they can't show whether the "
    "candidate is better; compare them in use"
)


class Prepare(msgspec.Struct, kw_only=True):
    """Request to load a bundle in advance, for a method."""

    prepare: str
    method: Literal[Method, Kind]
    threads: int


class Order(msgspec.Struct, kw_only=True):
    """Request to train on the blocks in some session files, and to compare with the active decoder.

    sessions: paths, in any order.
    labelled: whether labels can judge the candidate; if false, the method must be `align`.
    excluded: ids of units that the operator has excluded from decoding.
    traces: file for the velocities that were compared.
    """

    sessions: list[str]
    active: str | None
    output: str
    method: Literal[Method, Kind]
    labels: Labels
    labelled: bool = True
    allowed_s: float
    seed: int
    excluded: list[str] = []
    traces: str | None = None


def carry_out(order: Order, ready: Ready) -> dict[str, Any]:
    """Train, write the bundle, and compare with the active decoder.

    Sends `made` once the bundle is on disk.
    """
    report = Report()
    report(0.0, 0.0, "loading")
    traces_path = Path(order.traces) if order.traces else None
    if traces_path is not None:
        with contextlib.suppress(OSError):
            traces_path.unlink()  # those of a training that was cut short
    active = open_bundle(order.active) if order.active else None
    loaded = [whole(sessions.load(path)) for path in order.sessions]
    left_out = [without_excluded(block, order.excluded) for block in loaded]
    blocks = [block for block, _ in left_out]
    if order.labelled:
        decode = partial(_decoded_by, active)
        blocks = [relabelled(block, order.labels, decode=decode) for block in blocks]
    session = joined(blocks)
    if not order.labelled:
        session = held_out_third(session)
    plan = Plan(
        method=order.method, allowed_s=order.allowed_s, seed=order.seed,
        compares=order.labelled and order.labels not in OWN,
    )  # fmt: skip
    done = train_candidate(
        session, active, Path(order.output), plan, ready, report,
        on_made=lambda made: send(made=str(made.path)),
    )  # fmt: skip
    excluded = dict.fromkeys(note for _, block_notes in left_out for note in block_notes)
    traces, unlabelled, notes = done.traces, None, [*excluded, *done.notes]
    if not order.labelled:
        report(1.0, 0.0, COMPARING)
        opened = dict(ready.opened)
        found, traces = without_labels(done.made, session, active, opened=opened)
        unlabelled = asdict(found)
    if traces is not None and traces_path is not None:
        notes += _stored(traces, traces_path)
    took_s = report.stopwatch.total_s
    log.info("%s in %.1f s: R² %s, active %s; %s", done.method, took_s, done.evidence.r2(),
             done.evidence.active_r2(), [*done.doubts, *notes])  # fmt: skip
    return {
        "method": done.method,
        "evidence": done.evidence.as_lists(),
        "unlabelled": unlabelled,
        "doubts": done.doubts if plan.compares or unlabelled else [*done.doubts, NO_EVIDENCE],
        "notes": notes,
        "learned_s": took_s,
        "phases_s": report.phases_s(),
    }


def _stored(traces: Traces, path: Path) -> list[str]:
    """Write the traces; returns a note if that fails, as the candidate matters more."""
    try:
        traces.save(path)
    except TracesError as error:
        log.error("%s", error)
        return [f"the traces are not stored: {error}"]
    return []


def _decoded_by(active: Bundle | None, session: Session) -> tuple[Floats, Floats]:
    """Times and velocity that the active decoder makes of a session's training domain."""
    if active is None:
        raise TrainingError("no decoder is in use, whose output could be labels")
    decoded = decode_split(active, session, "train", tick_s=SCORE_TICK_S)
    return decoded.times, decoded.velocity


def whole(session: Session) -> Session:
    """The session with its whole domain as training domain."""
    return replace(session, train_domain=session.domain)


class Report:
    """Reports progress to the server: a new phase at once, else a few times a second."""

    def __init__(self) -> None:
        self._said_at, self._phase = 0.0, ""
        self.stopwatch = Stopwatch()

    def phases_s(self) -> dict[str, float]:
        """The duration of each phase, s; ends the last."""
        self.stopwatch.lap(self._phase)
        return self.stopwatch.phases_s

    def __call__(self, share: float, held_out_r2: float, phase: str) -> None:
        if phase != self._phase or time.monotonic() - self._said_at > SAY_EVERY_S:
            if self._phase:
                self.stopwatch.lap(self._phase)
            self._said_at, self._phase = time.monotonic(), phase
            send(phase=phase, share=share, r2=held_out_r2)


def leave_the_daemon_alone() -> None:
    """Run at the lowest priority, on all cores except the last."""
    os.nice(19)
    with contextlib.suppress(AttributeError, OSError):  # only Linux can select cores
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[:-1] or cores)


def serve(messages: Iterator[Message]) -> None:
    """Handle requests until the input ends."""
    ready: Ready | None = None
    for message in messages:
        try:
            if "prepare" in message:
                ahead = msgspec.convert(message, Prepare)
                torch.set_num_threads(ahead.threads)
                threadpool_limits(ahead.threads)  # of numpy's matrix products, which spin else
                ready = prepare(
                    Path(ahead.prepare), ahead.method, lambda phase: send(preparing=phase)
                )
                send(prepared=str(ready.bundle.path))
                continue
            assert ready is not None, "an Order came before a Prepare"
            send(done=carry_out(msgspec.convert(message, Order), ready))
        except VolitionError as error:
            send_problem(error)


def main() -> None:
    """Handle requests of the parent process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    leave_the_daemon_alone()
    keep_freed_memory()
    serve(parent_messages_or_exit())


if __name__ == "__main__":
    main()
