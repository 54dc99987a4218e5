"""Fold the parts of a model that depend on one session's units into tables for its graph."""

from __future__ import annotations

import torch
from torch import Tensor

from decoder.bundles.families import AttentionTables
from decoder.errors import TrainingError
from training.models.config import ModelConfig, PossmConfig
from training.models.encoder import (
    END,
    SPIKE,
    START,
    latent_phases,
    latent_queries,
    omega,
    unit_tables,
)
from training.models.families import Config, Model, copied
from training.models.rotary import Phases, from_pairs, rotate


@torch.no_grad()
def fold_tables(
    model: Model, config: Config, unit_words: list[str], session_word: str
) -> AttentionTables:
    """The tables of one session's units, computed in float64.

    unit_words: words of the model's unit vocabulary, in the order of the bundle's unit ids.
    Raises TrainingError if a unit or the session is not in the model's vocabularies.
    """
    words, sessions = model.unit_emb.vocab, model.session_emb.vocab
    if missing := [word for word in unit_words if word not in words]:
        raise TrainingError(
            f"{len(missing)} units ({missing[0]}, …) are not in the run; choose one of its sessions"
        )
    if session_word not in sessions:
        raise TrainingError(
            f"session {session_word!r} is not in the run; expected one of "
            f"{sorted(set(sessions) - {'NA'})}"
        )
    encoder = config.encoder if isinstance(config, PossmConfig) else config
    precise = copied(model).double()
    units = torch.tensor([words[word] for word in unit_words])
    rows = from_pairs(unit_tables(precise, encoder, precise.unit_emb.weight[units]), encoder)
    heads = encoder.cross_heads
    frequencies = omega(model, encoder)
    boundary = rows[START].flatten(1, 2)
    if isinstance(config, ModelConfig):
        end = torch.tensor([config.sequence_length], dtype=torch.float64)
        boundary = torch.cat([boundary, _rotate64(rows[END].flatten(1, 2), end, frequencies)])
    keys, values = boundary[:, :heads], boundary[:, heads:]
    queries = _latent_queries64(precise, encoder) * encoder.dim_head**-0.5
    scores = torch.einsum("hld,nhd->hln", queries, keys)
    attended = torch.einsum("hln,nhd->hld", scores.softmax(-1), values)
    return AttentionTables(
        tokens=rows[SPIKE].flatten(1, 2).float().numpy(),
        boundary_lse=scores.logsumexp(-1).float().numpy(),
        boundary_value=attended.float().numpy(),
        session=model.session_emb.weight[sessions[session_word]].float().numpy(),
        omega=frequencies.numpy(),
        readout=torch.cat([model.readout.weight, model.readout.bias[:, None]], dim=1).numpy(),
    )


def _rotate64(x: Tensor, times: Tensor, frequencies: Tensor) -> Tensor:
    angles = times[:, None] * frequencies
    return rotate(x, Phases(cos=angles.cos(), sin=angles.sin()))


def _latent_queries64(model: Model, config: ModelConfig) -> Tensor:
    latents_at = latent_phases(model, config)
    return latent_queries(
        model, config, Phases(cos=latents_at.cos.double(), sin=latents_at.sin.double())
    )
