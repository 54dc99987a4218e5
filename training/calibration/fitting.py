"""Gradient steps on a few seconds of one session, until the steps or the time are used up.

Learning rates are annealed to nothing over whichever ends first, so that a phase cut short by the
clock is a short phase, not half of a long one. Which windows a step sees follows from seed and step
alone: what no clock cut is the same every time.

It does not know which parameters learn or why (`training.calibration.adapt`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from decoder.score import pooled_r2
from training.data.windows import WindowSource
from training.models.families import Config, Model, forward
from training.pretraining.optimizer import Optimizers
from training.pretraining.scoring import decode_windows

CHECK_STEP_S = 0.1  # between the times of the held-out fifth that are scored
MAX_NORM = 1.0  # of the gradient
AVERAGED_FROM = 0.25  # of a phase: what comes before is still on its way
FORGIVEN = 0.04  # of a variance of velocity, squared error a reach of 1 (`Averaged`)
UNCOUNTED = 0.1  # of the time allowed: a slow first step changes nothing unless time is short


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a phase learns.

    steps: at most. learning_rate: the peak of all that `embedding_rate` is not for.
    embedding_rate: the peak for units' and sessions' embeddings.
    keep_units: range of the share of units that a window keeps (`WindowSource.plan`).
    n_checks: looks at the held-out fifth besides the first.
    """

    steps: int
    learning_rate: float
    embedding_rate: float
    batch_size: int
    keep_units: tuple[float, float]
    n_checks: int = 8


class Clock:
    """Seconds since it was made, of those allowed; endless where None are given."""

    def __init__(self, allowed_s: float | None) -> None:
        self._began, self._allowed_s = time.monotonic(), allowed_s

    def left_s(self) -> float | None:
        """Seconds that are left, at least 0."""
        if self._allowed_s is None:
            return None
        return max(0.0, self._allowed_s - (time.monotonic() - self._began))

    def part(self, share: float = 1.0) -> Clock:
        """A clock that ends when `share` of what is left has passed."""
        left_s = self.left_s()
        return Clock(None if left_s is None else share * left_s)

    def share(self) -> float:
        """How much of a phase is over by time: 0 to 1, at 1 when nothing is left."""
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
    """What a phase ended with: its score, and seconds that a step took, checks included."""

    score: HeldOut
    step_s: float


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A model, and windows of the one labelled session that it learns from."""

    model: Model
    config: Config
    source: WindowSource
    seed: int

    def learned(self) -> list[nn.Parameter]:
        """Parameters that learn."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def score(self) -> HeldOut:
        """How well the model does on the held-out fifth."""
        true, decoded = decode_windows(
            self.model, self.config, self.source, 0, "valid", step_s=CHECK_STEP_S
        )
        return HeldOut(r2=pooled_r2(true, decoded), error=float(np.square(true - decoded).mean()))

    def loss(self, step: int, recipe: Recipe) -> Tensor:
        """Of the windows of one step."""
        rng = np.random.default_rng([self.seed, step])
        batch = self.source.draw(rng, recipe.batch_size, keep_units=recipe.keep_units)
        return nn.functional.mse_loss(
            forward(self.model, self.config, **batch.inputs()), batch.target
        )


def fit(
    lesson: Lesson,
    optimizers: Optimizers,
    recipe: Recipe,
    clock: Clock,
    keeper: Keeper,
    *,
    on_step: Callable[[float, float], None],
) -> Fitted:
    """Take the steps of a recipe, or fewer where the clock ends first.

    optimizers: their groups' learning rates are peaks.
    on_step: told the share (0 to 1) of the phase that is over, and the keeper's R² so far.
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
    """Decides which weights a phase ends with. score: theirs on the held-out fifth."""

    score: HeldOut

    def took(self, share: float) -> None:
        """A step was taken; `share` (0 to 1) of the phase is over."""

    def check(self) -> None:
        """Score what would be kept if the phase ended here."""

    def settle(self) -> None:
        """Set the model to what is kept."""


class Best:
    """Keeps what did best on the held-out fifth."""

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
    """Keeps a point on the line from the phase's first weights to the mean of its later ones.

    The mean of a path generalises better than its end (Izmailov et al., UAI 2018), and so does a
    point between what was pretrained and what was learned (WiSE-FT: Wortsman et al., CVPR 2022).
    reaches: candidates on the line (0 the first weights, 1 the mean), ascending. The held-out
    fifth chooses in the end, further ones being forgiven some error; a middle one until then.
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
        """Set the model to a point on the line, and score it."""
        _set(self._learned, torch._foreach_lerp(self._first, self._mean, reach))
        return self._lesson.score()


def _copies(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


@torch.no_grad()
def _set(parameters: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    torch._foreach_copy_(list(parameters), list(weights))
