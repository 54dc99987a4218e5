"""The network that reads profiles of units (`training.data.profile`) and gives embeddings."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN = 128


class Identifier(nn.Module):
    """Adds to the embedding of a unit's channel what the unit's profile says.

    Part of a model, and trained with it. An unknown channel has the embedding zero.
    """

    def __init__(self, n_profile: int, dim: int) -> None:
        super().__init__()
        self.read = nn.Linear(n_profile, HIDDEN)
        self.mix = nn.Linear(HIDDEN, HIDDEN)
        self.embed = nn.Linear(HIDDEN, dim)
        nn.init.zeros_(self.embed.bias)

    def forward(self, channel: Tensor, profile: Tensor) -> Tensor:
        """Embeddings (n, dim) from those of the channels (n, dim) and profiles (n, n_profile)."""
        hidden = F.gelu(self.read(profile))
        hidden = hidden + F.gelu(self.mix(hidden))
        embedded: Tensor = channel + self.embed(hidden)
        return embedded
