"""Learns a new session in closed form, without any training: its units, and the output layer.

What a unit starts from:

    profile   what its subject's channel is on other days, corrected by the network that reads the
              unit's profile of today (`training.models.identifier`)
    channel   the embedding that its subject's days share (`training.data.identity`), if nothing of
              today is read or the model has no such network
    namesake  the embedding of the unit of the same name in the known session that has most of
              them, if the run knows no subject: a run of one day has nothing that days share
    tuning    the mean of the known units with the most similar tuning (`training.data.tuning`), for
              units whose channel isn't known

Without a known subject, labels choose among profiles, namesakes and tuning: whichever decodes them
best. Without labels, the first that there is counts.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from decoder.arrays import Floats, Ints
from decoder.errors import TrainingError
from streaming.sessions.intervals import duration_s, intersect, time_after
from streaming.sessions.session import Session
from training.data.identity import home, shared_words
from training.data.profile import profiles
from training.data.tuning import nearest_mean, tuning
from training.data.windows import OutputScale, unit_words
from training.models.families import Model, copied
from training.models.possm import EMB_INIT_SCALE
from training.pretraining import runs
from training.pretraining.scoring import read_training_domain

Reads = Literal["nothing", "spikes", "labels"]

COMPARED_S, STEP_S = 20.0, 0.2  # the last labels, at most, that starts are compared on
SCALE_S = 300.0  # seconds of labels that weigh as much as the subject's earlier days
READOUT_S = 20.0  # penalty of the output layer's correction, in seconds of labels
READ_STEP_S = 0.1  # between the instants that the correction is fitted to


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a new session could start from: embeddings of its units (n_units, dim) and its own."""

    units: Tensor
    session: Tensor


@dataclass(frozen=True, kw_only=True)
class Like:
    """A known session with units of the same names. rows: (n_units,), of their embeddings, or 0."""

    session_id: str
    rows: Ints


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
    like = _like(record, session) if subject is None else None
    with torch.no_grad():
        starts = _starts(model, record, session, subject, channels, like, reads)
    model, record = copied(model), _own_lists(record)
    model.unit_emb.extend_vocab(words)
    model.session_emb.extend_vocab([session.session_id])
    scale = _scale(record, session, subject, like, reads)
    if record.unit_tuning:
        rows = channels if like is None else like.rows
        record.unit_tuning += _tuning(record, session, rows, reads).round(3).tolist()
    record.best_r2 = math.nan  # that of the other sessions says nothing about this one
    record.unit_words += words
    record.session_words.append(session.session_id)
    record.output_mean[session.session_id] = (scale.mean[0], scale.mean[1])
    record.output_std[session.session_id] = (scale.std[0], scale.std[1])

    def begin(start: Start) -> None:
        with torch.no_grad():
            model.unit_emb.weight[-len(words) :] = start.units
            model.session_emb.weight[-1] = start.session

    if len(starts) > 1:
        domain = session.train_domain
        first_s = time_after(domain, max(0.0, duration_s(domain) - COMPARED_S))
        compared = replace(session, train_domain=intersect(domain, first_s, domain[-1, 1]))
        errors = []
        for start in starts:
            begin(start)
            errors.append(_error(model, record, compared))
        starts = [starts[int(np.argmin(errors))]]
    begin(starts[0])
    return model, record


def _own_lists(record: runs.RunRecord) -> runs.RunRecord:
    """A copy of a record that a session can be added to. A deep copy of many units takes longer."""
    grow = ("unit_words", "unit_tuning", "session_words", "output_mean", "output_std")
    own = {name: copy.copy(getattr(record, name)) for name in (*grow, "settings", "history")}
    return record.model_copy(update=own)


def knows_units(record: runs.RunRecord, session: Session) -> bool:
    """Whether a session's units have names that the run knows, of its subject or another day."""
    subject = home(session, record.session_words, record.unit_words)
    if subject is None:
        return _like(record, session) is not None
    n_known = np.count_nonzero(_channels(record, session, subject))
    return bool(2 * n_known >= session.n_units)


def _starts(
    model: Model,
    record: runs.RunRecord,
    session: Session,
    subject: str | None,
    channels: Ints,
    like: Like | None,
    reads: Reads,
) -> list[Start]:
    """What the session could start from: the first, if nothing tells which is best."""
    units, days = model.unit_emb.weight, model.session_emb.weight
    of_subject = days[0 if subject is None else record.session_words.index(subject) + 1]
    rows, is_known = torch.from_numpy(channels), torch.from_numpy(channels > 0)
    channel = units[rows] * is_known[:, None]
    starts = []
    if record.n_profile and reads != "nothing":
        profile = profiles(
            session,
            session.train_domain,
            labelled=reads == "labels",
            channels=_tuning_of_channels(record, channels),
        )
        identifier: Any = model.identifier
        found = identifier(channel, torch.from_numpy(profile).float())
        starts.append(Start(units=found, session=of_subject))
        if subject is not None:
            return starts
    if reads == "labels" and record.unit_tuning:
        known = units[1:].double().numpy()
        nearest = nearest_mean(tuning(session), np.array(record.unit_tuning), known)
        others = torch.from_numpy(nearest).float()
    else:
        others = units[1:].mean(dim=0).repeat(session.n_units, 1)
        generator = torch.Generator().manual_seed(0)
        others += EMB_INIT_SCALE * torch.randn(others.shape, generator=generator)
    if like is not None:
        rows = torch.from_numpy(like.rows)
        namesakes = torch.where((rows > 0)[:, None], units[rows], others)
        there = days[record.session_words.index(like.session_id) + 1]
        starts.append(Start(units=namesakes, session=there))
    mean = days[1:].mean(dim=0) if subject is None else of_subject
    starts.append(Start(units=torch.where(is_known[:, None], channel, others), session=mean))
    return starts if reads == "labels" else starts[:1]


