"""Decode the windows of a session with a model, for causal scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from decoder.arrays import Floats
from decoder.errors import TrainingError
from streaming.sessions.session import Session, Split
from training.data.windows import WindowSource
from training.models.families import Config, Model, forward
from training.pretraining import runs

WALKED_S = 128.0  # of windows in a batch


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


@torch.no_grad()
def decode_training_domain(
    model: Model, record: runs.RunRecord, session: Session, *, step_s: float = 0.05
) -> tuple[Floats, Floats]:
    """Times (n,), ascending, and decoded velocity (n, 2) m/s of a session's training domain.

    Raises TrainingError if no window fits.
    """
    model.eval()
    config = record.config().training_on([session.train_domain])
    source = window_source([session], model, config, record)
    layout = config.walking(session.train_domain)
    times, decoded = [], []
    for at, batch in source.walk(
        0, "train", step_s=step_s, layout=layout, batch_size=_at_once(layout)
    ):
        decoded.append(forward(model, layout, **batch.inputs()).flatten(0, 1).double().numpy())
        times.append(at.ravel())
    if not times:
        raise TrainingError(f"{session.session_id}: no window of {layout.window_s} s fits")
    scale, at = record.scale(session.session_id), np.concatenate(times)
    order = np.argsort(at, kind="stable")
    return at[order], (np.concatenate(decoded) * scale.std + scale.mean)[order]


@torch.no_grad()
def decode_windows(
    model: Model, config: Config, source: WindowSource, index: int, split: Split,
    *, step_s: float, at_most: int | None = None,
) -> tuple[Floats, Floats]:  # fmt: skip
    """True and decoded velocity (n, 2) every `step_s` of a split, in the session's output scale.

    at_most: maximum number of windows, a random sample that is the same every time.
    Raises TrainingError if no window fits the split.
    """
    model.eval()
    device = next(model.parameters()).device
    true, decoded = [], []
    config = config.walking(source.sessions[index].intervals(split))
    for _, batch in source.walk(
        index, split, step_s=step_s, layout=config, at_most=at_most, batch_size=_at_once(config)
    ):
        output = forward(model, config, **batch.to(device).inputs())
        decoded.append(output.flatten(0, 1).cpu())
        true.append(batch.target.flatten(0, 1))
    if not true:
        raise TrainingError(
            f"{source.sessions[index].session_id}: no window of {config.window_s} s fits "
            f"the {split} domain"
        )
    return torch.cat(true).double().numpy(), torch.cat(decoded).double().numpy()


def _at_once(config: Config) -> int:
    """Windows in a batch when a session is walked: two minutes of them at most."""
    return max(1, min(32, int(WALKED_S / config.window_s)))
