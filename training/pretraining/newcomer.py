"""Gives the units of a new session embeddings in closed form, without any training.

What a unit starts from, the first that there is:

    profile   what its subject's channel is on other days, corrected by the network that reads the
              unit's profile of today (`training.models.identifier`)
    channel   the embedding that its subject's days share (`training.data.identity`)
    tuning    the mean of the known units with the most similar tuning (`training.data.tuning`)
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import numpy as np
import torch

from decoder.arrays import Ints
from decoder.errors import TrainingError
from streaming.sessions.intervals import duration_s
from streaming.sessions.session import Session
from training.data.identity import home, shared_words
from training.data.profile import profiles
from training.data.tuning import nearest_mean, tuning
from training.data.windows import OutputScale, unit_words
from training.models.families import Model
from training.pretraining import runs

Reads = Literal["nothing", "spikes", "labels"]

SCALE_S = 300.0  # seconds of labels that weigh as much as the subject's earlier days


def with_session(
    model: Model, record: runs.RunRecord, session: Session, *, reads: Reads = "labels"
) -> tuple[Model, runs.RunRecord]:
    """Copies of a model and its record, with embeddings for a new session and its units.

    reads: what of the session's training domain is used: nothing, the spikes, or the movement too.
    Raises TrainingError if the run knows the session already.
    """
    if session.session_id in record.session_words:
        raise TrainingError(f"{session.session_id} is known to this run already")
    words = unit_words(session)
    subject = home(session, record.session_words, record.unit_words)
    channels = _channels(record, session, subject)
    model, record = copy.deepcopy(model), record.model_copy(deep=True)
    model.unit_emb.extend_vocab(words)
    model.session_emb.extend_vocab([session.session_id])
    with torch.no_grad():
        known, new = model.unit_emb.weight[: -len(words)], model.unit_emb.weight[-len(words) :]
        days = model.session_emb.weight
        of_subject = 0 if subject is None else record.session_words.index(subject) + 1
        days[-1] = days[of_subject] if of_subject else days[1:-1].mean(dim=0)
        is_known = torch.from_numpy(channels > 0)
        if record.n_profile and reads != "nothing":
            features = np.array(record.unit_tuning)[channels - 1]
            features[channels == 0] = np.nan
            profile = profiles(
                session, session.train_domain, labelled=reads == "labels", channels=features
            )
            channel = known[torch.from_numpy(channels)] * is_known[:, None]
            identifier: Any = model.identifier
            new.copy_(identifier(channel, torch.from_numpy(profile).float()))
            days[-1] = days[of_subject]
        else:
            if reads == "labels" and record.unit_tuning:
                like = nearest_mean(
                    tuning(session), np.array(record.unit_tuning), known[1:].double().numpy()
                )
                new.copy_(torch.from_numpy(like))
            else:  # the mean of the known units plus the initial random values
                new += known[1:].mean(dim=0)
            new[is_known] = known[torch.from_numpy(channels)][is_known]
    if record.unit_tuning:
        record.unit_tuning += tuning(session).round(3).tolist()
    scale = _scale(record, session, subject, reads)
    record.best_r2 = math.nan  # that of the other sessions says nothing about this one
    record.unit_words += words
    record.session_words.append(session.session_id)
    record.output_mean[session.session_id] = (scale.mean[0], scale.mean[1])
    record.output_std[session.session_id] = (scale.std[0], scale.std[1])
    return model, record


def _channels(record: runs.RunRecord, session: Session, subject: str | None) -> Ints:
    """Rows (n_units,) of the embeddings that the subject's days share; 0 where there is none."""
    if subject is None:
        return np.zeros(session.n_units, dtype=np.int64)
    row = {word: index for index, word in enumerate(record.unit_words, start=1)}
    return np.array([row.get(word, 0) for word in shared_words(session, subject)])


def _scale(
    record: runs.RunRecord, session: Session, subject: str | None, reads: Reads
) -> OutputScale:
    """The output scale of a new session: its subject's, its own, or between them.

    The scale of a few seconds depends on which movements they hold.
    """
    days = [subject] if subject is not None else record.sessions
    usual = OutputScale.mean_of([record.scale(day) for day in days])
    if reads != "labels":
        return usual
    own = OutputScale.of(session)
    if subject is None:
        return own
    seconds = duration_s(session.train_domain)
    share = seconds / (seconds + SCALE_S)
    return OutputScale(
        mean=usual.mean + share * (own.mean - usual.mean),
        std=usual.std + share * (own.std - usual.std),
    )
