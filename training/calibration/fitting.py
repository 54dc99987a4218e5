"""Trains on a few seconds of one session, for a number of steps or until the time is up.

Learning rates are annealed to zero over the steps or the time, whichever ends first: a phase with
little time is a complete short phase, not half of a long one. The windows of a step depend only on
seed and step, so training without a time limit is reproducible.

The choice of parameters is made in `training.calibration.adapt`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch._dynamo  # else the first optimizer imports it, in a second of the time limit
from torch import Tensor, nn

from decoder.score import pooled_r2
from training.data.windows import WindowSource
from training.models.config import PossmConfig
from training.models.families import Config, Model, forward
from training.models.possm import Possm
from training.models.states import States, settled_states
from training.pretraining.optimizer import Optimizers
from training.pretraining.scoring import decode_windows

CHECK_STEP_S = 0.1  # between scored times of the held-out fifth
MAX_NORM = 1.0  # the gradient is clipped to this norm
AVERAGED_FROM = 0.25  # share of a phase; earlier steps are not averaged
FORGIVEN = 0.04  # variances of velocity; error tolerated at a reach of 1 (`Averaged`)
N_JUDGED = 30  # windows, at most, that decide whether the states are as usual
UNCOUNTED = 0.1  # share of the time limit before annealing starts; absorbs a slow first step


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyper-parameters of a phase.

    steps: maximum number of steps.
    embedding_rate: peak learning rate of the unit and session embeddings.
    learning_rate: peak learning rate of the other weights.
    batch_size: windows per step, at most; fewer if they are long (`usual_batch`).
    keep_units: range of the share of units kept in a window (`WindowSource.plan`).
    n_checks: number of evaluations on the held-out fifth after the first.
    """

    steps: int
    learning_rate: float
    embedding_rate: float
    batch_size: int
    keep_units: tuple[float, float]
    n_checks: int = 8


class Clock:
    """A time limit in seconds from its creation; None for no limit."""

    def __init__(self, allowed_s: float | None) -> None:
        self._began, self._allowed_s = time.monotonic(), allowed_s

    def left_s(self) -> float | None:
        """Seconds left, at least 0; None if there is no limit."""
        if self._allowed_s is None:
            return None
        return max(0.0, self._allowed_s - (time.monotonic() - self._began))

    def part(self, share: float = 1.0) -> Clock:
        """A new clock, limited to `share` of the time left."""
        left_s = self.left_s()
        return Clock(None if left_s is None else share * left_s)

    def share(self) -> float:
        """Progress by time: 0 to 1; 1 if no time is left, 0 if there is no limit."""
        left_s = self.left_s()
        if left_s is None or self._allowed_s is None:
            return 0.0
        passed = 1.0 if left_s == 0.0 else 1.0 - left_s / self._allowed_s
        return max(0.0, (passed - UNCOUNTED) / (1.0 - UNCOUNTED))


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Causal R² on the held-out fifth, and squared error in variances of the training velocity.

    A few seconds with little movement make R² useless (-0.7 for a decoder that scores 0.64 on the
    test domain). The squared error stays small there.
    """

    r2: float
    error: float


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Result of a phase: held-out score, and seconds per step including evaluations."""

    score: HeldOut
    step_s: float


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A model, and the windows of the labelled session that it is trained on."""

    model: Model
    config: Config
    source: WindowSource
    seed: int

    def learned(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def score(self) -> HeldOut:
        """Score of the model on the held-out fifth."""
        true, decoded = decode_windows(
            self.model, self.config, self.source, 0, "valid", step_s=CHECK_STEP_S
        )
        return HeldOut(r2=pooled_r2(true, decoded), error=float(np.square(true - decoded).mean()))

    def loss(self, step: int, recipe: Recipe) -> Tensor:
        """Mean squared error on the windows of one step."""
        rng = np.random.default_rng([self.seed, step])
        n_windows = min(recipe.batch_size, self.config.usual_batch)
        batch = self.source.draw(rng, n_windows, keep_units=recipe.keep_units)
        return nn.functional.mse_loss(
            forward(self.model, self.config, **batch.inputs()), batch.target
        )


@dataclass(frozen=True, kw_only=True)
class Alignment(Lesson):
    """A model whose states today should be distributed as on the days that it knows.

    No labels are used. `config` has short windows (`training.models.states.short`).
    """

    states: States

    @torch.no_grad()
    def is_usual(self) -> bool:
        """Whether the states are as near to those of a known day as that day's own."""
        plans = self.source.walk(
            0, "train", step_s=self.config.window_s, layout=self.config, at_most=N_JUDGED
        )
        states = torch.cat([self._states(batch.inputs()) for _, batch in plans])
        return bool(self.states.distances(states).min() <= self.states.limit)

    def loss(self, step: int, recipe: Recipe) -> Tensor:
        """Distance, in nats, from the known days: the smooth minimum over them."""
        rng = np.random.default_rng([self.seed, step])
        inputs = self.source.draw(rng, recipe.batch_size, keep_units=recipe.keep_units).inputs()
        return -(-self.states.distances(self._states(inputs))).logsumexp(dim=0)

    def _states(self, inputs: dict[str, Any]) -> Tensor:
        assert isinstance(self.model, Possm)
        assert isinstance(self.config, PossmConfig)
        return settled_states(self.model, self.config, inputs).flatten(0, 1)


