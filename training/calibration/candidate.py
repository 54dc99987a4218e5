"""Trains the candidate of a calibration, and cross-validates it against the active decoder.

One model is adapted per fold, to the other folds, from the same pretrained model. Each is scored on
its own fold (`training.calibration.crossval`), and the mean of their weights is the candidate. So
the candidate has learned from every second, and no training time goes to evaluation alone.
Fine-tuned models of one pretrained model average well (model soups: Wortsman et al., ICML 2022);
docs/RECALIBRATION.md has measurements. Methods that don't start from a pretrained model are trained
once more, on all seconds.

Callers: `training.calibration.worker`, `training.studies.trust`.
"""

from __future__ import annotations

import atexit
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from decoder.arrays import Bools
from decoder.bundles.bundle import GRAPH, Bundle, open_bundle
from decoder.gate import Evidence
from decoder.runtimes.base import Runtime
from decoder.runtimes.opening import open_runtime
from decoder.traces import Traces
from streaming.sessions.session import Session
from training.baselines.linear import Kind, fit_linear
from training.calibration.adapt import (
    Adapted,
    AdaptSettings,
    Method,
    OnStep,
    calibrate,
    has_other_states,
)
from training.calibration.blocks import hold_out_last_fifth
from training.calibration.crossval import N_FOLDS, SCORE_TICK_S, Compared, cross_validate
from training.calibration.doubts import doubts
from training.calibration.excluded import with_units, without_copies
from training.data.simulate import simulate
from training.exports.export import export_model, folded, takes_readout
from training.exports.reweigh import write_adapted
from training.models.families import Model
from training.pretraining import runs
from training.pretraining.scoring import usual_states

# `instant` compares fewer instants, so that it is ready sooner. The errors of reach decoders are
# correlated over 0.2 to 0.5 s, so little is lost.
INSTANT_TICK_S, INSTANT_COMPARED_S = 0.2, 40.0
COMPARING = "comparing"  # a phase
OWN_SHARE = 0.4  # share of the time limit for training once more on all seconds
WHOLE = ("instant", "align")  # methods whose candidate is made before it is compared
OnMade = Callable[[Bundle], None]
WARM_UP = {"n_units": 32, "minutes": 0.5, "subject": 0, "seed": 0}  # of a simulation


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A pretrained decoder, loaded in advance.

    bundle: the decoder itself, or the same with a graph that adapted models can share, if it is of
        bundle version 1.
    opened: warm runtimes by the checksum of their graphs, see `decode_split`.
    """

    bundle: Bundle
    model: Model
    record: runs.RunRecord
    opened: dict[str, Runtime] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to train.

    allowed_s: time limit in seconds for all folds together; None for no limit.
    steps: steps of the method's last phase; None for the default of the method.
    compares: whether to compare with the active decoder.
    """

    method: Method | Kind
    allowed_s: float | None
    steps: int | None = None
    seed: int = 0
    compares: bool = True


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """The candidate of a calibration, with the evidence for and against it.

    method: the method whose result was kept.
    traces: the velocities that the evidence comes from; None if nothing was compared.
    doubts: warnings for the operator (`training.calibration.doubts`).
    notes: which units were left out (`training.calibration.excluded`).
    """

    made: Bundle
    method: str
    evidence: Evidence
    traces: Traces | None
    doubts: list[str]
    notes: list[str]


def prepare(
    path: Path,
    method: Method | Kind = "auto",
    on_step: Callable[[str], None] = lambda phase: None,
) -> Ready:
    """Load a bundle and calibrate it to a simulation, so that the calibration loses no time.

    on_step: called with the name of each step.
    """
    on_step("loading")
    model, record = runs.load_model(path)
    bundle = open_bundle(path)
    if not takes_readout(bundle):
        bundle = _exported_again(bundle, model, record)
    on_step("warming up")
    runtime = open_runtime(bundle, epoch=0.0)
    runtime.warm_up()
    opened = {bundle.manifest.checksums[GRAPH]: runtime}
    ready = Ready(bundle=bundle, model=model, record=record, opened=opened)
    warm_up = unknown_to(record, simulate(**WARM_UP))  # type: ignore[arg-type]
    if method == "instant":
        plan = Plan(method=method, allowed_s=None)
        with tempfile.TemporaryDirectory() as folder:
            train_candidate(warm_up, None, Path(folder, "warm-up.bundle"), plan, ready)
    else:
        settings = AdaptSettings(method="full", seconds=None, steps=2)
        calibrate(model, record, warm_up, settings)
    return ready


