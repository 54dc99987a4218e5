"""Decode the windows of a session with a model, for causal scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from decoder.arrays import Floats
from decoder.errors import TrainingError
from streaming.sessions.session import Session, Split
from training.data.windows import Batch, WindowSource
from training.models.config import PossmConfig
from training.models.families import Config, Model, forward
from training.models.possm import Possm
from training.models.states import States, settled_states, short
from training.pretraining import runs

WALKED_S = 128.0  # of windows in a batch, at most
USUAL_S, USUAL_OF_EACH_S = 4800.0, 240.0  # of all sessions, and of each at least
N_STRETCHES = 4


def window_source(
    sessions: Sequence[Session],
    model: Model,
    config: Config,
    record: runs.RunRecord,
    *,
    sampling_power: float = 1.0,
    shared_share: float = 0.0,
    profiled_share: float = 0.0,
) -> WindowSource:
    """The windows of sessions in a model's vocabulary, with the run's output scales."""
    return WindowSource(
        sessions,
        model.unit_emb.vocab,
        model.session_emb.vocab,
        layout=config,
        scales={s.session_id: record.scale(s.session_id) for s in sessions},
        sampling_power=sampling_power,
        shared_share=shared_share,
        profiled_share=profiled_share if record.n_profile else 0.0,
        channels=np.array(record.unit_tuning) if record.n_profile else None,
    )


def decode_training_domain(
    model: Model, record: runs.RunRecord, session: Session, *, step_s: float = 0.05
) -> tuple[Floats, Floats]:
    """Times (n,), ascending, and decoded velocity (n, 2) m/s of a session's training domain.

    Raises TrainingError if no window fits.
    """
    read = read_training_domain(model, record, session, step_s=step_s)
    scale, order = record.scale(session.session_id), np.argsort(read.times, kind="stable")
    return read.times[order], (read.decoded * scale.std + scale.mean)[order]


def decode_windows(
    model: Model, config: Config, source: WindowSource, index: int, split: Split,
    *, step_s: float, at_most: int | None = None,
) -> tuple[Floats, Floats]:  # fmt: skip
    """True and decoded velocity (n, 2) every `step_s` of a split, in the session's output scale.

    at_most: maximum number of windows, a random sample that is the same every time.
    Raises TrainingError if no window fits the split.
    """
    walked = _walked(model, config, source, index, split, step_s=step_s, at_most=at_most)
    parts = [(batch.target.flatten(0, 1), output) for _, batch, output in walked]
    true, decoded = (torch.cat(column).double().numpy() for column in zip(*parts, strict=True))
    return true, decoded


@dataclass(frozen=True, kw_only=True)
class Read:
    """Inputs and outputs of the output layer at times (n,) s.

    features: (n, dim). true, decoded: velocity (n, 2) in the session's output scale.
    """

    times: Floats
    features: Floats
    true: Floats
    decoded: Floats


def read_training_domain(
    model: Model, record: runs.RunRecord, session: Session, *, step_s: float
) -> Read:
    """Inputs and outputs of the output layer every `step_s` of a session's training domain.

    Raises TrainingError if no window fits.
    """
    config = record.config().training_on([session.train_domain])
    source = window_source([session], model, config, record)
    features: list[Tensor] = []
    hook = model.readout.register_forward_pre_hook(
        lambda layer, inputs: features.append(inputs[0].flatten(0, -2))
    )
    try:
        walked = list(_walked(model, config, source, 0, "train", step_s=step_s))
    finally:
        hook.remove()
    true = [batch.target.flatten(0, 1) for _, batch, _ in walked]
    return Read(
        times=np.concatenate([times.ravel() for times, _, _ in walked]),
        features=torch.cat(features).double().numpy(),
        true=torch.cat(true).double().numpy(),
        decoded=torch.cat([output for _, _, output in walked]).double().numpy(),
    )


@torch.no_grad()
def usual_states(
    model: Model, record: runs.RunRecord, sessions: Sequence[Session]
) -> States | None:
    """How the states over sessions that a model knows are distributed; None if it has no state.

    Reads up to `USUAL_S` of the training domains, each session's in `N_STRETCHES` parts.
    """
    config = record.config()
    if not isinstance(model, Possm) or not isinstance(config, PossmConfig):
        return None
    model.eval()
    config = short(config)
    source = window_source(sessions, model, config, record)
    at_most = max(USUAL_OF_EACH_S, USUAL_S / len(sessions)) / config.train_s
    days = []
    for index in range(len(sessions)):
        batches = source.walk(
            index, "train", step_s=config.train_s, layout=config, at_most=round(at_most)
        )
        states = [settled_states(model, config, batch.inputs()) for _, batch in batches]
        if states:
            windows = torch.cat(states)
            parts = windows.tensor_split(min(N_STRETCHES, len(windows)))
            days.append([part.flatten(0, 1) for part in parts])
    return States.of(days) if days else None


@torch.no_grad()
def _walked(
    model: Model, config: Config, source: WindowSource, index: int, split: Split,
    *, step_s: float, at_most: int | None = None,
) -> Iterator[tuple[Floats, Batch, Tensor]]:  # fmt: skip
    """Query times (B, n_queries) s, batch and outputs (B * n_queries, 2) of a split's windows.

    Raises TrainingError if no window fits the split.
    """
    model.eval()
    device = next(model.parameters()).device
    session = source.sessions[index]
    config = config.walking(session.intervals(split))
    at_once = max(1, min(32, int(WALKED_S / config.window_s)))
    found = False
    for times, batch in source.walk(
        index, split, step_s=step_s, layout=config, at_most=at_most, batch_size=at_once
    ):
        found = True
        output = forward(model, config, **batch.to(device).inputs())
        yield times, batch, output.flatten(0, 1).cpu()
    if not found:
        raise TrainingError(
            f"{session.session_id}: no window of {config.window_s} s fits the {split} domain"
        )