@torch.no_grad()
def fit_readout(model: Model, record: runs.RunRecord, session: Session) -> None:
    """Correct the output layer with a ridge regression of its errors on its inputs.

    Uses the labels of a session's training domain. The penalty weighs as much as `READOUT_S` of
    labels. The mean output is not corrected: in a few seconds it depends on the movements. If no
    window fits the domain, nothing changes.
    """
    try:
        read = read_training_domain(model, record, session, step_s=READ_STEP_S)
    except TrainingError:
        return
    weight = session.weight_at(read.times)
    seconds, weight = READ_STEP_S * weight.sum(), weight / weight.sum()
    mean = weight @ read.features
    features = read.features - mean
    weighed = features.T * weight
    covariance = weighed @ features
    penalty = READOUT_S / seconds * float(np.trace(covariance)) / len(covariance)
    correction = np.linalg.solve(
        covariance + penalty * np.eye(len(covariance)), weighed @ (read.true - read.decoded)
    )
    model.readout.weight += torch.from_numpy(correction.T).float()
    model.readout.bias -= torch.from_numpy(mean @ correction).float()


def _error(model: Model, record: runs.RunRecord, session: Session) -> float:
    """Squared error of the training domain's velocity; infinite if no window fits."""
    try:
        read = read_training_domain(model, record, session, step_s=STEP_S)
    except TrainingError:
        return math.inf
    return float(np.square(read.true - read.decoded).mean())


def _tuning(record: runs.RunRecord, session: Session, channels: Ints, reads: Reads) -> Floats:
    """Tuning features (n_units, F) for the record: today's, or without labels the channels' (the
    mean of all units, if a channel isn't known)."""
    if reads == "labels":
        return tuning(session)
    known = _tuning_of_channels(record, channels)
    return np.where(np.isnan(known), np.mean(record.unit_tuning, axis=0), known)


def _tuning_of_channels(record: runs.RunRecord, channels: Ints) -> Floats:
    """Tuning features (n_units, F) of channels on other days; NaN for those that aren't known."""
    features = np.array(record.unit_tuning)[channels - 1]
    features[channels == 0] = np.nan
    return features


def _channels(record: runs.RunRecord, session: Session, subject: str | None) -> Ints:
    """Rows (n_units,) of the embeddings that the subject's days share; 0 where there is none."""
    if subject is None:
        return np.zeros(session.n_units, dtype=np.int64)
    row = {word: index for index, word in enumerate(record.unit_words, start=1)}
    return np.array([row.get(word, 0) for word in shared_words(session, subject)])


def _like(record: runs.RunRecord, session: Session) -> Like | None:
    """The latest of the known sessions with most of a session's units; None if none has half."""
    row = {word: index for index, word in enumerate(record.unit_words, start=1)}
    found = [
        Like(
            session_id=known, rows=np.array([row.get(f"{known}/{u}", 0) for u in session.unit_ids])
        )
        for known in reversed(record.sessions)
    ]
    best = max(found, key=lambda like: np.count_nonzero(like.rows), default=None)
    return best if best and 2 * np.count_nonzero(best.rows) >= session.n_units else None


def _scale(
    record: runs.RunRecord, session: Session, subject: str | None, like: Like | None, reads: Reads
) -> OutputScale:
    """The output scale of a new session: its subject's, its own, or between them.

    The scale of a few seconds depends on which movements they hold.
    """
    known = subject or (like.session_id if like else None)
    days = [known] if known is not None else record.sessions
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


def alone(record: runs.RunRecord, session: Session) -> tuple[Model, runs.RunRecord]:
    """A new model with a run's sizes that knows one session only, and its record."""
    scale = OutputScale.of(session)
    record = record.model_copy(
        deep=True,
        update={
            "unit_words": unit_words(session),
            "unit_tuning": tuning(session).round(3).tolist(),
            "session_words": [session.session_id],
            "session_paths": {},
            "output_mean": {session.session_id: (scale.mean[0], scale.mean[1])},
            "output_std": {session.session_id: (scale.std[0], scale.std[1])},
            "step": 0,
            "seconds": 0.0,
            "history": [],
        },
    )
    return record.build(), record