def _exported_again(bundle: Bundle, model: Model, record: runs.RunRecord) -> Bundle:
    """A bundle of version 1 in the present version, in a folder that goes with the process."""
    folder, manifest = tempfile.mkdtemp(), bundle.manifest
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    word = next(w for w in record.session_words if w.removeprefix("/") == manifest.session_id)
    made = export_model(model, record, word, Path(folder, bundle.path.name))
    same = made.manifest.model_copy(update={"decoder_id": manifest.decoder_id})
    return replace(made, manifest=same)


def unknown_to(record: runs.RunRecord, session: Session) -> Session:
    """The session under an id that the model doesn't know, so that it can be learned again."""
    name, number = session.session_id, 2
    while name in record.session_words:
        name, number = f"{session.session_id}-{number}", number + 1
    return replace(session, session_id=name)


def train_candidate(
    session: Session, active: Bundle | None, path: Path, plan: Plan, ready: Ready,
    on_step: OnStep = lambda share, r2, phase: None, on_made: OnMade = lambda made: None,
) -> Candidate:  # fmt: skip
    """Train on a session's training domain, and compare with the active decoder.

    path: where the candidate's bundle is written.
    on_step: as in `training.calibration.adapt.calibrate`, with the progress of all folds together.
    on_made: called with the candidate's bundle once it is on disk, if possible before it has been
        compared.
    """
    session = unknown_to(ready.record, session)
    kept, notes = without_copies(session)
    is_kept = np.isin(session.unit_ids, kept.unit_ids)
    learned = (_Linear if plan.method in get_args(Kind) else _Adapting)(plan, ready, on_step)

    def compare() -> Compared | None:
        return _cross_validated(learned, session, is_kept, active, plan, ready, on_step)

    compared = compare() if learned.needs_folds else None
    made, method = learned.all(kept, path)
    on_made(made)
    if not learned.needs_folds and plan.compares:
        compared = compare()
    return Candidate(
        made=made,
        method=method,
        evidence=compared.evidence() if compared else Evidence.none(),
        traces=compared.traces(session) if compared else None,
        doubts=doubts(session, compared, active),
        notes=notes,
    )


def _cross_validated(
    learned: _Linear | _Adapting, session: Session, is_kept: Bools, active: Bundle | None,
    plan: Plan, ready: Ready, on_step: OnStep,
) -> Compared | None:  # fmt: skip
    """See `cross_validate`. is_kept: (n_units,), the units that the candidate learns."""
    is_instant = plan.method == "instant"
    with tempfile.TemporaryDirectory() as folder:
        return cross_validate(
            lambda fold, number: learned.fold(
                with_units(fold, is_kept), number, Path(folder) / f"{number}.bundle"
            ),
            session, active, compares=plan.compares,
            tick_s=INSTANT_TICK_S if is_instant else SCORE_TICK_S,
            at_most_s=INSTANT_COMPARED_S if is_instant else math.inf,
            opened=dict(ready.opened),
            on_learned=lambda number: on_step((number + 1) / N_FOLDS, 0.0, COMPARING),
        )  # fmt: skip


class _Linear:
    """Fits a linear decoder to each fold, and to all seconds.

    needs_folds: whether the candidate is made of the folds' decoders.
    """

    needs_folds = False

    def __init__(self, plan: Plan, ready: Ready, on_step: OnStep) -> None:
        self._kind, self._base = plan.method, ready.bundle.manifest.decoder_id
        self._on_step = on_step

    def fold(self, fold: Session, number: int, path: Path) -> Bundle:
        """Fit to a fold's training domain, and write a bundle."""
        self._on_step(number / N_FOLDS, 0.0, self._kind)
        return self._fit(fold, path)

    def all(self, session: Session, path: Path) -> tuple[Bundle, str]:
        """Fit to the whole training domain; returns the bundle and the method."""
        self._on_step(0.0, 0.0, self._kind)
        return self._fit(session, path), self._kind

    def _fit(self, session: Session, path: Path) -> Bundle:
        kind: Kind = self._kind  # type: ignore[assignment]
        return fit_linear(hold_out_last_fifth(session), kind, path, base=self._base)


