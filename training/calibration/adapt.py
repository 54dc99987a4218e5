"""Adapts a pretrained model to a new session with a few seconds of labelled data.

    volition adapt RUN SESSION [SESSION ...] --seconds 40 --method units -o RUN2

    instant     trains nothing: new units are identified and the output layer corrected in closed
                form, by a model pretrained on four sessions or more
    align       trains the embeddings of the units without labels, so that the states of a
                streaming model are distributed as on the days that it knows; nothing, if they are
    units       trains the embeddings of the session and its units (unit identification, Azabou et
                al., NeurIPS 2023), then corrects the output layer in closed form
    units+head  `units`, then the output layers as well
    full        `units`, then all weights
    scratch     trains a new model of the same sizes on this session only
    auto        `units`, then `full` until the time is up; keeps `full` unless it is much worse

A new unit starts from what is known without training (`training.pretraining.newcomer`). Every
method except `scratch` keeps the embeddings of other units bit for bit. The last fifth of the data
is held out to score the result (of the recent blocks, if there are several:
`training.calibration.blocks`); `instant` and `align` need no score and use all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch

from decoder.arrays import Floats
from decoder.errors import TrainingError
from streaming.sessions.intervals import duration_s
from streaming.sessions.session import Session
from training.calibration.blocks import first_seconds, hold_out_last_fifth
from training.calibration.fitting import (
    CHECK_STEP_S,
    Alignment,
    Averaged,
    Best,
    Clock,
    Fitted,
    Keeper,
    Last,
    Lesson,
    Recipe,
    fit,
)
from training.calibration.labels import OWN, Labels, relabelled
from training.data.identity import home
from training.data.windows import window_ends
from training.models.config import SHORTER_S, PossmConfig
from training.models.families import Model
from training.models.states import short
from training.pretraining import runs
from training.pretraining.newcomer import alone, fit_readout, knows_units, with_session
from training.pretraining.optimizer import Optimizers, build_optimizers
from training.pretraining.scoring import decode_training_domain, usual_states, window_source

Method = Literal["instant", "align", "units", "units+head", "full", "scratch", "auto"]
OnStep = Callable[[float, float, str], None]

# The measurements behind the recipes: docs/RECALIBRATION.md, "Why these values".
KEEP_HALF, KEEP_MOST, KEEP_MANY = (0.5, 1.0), (0.8, 1.0), (0.4, 1.0)
WARM = Recipe(
    steps=40, learning_rate=5e-3, embedding_rate=5e-3, batch_size=16, keep_units=KEEP_HALF
)
ALIGN = Recipe(
    steps=24, learning_rate=3e-3, embedding_rate=3e-3, batch_size=16, keep_units=(1.0, 1.0)
)
COLD = replace(WARM, steps=100, learning_rate=2e-2, embedding_rate=2e-2)
HEAD = Recipe(
    steps=60,
    learning_rate=1e-3,
    embedding_rate=1e-3,
    batch_size=16,
    keep_units=KEEP_MOST,
    n_checks=4,
)
BRIEF = replace(HEAD, steps=200, batch_size=8)
SCRATCH = replace(HEAD, steps=400, learning_rate=2e-3, embedding_rate=2e-3, keep_units=KEEP_MANY)
FULL = replace(HEAD, steps=400, batch_size=8, keep_units=KEEP_MANY)
MANY = 200  # `full` follows FULL if at least as many steps fit into the time, else BRIEF
WEIGHT_DECAY = 1e-2
MUON_TURNS, N_CARRIED = 3, 2  # pretraining: 5, 4; as accurate here, and a step is a fifth faster
HEADS = ("state_out.", "out_ffn.", "dec_ffn.", "readout.")  # the output layers of both families
EMBEDDINGS = ("unit_emb.", "session_emb.")
LEARNS = {
    "align": EMBEDDINGS,
    "units": EMBEDDINGS,
    "units+head": EMBEDDINGS + HEADS,
    "full": ("",),
    "scratch": ("",),
}  # prefixes of parameter names
# Candidate distances from the pretrained weights (`training.calibration.fitting.Averaged`): NEAR
# for a model of at least MANY_SESSIONS sessions (measured with 24), FAR for a model of fewer (1).
NEAR, FAR, ALL = (0.5, 0.75, 1.0), (0.75, 1.0), (1.0,)
MANY_SESSIONS = 8
LONG_WINDOWS_FROM_S = 120.0  # of labels; on less, windows of 1 s are as accurate and half the work
RELEARNED_S = 640.0  # of training labels; with fewer, `full` relearns a known subject more slowly
TRUST = 0.1  # variances of velocity; `full` may add this much held-out squared error to `units`
WARM_SHARE, COLD_SHARE = 0.2, 0.4  # of the time allowed: the `units` phase of a longer method


@dataclass(frozen=True, kw_only=True)
class AdaptSettings:
    """Settings of an adaptation.

    seconds: labelled data to use, from the start of the training domain; None for all of it.
    allowed_s: time limit for training in seconds; None for no limit.
    steps, batch_size, learning_rate, keep_units: override the recipe of the method's last phase.
        The recipe of `units` takes fewer, smaller steps if the run stores its units' tuning, as
        new units then start close to similar ones.
    labels: how velocity labels are made (`training.calibration.labels`). `seconds` counts those
        that have a label; if the labels are the decoder's own output, all seconds.
    """

    method: Method = "units"
    seconds: float | None = 40.0
    allowed_s: float | None = None
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    keep_units: tuple[float, float] | None = None
    seed: int = 0
    labels: Labels = "kinematics"

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            methods = ", ".join(get_args(Method))
            raise TrainingError(f"method {self.method!r}; expected one of {methods}")
        if self.allowed_s is not None and not self.allowed_s > 0:
            raise TrainingError(f"allowed_s {self.allowed_s}; expected more than 0, or None")

    def of(self, own: Recipe) -> Recipe:
        """The recipe with the values set here."""
        rate = self.learning_rate
        return replace(
            own,
            steps=self.steps or own.steps,
            batch_size=self.batch_size or own.batch_size,
            learning_rate=rate or own.learning_rate,
            embedding_rate=rate or own.embedding_rate,
            keep_units=self.keep_units or own.keep_units,
        )


class Adapted(NamedTuple):
    """An adapted model, its record, and the method whose result was kept."""

    model: Model
    record: runs.RunRecord
    method: Method


def calibrate(
    model: Model,
    record: runs.RunRecord,
    session: Session,
    settings: AdaptSettings | None = None,
    *,
    on_step: OnStep = lambda share, r2, phase: None,
) -> Adapted:
    """Adapt a copy of a model to a session; `model` and `record` are not changed.

    on_step: called with the phase's progress (0 to 1), the held-out R² of the weights that would be
        kept now, and the phase's name.
    The returned record's `best_r2` is the held-out R²; after `instant` and `align`, NaN. Raises
    TrainingError if the run knows the session already (except for `scratch`), the session has too
    little data, or the model lacks what `instant` or `align` need.
    """
    settings = settings or AdaptSettings()
    clock = Clock(settings.allowed_s)
    if settings.method == "align":
        return _align(model, record, session, settings, clock, on_step)
    if settings.method == "instant" and not record.n_profile:
        raise TrainingError(
            f"the model knows {len(record.sessions)} sessions and has no network that identifies "
            "units, which the method instant needs; choose the method units, or pretrain on four "
            "sessions or more"
        )
    labelled = labelled_by(model, record, session, settings)
    if settings.method == "instant":
        model, record = with_session(model, record, labelled)
        fit_readout(model, record, labelled)
        return Adapted(model, record, "instant")
    labelled = hold_out_last_fifth(labelled)
    torch.manual_seed(settings.seed)
    if settings.method == "scratch":
        model, record = alone(record, labelled)
        lesson = _lesson(model, record, labelled, settings)
        fitted = _learn(lesson, "scratch", settings.of(SCRATCH), clock, on_step)
        return _adapted(lesson, record, fitted, "scratch")
    reaches = NEAR if len(record.sessions) >= MANY_SESSIONS else FAR
    is_home = home(labelled, record.session_words, record.unit_words) is not None
    model, record = with_session(model, record, labelled)
    lesson = _lesson(model, record, labelled, settings)
    first = WARM if record.unit_tuning else COLD
    if settings.method == "units":
        fitted = _identified(lesson, record, settings.of(first), clock, on_step)
        return _adapted(lesson, record, fitted, "units")
    share = WARM_SHARE if record.unit_tuning else COLD_SHARE
    units = _identified(lesson, record, first, clock.part(share), on_step)
    if settings.method == "units+head":
        fitted = _learn(lesson, "units+head", settings.of(HEAD), clock.part(), on_step, reaches)
        return _adapted(lesson, record, fitted, "units+head")
    before = {name: tensor.clone() for name, tensor in runs.weights(model).items()}
    clock = clock.part()
    left_s = clock.left_s()
    full = FULL if left_s is None or left_s >= MANY * units.step_s else BRIEF
    if is_home:
        careful = min(1.0, duration_s(labelled.train_domain) / RELEARNED_S)
        full = replace(full, learning_rate=careful * full.learning_rate)
    fitted = _learn(lesson, "full", settings.of(full), clock, on_step, reaches)
    if settings.method == "auto" and not fitted.score.error < units.score.error + TRUST:
        runs.set_weights(model, before)
        return _adapted(lesson, record, units, "units")
    return _adapted(lesson, record, fitted, "full")


def _identified(
    lesson: Lesson, record: runs.RunRecord, recipe: Recipe, clock: Clock, on_step: OnStep
) -> Fitted:
    """Train the embeddings, then correct the output layer."""
    fitted = _learn(lesson, "units", recipe, clock, on_step)
    (session,) = lesson.source.sessions
    fit_readout(lesson.model, record, session)
    return replace(fitted, score=lesson.score())


def _align(
    model: Model,
    record: runs.RunRecord,
    session: Session,
    settings: AdaptSettings,
    clock: Clock,
    on_step: OnStep,
) -> Adapted:
    """`calibrate` without labels; on_step gets no R²."""
    if record.states is None:
        raise TrainingError(
            "the model does not know how its states are usually distributed, which the method "
            "align needs; choose another method, or pretrain a streaming model (possm) again"
        )
    if not knows_units(record, session):
        raise TrainingError(
            f"{session.session_id} has other units than the sessions that the model knows, and "
            "align matches them by name; collect labels, and choose the method units"
        )
    if settings.seconds is not None:
        session = first_seconds(session, settings.seconds)
    model, record = with_session(model, record, session, reads="nothing")
    config = record.config()
    assert record.states is not None
    assert isinstance(config, PossmConfig)
    config = short(config.training_on([session.train_domain]))
    source = window_source([session], model, config, record)
    lesson = Alignment(
        model=model, config=config, source=source, seed=settings.seed, states=record.states
    )
    if lesson.is_usual():
        return Adapted(model, record, "align")
    fitted = _learn(lesson, "align", settings.of(ALIGN), clock, on_step)
    return _adapted(lesson, record, fitted, "align")


def labelled_by(
    model: Model, record: runs.RunRecord, session: Session, settings: AdaptSettings
) -> Session:
    """The session with the labels and the seconds of labelled data that the settings ask for."""
    seconds, is_own = settings.seconds, settings.labels in OWN
    if seconds is not None and is_own:
        session = first_seconds(session, seconds)
    session = relabelled(session, settings.labels, decode=partial(_without_labels, model, record))
    return session if seconds is None or is_own else first_seconds(session, seconds)


def _without_labels(
    model: Model, record: runs.RunRecord, session: Session
) -> tuple[Floats, Floats]:
    """Times (n,) and decoded velocity (n, 2) m/s of the training domain, known by its spikes."""
    known = (
        (model, record)
        if session.session_id in record.session_words
        else with_session(model, record, session, reads="spikes")
    )
    return decode_training_domain(*known, session)


def _adapted(lesson: Lesson, record: runs.RunRecord, fitted: Fitted, method: Method) -> Adapted:
    record.best_r2 = fitted.score.r2
    if has_other_states(record, method):
        record.states = usual_states(lesson.model, record, lesson.source.sessions)
    return Adapted(lesson.model.requires_grad_(True).eval(), record, method)


def has_other_states(base: runs.RunRecord, method: str) -> bool:
    """Whether the usual states of a base don't hold for what a method with labels makes of it.

    They do if only embeddings and the output layer are trained, and the base knows them.
    """
    return base.states is None or method not in ("align", "units")


def _lesson(
    model: Model, record: runs.RunRecord, labelled: Session, settings: AdaptSettings
) -> Lesson:
    domains = [labelled.train_domain, labelled.intervals("valid")]
    config = record.config().training_on(domains)
    if isinstance(config, PossmConfig):
        is_short = duration_s(labelled.train_domain) < LONG_WINDOWS_FROM_S
        train_s = min(config.train_s, SHORTER_S[-1]) if is_short else config.train_s
        config = replace(config, n_carried=N_CARRIED, train_s=train_s)
    source = window_source([labelled], model, config, record)
    if len(window_ends(labelled, "valid", config.window_s, CHECK_STEP_S)) == 0:
        held_out = duration_s(labelled.intervals("valid"))
        raise TrainingError(
            f"{labelled.session_id}: the held-out {held_out:.1f} s contain no window of "
            f"{config.window_s} s; collect more data, or longer trials"
        )
    return Lesson(model=model, config=config, source=source, seed=settings.seed)


def _learn(
    lesson: Lesson,
    phase: str,
    recipe: Recipe,
    clock: Clock,
    on_step: OnStep,
    reaches: Sequence[float] = ALL,
) -> Fitted:
    """Train one phase.

    `units` keeps the weights with the best held-out score, `align` its last. Phases that train more
    weights keep an average of their later steps instead, as a few held-out seconds are too noisy to
    choose by (see TRUST).
    """
    torch.manual_seed(lesson.seed)
    for name, parameter in lesson.model.named_parameters():
        parameter.requires_grad_(name.startswith(LEARNS[phase]))
    keeper: Keeper
    match phase:
        case "align":
            keeper = Last()
        case "units":
            keeper = Best(lesson)
        case _:
            keeper = Averaged(lesson, reaches)
    return fit(
        lesson, _optimizers(lesson.model, phase, recipe), recipe, clock, keeper,
        on_step=lambda share, r2: on_step(share, r2, phase),
    )  # fmt: skip


def _optimizers(model: Model, phase: str, recipe: Recipe) -> Optimizers:
    if phase in ("align", "units"):
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # Adam leaves embeddings without a gradient unchanged.
        return [torch.optim.Adam(learned, lr=recipe.embedding_rate)]
    optimizers = build_optimizers(
        model,
        learning_rate=recipe.learning_rate,
        weight_decay=WEIGHT_DECAY,
        muon_turns=MUON_TURNS,
    )
    for group in optimizers[1].param_groups:  # the embeddings
        group["lr"] = recipe.embedding_rate
    return optimizers
