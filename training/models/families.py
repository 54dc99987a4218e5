"""The two model families, and what training knows of them: names, sizes, how to build and run.

    poyo   a window of spikes is read again at every decode (`training.models.poyo`)
    possm  a short chunk at a time, with a recurrent state (`training.models.possm`)

Sampling, optimisation, adaptation and evaluation call these functions and know no difference.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TypeAlias

from torch import Tensor, nn
from torch_brain.models.poyo import POYO

from decoder.bundles.families import PossmSizes, Sizes
from decoder.errors import TrainingError
from training.models import possm, poyo
from training.models.config import ModelConfig, PossmConfig
from training.models.possm import Possm

Config: TypeAlias = ModelConfig | PossmConfig
Model: TypeAlias = POYO | Possm
CONFIGS: dict[str, type[ModelConfig] | type[PossmConfig]] = {
    "poyo": ModelConfig,
    "possm": PossmConfig,
}

PRESETS: dict[str, Config] = {
    # Made for a CPU rig: half a second, 32 latents, 0.38M parameters besides embeddings.
    # Faster rotary periods than 10 ms carry no more about reaching and cost capacity. Sizes and
    # dropout were chosen by what training gives in minutes (docs/ACCURACY.md).
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
    # A rig without a GPU, and recalibration in seconds: 0.37M parameters besides embeddings.
    "stream": PossmConfig(),
    # The size of the pretrained POSSM (Ryoo et al. 2025).
    "stream-8m": PossmConfig(dim=256, dim_head=64, cross_heads=4, num_latents=8, hidden=768),
}


def preset(name: str) -> Config:
    """Look a preset up; TrainingError lists the names there are."""
    if name not in PRESETS:
        raise TrainingError(f"unknown preset {name!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def family(config: Config) -> str:
    """`poyo` or `possm`."""
    return "possm" if isinstance(config, PossmConfig) else "poyo"


def build(config: Config, unit_words: Iterable[str], session_words: Iterable[str]) -> Model:
    """A freshly initialised model with these vocabularies (units as `session/unit`)."""
    if isinstance(config, PossmConfig):
        model: Model = Possm(config)
    else:
        model = POYO(**asdict(config))
    model.unit_emb.initialize_vocab(list(unit_words))
    model.session_emb.initialize_vocab(list(session_words))
    return model


def forward(model: Model, config: Config, **inputs: Tensor) -> Tensor:
    """Outputs (B, n_outputs, dim_out) of a batch, arguments as `training.models.poyo.forward`."""
    if isinstance(config, PossmConfig):
        assert isinstance(model, Possm)
        return possm.forward(model, config, **inputs)
    return poyo.forward(model, config, **inputs)


def n_parameters(model: nn.Module) -> int:
    """Parameters besides unit and session embeddings."""
    skip = ("unit_emb", "session_emb")
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith(skip))


def sizes(config: Config) -> Sizes | PossmSizes:
    """What a bundle's manifest says of a model's sizes."""
    kind = PossmSizes if isinstance(config, PossmConfig) else Sizes
    return kind(**{name: getattr(config, name) for name in kind.model_fields})
