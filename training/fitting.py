"""Gradient steps on a few seconds of one session, until the steps or the time are used up.

Learning rates are annealed to nothing over whichever ends first, so that a phase cut short by the
clock is a short phase, not half of a long one. Which windows a step sees follows from seed and step
alone: what no clock cut is the same every time.

It does not know which parameters learn or why (`training.adapt`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from training.families import Config, Model, forward
from training.optimizer import Optimizers
from training.pretrain import evaluate
from training.windows import WindowSource

CHECK_STEP_S = 0.1  # between the times of the held-out fifth that are scored
MAX_NORM = 1.0  # of the gradient
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
class Lesson:
    """A model, and windows of the one labelled session that it learns from."""

    model: Model
    config: Config
    source: WindowSource
    seed: int

    def score(self) -> float:
        """Causal R² on the held-out fifth."""
        return evaluate(
            self.model, self.config, self.source, 0, "valid", step_s=CHECK_STEP_S
        ).r2_mean

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
    *,
    on_check: Callable[[], None],
    on_step: Callable[[int, float], None],
) -> None:
    """Take the steps of a recipe, or fewer where the clock ends first.

    optimizers: their groups' learning rates are peaks.
    on_check: called `n_checks` times besides the start, the last time when all is done.
    on_step: told steps taken and the share (0 to 1) of the phase that is over.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    learned = [parameter for group in groups for parameter in group["params"]]
    step, n_checked = 0, 0
    while True:
        share = min(1.0, max(step / recipe.steps, clock.share()))
        if share >= n_checked / recipe.n_checks:
            on_check()
            n_checked = math.floor(share * recipe.n_checks) + 1
        on_step(step, share)
        if share >= 1.0:
            return
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


class Kept:
    """Weights, of those that learn, that are kept: those that did best, or the newest.

    score: theirs on the held-out fifth.
    """

    def __init__(self, lesson: Lesson, *, newest: bool) -> None:
        self.score = -math.inf
        self._lesson, self._newest = lesson, newest
        self._learned = [p for p in lesson.model.parameters() if p.requires_grad]
        self._weights: list[Tensor] = []

    def offer(self) -> None:
        """Score the model, and keep its weights if they are better or the newest count."""
        score = self._lesson.score()
        if self._newest or not self._weights or score > self.score:
            self.score = score
            self._weights = [parameter.detach().clone() for parameter in self._learned]

    @torch.no_grad()
    def put_back(self) -> None:
        """Set the model to the weights kept."""
        for parameter, weight in zip(self._learned, self._weights, strict=True):
            parameter.copy_(weight)