def fit(
    lesson: Lesson,
    optimizers: Optimizers,
    recipe: Recipe,
    clock: Clock,
    keeper: Keeper,
    *,
    on_step: Callable[[float, float], None],
) -> Fitted:
    """Train for the steps of a recipe, or fewer if the clock ends first.

    optimizers: the learning rates of their groups are the peaks.
    on_step: called with the progress (0 to 1) and the keeper's R² so far.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    learned = lesson.learned()
    step, n_checked, began = 0, 0, time.monotonic()
    while True:
        share = min(1.0, max(step / recipe.steps, clock.share()))
        if share >= n_checked / recipe.n_checks:
            keeper.check()
            n_checked = math.floor(share * recipe.n_checks) + 1
        on_step(share, keeper.score.r2)
        if share >= 1.0:
            keeper.settle()
            return Fitted(score=keeper.score, step_s=(time.monotonic() - began) / max(1, step))
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * 0.5 * (1 + math.cos(math.pi * share))
        lesson.model.train()
        loss = lesson.loss(step, recipe)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learned, MAX_NORM)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        keeper.took(share)


class Keeper(Protocol):
    """Decides which weights a phase keeps. score: their held-out score."""

    score: HeldOut

    def took(self, share: float) -> None:
        """Called after each step, with the progress of the phase (0 to 1)."""

    def check(self) -> None:
        """Score the weights that would be kept if the phase ended now."""

    def settle(self) -> None:
        """Set the model to the weights that are kept."""


class Last:
    """Keeps the last weights: without labels, none can be chosen."""

    def __init__(self) -> None:
        self.score = HeldOut(r2=math.nan, error=math.nan)

    def took(self, share: float) -> None:
        """See `Keeper`."""

    def check(self) -> None:
        """See `Keeper`."""

    def settle(self) -> None:
        """See `Keeper`."""


class Best:
    """Keeps the weights with the best held-out R²."""

    def __init__(self, lesson: Lesson) -> None:
        self.score = HeldOut(r2=-math.inf, error=math.inf)
        self._lesson, self._learned = lesson, lesson.learned()
        self._weights = _copies(self._learned)

    def took(self, share: float) -> None:
        """See `Keeper`."""

    def check(self) -> None:
        """See `Keeper`."""
        score = self._lesson.score()
        if score.r2 > self.score.r2:
            self.score, self._weights = score, _copies(self._learned)

    def settle(self) -> None:
        """See `Keeper`."""
        _set(self._learned, self._weights)


class Averaged:
    """Keeps a point between the phase's first weights and the mean of its later weights.

    The mean of the weights along the path generalises better than the last (Izmailov et al., UAI
    2018), and so do weights between the pretrained and the fine-tuned ones (WiSE-FT: Wortsman et
    al., CVPR 2022).

    reaches: candidate points, ascending; 0 is the first weights, 1 the mean. At the end, the one
    with the lowest held-out error is kept, with a tolerance of `FORGIVEN` in favour of larger
    reaches. `check` scores the middle one.
    """

    def __init__(self, lesson: Lesson, reaches: Sequence[float]) -> None:
        self.score = HeldOut(r2=-math.inf, error=math.inf)
        self._lesson, self._learned, self._reaches = lesson, lesson.learned(), reaches
        self._first, self._mean = _copies(self._learned), _copies(self._learned)
        self._n = 0

    @torch.no_grad()
    def took(self, share: float) -> None:
        """See `Keeper`."""
        self._n = self._n + 1 if share >= AVERAGED_FROM else 1
        torch._foreach_lerp_(self._mean, [p.detach() for p in self._learned], 1.0 / self._n)

    def check(self) -> None:
        """See `Keeper`."""
        newest = _copies(self._learned)
        self.score = self._at(self._reaches[len(self._reaches) // 2])
        _set(self._learned, newest)

    def settle(self) -> None:
        """See `Keeper`."""
        scores = {reach: self._at(reach) for reach in self._reaches}
        best = min(scores, key=lambda reach: scores[reach].error - FORGIVEN * reach)
        self.score = self._at(best)

    def _at(self, reach: float) -> HeldOut:
        """Set the model to the point `reach`, and score it."""
        _set(self._learned, torch._foreach_lerp(self._first, self._mean, reach))
        return self._lesson.score()


def _copies(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


@torch.no_grad()
def _set(parameters: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    torch._foreach_copy_(list(parameters), list(weights))
