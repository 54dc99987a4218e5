"""The two model families behind one interface: presets, sizes, `build` and `forward`.

    poyo   reads a whole window of spikes at every decode (`training.models.poyo`)
    possm  reads one short chunk at a time, with a recurrent state (`training.models.possm`)

Sampling, optimisation, adaptation and evaluation call these functions for either family.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch_brain.models.poyo import POYO

from decoder.bundles.families import PossmSizes, PoyoSizes
from decoder.errors import TrainingError
from training.models import possm, poyo
from training.models.config import ModelConfig, PossmConfig
from training.models.identifier import Identifier
from training.models.possm import Possm

Config: TypeAlias = ModelConfig | PossmConfig
Model: TypeAlias = POYO | Possm
CONFIGS: dict[str, type[ModelConfig] | type[PossmConfig]] = {
    "poyo": ModelConfig,
    "possm": PossmConfig,
}

# Fields that change how a model trains, not its weights.
OF_TRAINING = ("train_s", "n_carried", "state_dropout")

PRESETS: dict[str, Config] = {
    # For a CPU rig: windows of half a second, 32 latents, 0.38M parameters without embeddings.
    # Rotary periods below 10 ms add nothing about reaching and cost capacity. Sizes and dropout
    # give the best accuracy after minutes of training (docs/ACCURACY.md).
    "rt": ModelConfig(
        sequence_length=0.5,
        num_latents_per_step=8,
        depth=3,
        dim_head=32,
        self_heads=4,
        ffn_dropout=0.0,
        lin_dropout=0.0,
        atn_dropout=0.0,
        t_min=1e-2,
        t_max=4.0,
    ),
    # torch_brain's published sizes (examples/poyo/configs/model).
    "poyo-1.3m": ModelConfig(),
    "poyo-11.8m": ModelConfig(dim=128, depth=24, num_latents_per_step=32),
    # For a rig without a GPU and recalibration in seconds: 0.37M parameters without embeddings.
    "stream": PossmConfig(),
    # The size of the pretrained POSSM (Ryoo et al. 2025).
    "stream-8m": PossmConfig(dim=256, dim_head=64, cross_heads=4, num_latents=8, hidden=768),
}


def preset(name: str) -> Config:
    """Look up a preset by name. Raises TrainingError, listing the known names, if there is none."""
    if name not in PRESETS:
        raise TrainingError(f"unknown preset {name!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def family(config: Config) -> str:
    """The name of a configuration's family: `poyo` or `possm`."""
    return "possm" if isinstance(config, PossmConfig) else "poyo"


def build(
    config: Config,
    unit_words: Iterable[str],
    session_words: Iterable[str],
    *,
    n_profile: int = 0,
) -> Model:
    """Build a freshly initialised model with these vocabularies (units as `session/unit`).

    n_profile: length of the profiles that it identifies units by; 0 if it does not.
    """
    if isinstance(config, PossmConfig):
        model: Model = Possm(config)
    else:
        model = POYO(**asdict(config))
    model.unit_emb.initialize_vocab(list(unit_words))
    model.session_emb.initialize_vocab(list(session_words))
    if n_profile:
        model.identifier = Identifier(n_profile, config.dim)
    return model


def copied(model: Model) -> Model:
    """A copy of a model. A deep copy of every word of its vocabularies would take longer."""
    embeddings: Any = (model.unit_emb, model.session_emb)
    vocabularies = {id(one.vocab): one.vocab.copy() for one in embeddings}
    return copy.deepcopy(model, vocabularies)


def forward(model: Model, config: Config, **inputs: Tensor) -> Tensor:
    """Outputs (B, n_outputs, dim_out) of a batch; arguments as `training.models.poyo.forward`."""
    if isinstance(config, PossmConfig):
        assert isinstance(model, Possm)
        return possm.forward(model, config, **inputs)
    return poyo.forward(model, config, **inputs)


def same_sizes(one: Config, other: Config) -> bool:
    """Whether models of two configurations have the same weights, whatever they train on."""
    if type(one) is not type(other):
        return False
    ours, theirs = (
        {name: value for name, value in asdict(config).items() if name not in OF_TRAINING}
        for config in (one, other)
    )
    return ours == theirs


def n_parameters(model: nn.Module) -> int:
    """Number of parameters, without unit and session embeddings."""
    skip = ("unit_emb", "session_emb", "identifier")
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith(skip))


def sizes(config: Config) -> PoyoSizes | PossmSizes:
    """The sizes of a model as a bundle's manifest stores them."""
    kind = PossmSizes if isinstance(config, PossmConfig) else PoyoSizes
    return kind(**{name: getattr(config, name) for name in kind.model_fields})
