"""A pretrained model learns a new session's units from a few seconds of labelled data.

    volition adapt RUN SESSION --seconds 40 -o RUN2

Unit identification (Azabou et al., NeurIPS 2023): the embeddings of the session's units and of
the session itself are learned, everything else is frozen, so that what the model knows of
populations and movement is kept. All other units' embeddings stay as they were, to the bit.
A new unit begins as a mean of the known units whose tuning is nearest (`training.tuning`), which
alone decodes. The last fifth of the data decides when to stop.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from decoder.errors import TrainingError
from streaming.sessions import Session, duration_s, intersect, time_after
from training import runs
from training.families import Model, forward
from training.labels import Labels, relabelled
from training.pretrain import evaluate, window_source
from training.tuning import nearest_mean, tuning
from training.windows import OutputScale, unit_words

VALID_SHARE = 0.2
N_CHECKS = 8  # looks at the held-out fifth
WARM, COLD = (40, 5e-3), (100, 2e-2)  # steps and learning rate
CHECK_STEP_S = 0.1  # between the times that are scored there


@dataclass(frozen=True, kw_only=True)
class AdaptSettings:
    """How a session's units are identified.

    seconds: labelled data, from the start of the training domain; all of it where None.
    steps, learning_rate: where None, a few small steps if the run knows its units' tuning, so that
        new ones begin where like ones stand; more and larger ones if not.
    labels: what the session's velocity means (`training.labels`).
    """

    seconds: float | None = 40.0
    steps: int | None = None
    batch_size: int = 16
    learning_rate: float | None = None
    keep_units: tuple[float, float] = (0.5, 1.0)
    seed: int = 0
    labels: Labels = "kinematics"

    def of(self, record: runs.RunRecord) -> tuple[int, float]:
        """Steps and peak learning rate for a run."""
        steps, rate = WARM if record.unit_tuning else COLD
        return self.steps or steps, self.learning_rate or rate


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
    steps, learning_rate = settings.of(record)
    labelled = first_seconds(relabelled(session, settings.labels), settings.seconds)
    torch.manual_seed(settings.seed)
    model, record = with_session(model, record, labelled)
    config = record.config()
    source = window_source([labelled], model, config, record)
    learned = [model.unit_emb.weight, model.session_emb.weight]
    model.requires_grad_(False)
    for parameter in learned:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(learned, lr=learning_rate)  # zero gradients move nothing
    check_every = max(1, steps // N_CHECKS)
    best, best_rows = -math.inf, list[Tensor]()
    for step in range(steps + 1):
        if step % check_every == 0 or step == steps:
            score = evaluate(model, config, source, 0, "valid", step_s=CHECK_STEP_S).r2_mean
            if score > best or not best_rows:
                best, best_rows = score, [parameter.detach().clone() for parameter in learned]
        on_step(step, best)
        if step == steps:
            break
        share = step / steps
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * share))
        model.train()
        rng = np.random.default_rng([settings.seed, step])
        batch = source.draw(rng, settings.batch_size, keep_units=settings.keep_units)
        loss = nn.functional.mse_loss(forward(model, config, **batch.inputs()), batch.target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
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
    features = tuning(session)
    with torch.no_grad():
        known, new = model.unit_emb.weight[1 : -len(words)], model.unit_emb.weight[-len(words) :]
        if record.unit_tuning:
            like = nearest_mean(features, np.array(record.unit_tuning), known.double().numpy())
            new.copy_(torch.from_numpy(like))
            record.unit_tuning += features.round(3).tolist()
        else:  # the mean known one, a little aside
            new += known.mean(dim=0)
        model.session_emb.weight[-1] = model.session_emb.weight[1:-1].mean(dim=0)
    record.unit_words += words
    record.session_words.append(session.session_id)
    record.output_mean[session.session_id] = (scale.mean[0], scale.mean[1])
    record.output_std[session.session_id] = (scale.std[0], scale.std[1])
    return model, record