class _Adapting:
    """Adapts the pretrained model to each fold, and averages the results."""

    def __init__(self, plan: Plan, ready: Ready, on_step: OnStep) -> None:
        self._plan, self._ready, self._on_step = plan, ready, on_step
        self._averages = plan.method not in ("scratch", *WHOLE)
        self.needs_folds = plan.method not in WHOLE
        self._members: list[Adapted] = []
        self._made: Bundle | None = None

    def fold(self, fold: Session, number: int, path: Path) -> Bundle:
        """See `_Linear`. What `align` made of all seconds has seen none of their labels."""
        if self._plan.method == "align" and self._made is not None:
            return self._made

        def on_step(share: float, r2: float, phase: str) -> None:
            self._on_step((number + share) / N_FOLDS, r2, phase)

        share = (1.0 if self._averages else 1.0 - OWN_SHARE) / N_FOLDS
        adapted = self._adapt(fold, share, on_step)
        if self._plan.method == "instant":
            ready, record = self._ready, adapted.record
            return folded(ready.bundle, adapted.model, record, record.session_words[-1])
        self._members.append(adapted)
        return self._write(adapted, path)

    def all(self, session: Session, path: Path) -> tuple[Bundle, str]:
        """See `_Linear`."""
        if self._averages and self._members:
            adapted = mean_of(self._members)
            if has_other_states(self._ready.record, adapted.method):
                adapted.record.states = usual_states(adapted.model, adapted.record, [session])
        else:  # too few seconds for folds, or a method that learns from all seconds at once
            share = 1.0 if self._plan.method in WHOLE else OWN_SHARE
            adapted = self._adapt(session, share, self._on_step)
        self._on_step(1.0, float(np.nan_to_num(adapted.record.best_r2)), "writing the bundle")
        self._made = self._write(adapted, path)
        return self._made, adapted.method

    def _adapt(self, session: Session, share: float, on_step: OnStep) -> Adapted:
        plan, ready = self._plan, self._ready
        if plan.method == "instant":
            on_step(0.0, 0.0, "identifying units")
        settings = AdaptSettings(
            method=plan.method,  # type: ignore[arg-type]
            seconds=None, steps=plan.steps, seed=plan.seed,
            allowed_s=None if plan.allowed_s is None else share * plan.allowed_s,
        )  # fmt: skip
        adapted = calibrate(ready.model, ready.record, session, settings, on_step=on_step)
        adapted.record.settings["base"] = ready.bundle.manifest.decoder_id
        return adapted

    def _write(self, adapted: Adapted, path: Path) -> Bundle:
        record = adapted.record
        return write_adapted(
            self._ready.bundle, adapted.model, record, record.session_words[-1], path,
            {"validation_r2": record.best_r2},
        )  # fmt: skip


def mean_of(members: Sequence[Adapted]) -> Adapted:
    """The mean of models adapted to parts of one session from the same pretrained model."""
    model, record, _ = members[0]
    weights = [runs.weights(member.model) for member in members]
    with torch.no_grad():
        runs.set_weights(
            model, {n: torch.stack([w[n] for w in weights]).mean(dim=0) for n in weights[0]}
        )
    name, records = record.session_words[-1], [member.record for member in members]
    for scale in ("output_mean", "output_std"):
        x, y = np.mean([getattr(one, scale)[name] for one in records], axis=0)
        getattr(record, scale)[name] = (float(x), float(y))
    record.unit_tuning = np.mean([one.unit_tuning for one in records], axis=0).round(3).tolist()
    record.best_r2 = float(np.mean([one.best_r2 for one in records]))
    methods = Counter(member.method for member in members)
    return Adapted(model, record, methods.most_common(1)[0][0])
