"""A pretrained model learns a new session's units from a few seconds of labelled data.

    volition adapt RUN SESSION --seconds 40 -o RUN2

Unit identification (Azabou et al., NeurIPS 2023): the embeddings of the session's units and of
the session itself are learned, everything else is frozen, so that what the model knows of
populations and movement is kept. All other units' embeddings stay as they were, to the bit.
The last fifth of the data decides when to stop.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from decoder.errors import TrainingError
from streaming.sessions import Session, duration_s, intersect, time_after
from training import runs
from training.families import Model, forward
from training.pretrain import evaluate, window_source
from training.windows import OutputScale, unit_words

VALID_SHARE = 0.2
N_CHECKS = 12  # looks at the held-out fifth


@dataclass(frozen=True, kw_only=True)
class AdaptSettings:
    """How a session's units are identified.

    seconds: labelled data, from the start of the training domain; all of it where None.
    """

    seconds: float | None = 40.0
    steps: int = 400
    batch_size: int = 16
    learning_rate: float = 2e-2
    keep_units: tuple[float, float] = (0.5, 1.0)
    seed: int = 0


def identify_units(
    model: Model,
    record: runs.RunRecord,
    session: Session,
    settings: AdaptSettings | None = None,
    *,
    on_step: Callable[[int, float], None] = lambda step, r2: None,
) -> tuple[Model, runs.RunRecord]:
    """A copy of `model` that knows `session`'s units too, and its record.

    on_step: told the step and the best R² on the held-out fifth so far.
    Raises TrainingError where the session is known already or has too little data.
    """
    settings = settings or AdaptSettings()
    labelled = first_seconds(session, settings.seconds)
    torch.manual_seed(settings.seed)
    model, record = with_session(model, record, labelled)
    config = record.config()
    source = window_source([labelled], model, config, record)
    learned = [model.unit_emb.weight, model.session_emb.weight]
    model.requires_grad_(False)
    for parameter in learned:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(learned, lr=settings.learning_rate)  # zero gradients move nothing
    best, best_rows = -math.inf, [parameter.detach().clone() for parameter in learned]
    check_every = max(1, settings.steps // N_CHECKS)
    for step in range(settings.steps):
        share = step / settings.steps
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
        model.train()
        rng = np.random.default_rng([settings.seed, step])
        batch = source.draw(rng, settings.batch_size, keep_units=settings.keep_units)
        loss = nn.functional.mse_loss(forward(model, config, **batch.inputs()), batch.target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if (step + 1) % check_every == 0 or step + 1 == settings.steps:
            score = evaluate(model, config, source, 0, "valid", step_s=0.05).r2_mean
            if score > best:
                best, best_rows = score, [parameter.detach().clone() for parameter in learned]
        on_step(step + 1, best)
    with torch.no_grad():
        for parameter, rows in zip(learned, best_rows, strict=True):
            parameter.copy_(rows)
    record.best_r2 = best
    return model.requires_grad_(True).eval(), record


def first_seconds(session: Session, seconds: float | None) -> Session:
    """The session with only the first labelled `seconds`; their last fifth is validation."""
    domain = session.train_domain
    if seconds is not None:
        domain = intersect(domain, domain[0, 0], time_after(domain, seconds))
    cut = time_after(domain, (1 - VALID_SHARE) * duration_s(domain))
    train = intersect(domain, domain[0, 0], cut)
    valid = intersect(domain, cut, domain[-1, 1])
    if len(train) == 0 or len(valid) == 0:
        raise TrainingError(f"{session.session_id}: {duration_s(domain):.1f} s are too few")
    return replace(session, train_domain=train, valid_domain=valid)


def with_session(
    model: Model, record: runs.RunRecord, session: Session
) -> tuple[Model, runs.RunRecord]:
    """Copies of a model and its record that have rows for a new session and its units."""
    if session.session_id in record.session_words:
        raise TrainingError(f"{session.session_id} is known to this run already")
    words, scale = unit_words(session), OutputScale.of(session)
    model, record = copy.deepcopy(model), record.model_copy(deep=True)
    model.unit_emb.extend_vocab(words)
    model.session_emb.extend_vocab([session.session_id])
    with torch.no_grad():  # a new unit starts as the mean known one, a little aside
        known = model.unit_emb.weight[1 : -len(words)]
        model.unit_emb.weight[-len(words) :] += known.mean(dim=0)
        model.session_emb.weight[-1] = model.session_emb.weight[1:-1].mean(dim=0)
    record.unit_words += words
    record.session_words.append(session.session_id)
    record.output_mean[session.session_id] = (scale.mean[0], scale.mean[1])
    record.output_std[session.session_id] = (scale.std[0], scale.std[1])
    return model, record
