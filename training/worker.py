"""Learns a calibration for the server: a process that loads torch and the model ahead of its data.

    python -m training.worker    JSON lines: `Prepare`, then an `Order`; see `streaming.lines`

It runs at the lowest priority and leaves one core alone, so that the daemon's ticks aren't late.
What was learned and the decoder in use are scored on the same held-out fifth, through the runtime
that decodes live.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch

from decoder.bundle import Bundle, open_bundle
from decoder.errors import TrainingError, VolitionError
from decoder.score import pooled_r2
from streaming import sessions
from streaming.lines import Message, say, say_problem, told_while_working
from streaming.sessions import Floats, Session, duration_s
from training import runs
from training.adapt import AdaptSettings, Method, calibrate, first_seconds
from training.families import Model
from training.labels import Labels, relabelled
from training.linear import Kind, fit_linear
from training.memory import keep_freed_memory
from training.offline import decode_split
from training.reweigh import write_adapted
from training.simulate import simulate

log = logging.getLogger("volition.worker")

SAY_EVERY_S = 0.2
SCORE_TICK_S = 0.02
WARM_UP = {"n_units": 32, "minutes": 0.5, "subject": 0, "seed": 0}  # a session to warm up with


class Prepare(msgspec.Struct, kw_only=True):
    """Load this bundle ahead."""

    prepare: str
    threads: int


class Order(msgspec.Struct, kw_only=True):
    """What to learn from which session's file, and the decoder to compare with."""

    session: str
    active: str | None
    output: str
    method: Literal[Method, Kind]
    labels: Labels
    allowed_s: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Ready:
    """What was loaded ahead."""

    bundle: Bundle
    model: Model
    record: runs.RunRecord


def prepare(path: Path) -> Ready:
    """Load a model and learn a little, so that all that is slow once is behind."""
    model, record = runs.load_model(path)
    settings = AdaptSettings(method="full", seconds=None, steps=2)
    warm_up = simulate(**WARM_UP)  # type: ignore[arg-type]
    nobody = replace(warm_up, session_id=f"warm-up-{uuid.uuid4().hex}")  # the model may know it
    calibrate(model, record, nobody, settings)
    return Ready(bundle=open_bundle(path), model=model, record=record)


def carry_out(order: Order, ready: Ready) -> dict[str, Any]:
    """Learn, write the bundle, score it and the active one."""
    began = time.monotonic()
    session = whole(relabelled(sessions.load(order.session), order.labels))
    held_out = first_seconds(session, None)
    match order.method:
        case "kalman" | "ridge" as kind:
            say(phase=kind, share=0.0)
            base = ready.bundle.manifest.decoder_id
            made, chosen = fit_linear(held_out, kind, order.output, base=base), str(kind)
        case method:
            made, chosen = _adapt(ready, session, order, method)
    learned_s = time.monotonic() - began
    say(phase="scoring", share=1.0)
    scores = {
        "candidate": score(made, held_out),
        "active": score(open_bundle(order.active), held_out) if order.active else None,
        "seconds": duration_s(held_out.valid_domain),
    }
    log.info("%s in %.1f s, all in %.1f s: %s", chosen, learned_s,
             time.monotonic() - began, scores)  # fmt: skip
    return {"method": chosen, "scores": scores, "learned_s": learned_s}


def whole(session: Session) -> Session:
    """All that was collected is for learning; its last fifth is held out by `first_seconds`."""
    return replace(session, train_domain=session.domain)


def _adapt(ready: Ready, session: Session, order: Order, method: Method) -> tuple[Bundle, str]:
    """What was learned from the base, as a bundle, and the method whose result was kept."""
    settings = AdaptSettings(
        method=method, seconds=None, allowed_s=order.allowed_s, seed=order.seed
    )
    adapted = calibrate(ready.model, ready.record, session, settings, on_step=Report())
    adapted.record.settings["base"] = ready.bundle.manifest.decoder_id
    say(phase="writing the bundle", share=1.0)
    metrics = {"validation_r2": adapted.record.best_r2}
    made = write_adapted(
        ready.bundle, adapted.model, adapted.record, session.session_id, order.output, metrics
    )
    return made, adapted.method


def score(bundle: Bundle, session: Session) -> float | None:
    """Causal R² on the held-out fifth; None where the bundle knows none of the units."""
    try:
        decoded = decode_split(bundle, session, "valid", tick_s=SCORE_TICK_S)
    except TrainingError as error:
        log.info("%s can't be scored: %s", bundle.path.name, error)
        return None
    true: Floats = session.velocity_at(decoded.times)
    return pooled_r2(true, decoded.velocity)


class Report:
    """Tells the server of progress, a few times a second."""

    def __init__(self) -> None:
        self._said_at = 0.0

    def __call__(self, share: float, held_out_r2: float, phase: str) -> None:
        if share == 0.0 or time.monotonic() - self._said_at > SAY_EVERY_S:
            self._said_at = time.monotonic()
            say(phase=phase, share=share, r2=held_out_r2)


def leave_the_daemon_alone() -> None:
    """The lowest priority, and all cores but the last."""
    os.nice(19)
    with contextlib.suppress(AttributeError, OSError):  # only Linux can choose cores
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[:-1] or cores)


def serve(messages: Iterator[Message]) -> None:
    """Load what is said first, then learn until nobody asks any more."""
    ready: Ready | None = None
    for message in messages:
        try:
            if "prepare" in message:
                ahead = msgspec.convert(message, Prepare)
                torch.set_num_threads(ahead.threads)
                ready = prepare(Path(ahead.prepare))
                say(prepared=str(ready.bundle.path))
                continue
            assert ready is not None, "an order before anything was prepared"
            say(done=carry_out(msgspec.convert(message, Order), ready))
        except VolitionError as error:
            say_problem(error)


def main() -> None:
    """Serve the process that started this one."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    leave_the_daemon_alone()
    keep_freed_memory()
    serve(told_while_working())


if __name__ == "__main__":
    main()
