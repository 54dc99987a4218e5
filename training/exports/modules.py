"""The torch modules that are exported as streaming graphs.

Each is the model's inference, rewritten without approximation:

- Keys and values of spikes come in rotated to the clock (`decoder.memory.tokens`). That cost is
  paid once, when a spike arrives. Rotations compose: instead of moving every key into the window's
  frame, the few latent queries are rotated to the clock.
- The start and end tokens of all units never move within the window. Their attention is folded
  into one log-sum-exp and one attended value per latent (`training.exports.tables`), which join the
  softmax as a single column.
- The graph of a streaming model is one step: the open chunk's spikes and a state in, outputs and
  the next state out.

The graph contains no units: new units need new tables, never a new export. Its batch size is one,
and it takes any number of spikes, including none.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_brain.models.poyo import POYO

from training.models import possm
from training.models.config import ModelConfig, PossmConfig
from training.models.encoder import latent_phases, latent_queries, merge_spikes, omega
from training.models.families import Config, Model
from training.models.possm import Possm
from training.models.poyo import process, read_out
from training.models.rotary import Phases, rotate

EXAMPLE_SPIKES = 64
SPIKE_INPUTS = ("tokens", "window_cos", "window_sin", "boundary_lse", "boundary_value")
INPUTS = {
    "poyo": (*SPIKE_INPUTS, "session", "readout"),
    "possm": (*SPIKE_INPUTS, "session", "readout", "state", "share"),
}
OUTPUTS = {"poyo": ("output",), "possm": ("output", "next_state")}


class Gather(nn.Module):
    """Attention over token rows and folded tables: (cross_heads, n_latents, dim_head)."""

    queries: Tensor

    def __init__(self, model: Model, encoder: ModelConfig) -> None:
        super().__init__()
        self.cross_heads = encoder.cross_heads
        queries = latent_queries(model, encoder, latent_phases(model, encoder))
        self.register_buffer("queries", queries.detach() * encoder.dim_head**-0.5)

    def forward(
        self,
        tokens: Tensor,
        window_cos: Tensor,
        window_sin: Tensor,
        boundary_lse: Tensor,
        boundary_value: Tensor,
    ) -> Tensor:
        """Attend to spikes and boundary tokens.

        tokens: (n_spikes, 2 * cross_heads, dim_head), keys then values, rotated to the clock.
        window_cos, window_sin: (n_rotary,), phases of the start of the window (or chunk) on the
            clock.
        boundary_lse, boundary_value: see `decoder.bundles.families.AttentionTables`.
        """
        window_at = Phases(cos=window_cos, sin=window_sin)
        keys = tokens[:, : self.cross_heads].permute(1, 2, 0)
        values = tokens[:, self.cross_heads :].permute(1, 0, 2)
        scores = torch.matmul(rotate(self.queries, window_at), keys)
        weights = torch.softmax(torch.cat([boundary_lse[..., None], scores], dim=-1), dim=-1)
        attended = rotate(torch.matmul(weights[..., 1:], values), window_at.back())
        return attended + weights[..., :1] * boundary_value


class StreamingPOYO(nn.Module):
    """POYO at the end of one window, from token rows and tables; the exported module."""

    latent_cos: Tensor
    latent_sin: Tensor
    output_cos: Tensor
    output_sin: Tensor

    def __init__(self, model: POYO, config: ModelConfig) -> None:
        super().__init__()
        self.model, self.config = model.eval(), config
        self.gather = Gather(model, config)
        latents_at = latent_phases(model, config)
        end = torch.tensor([[config.sequence_length]], dtype=torch.float64)
        output_at = Phases.of(end, omega(model, config))
        for name, value in {
            "latent_cos": latents_at.cos,
            "latent_sin": latents_at.sin,
            "output_cos": output_at.cos,
            "output_sin": output_at.sin,
        }.items():
            self.register_buffer(name, value)

    def forward(
        self,
        tokens: Tensor,
        window_cos: Tensor,
        window_sin: Tensor,
        boundary_lse: Tensor,
        boundary_value: Tensor,
        session: Tensor,
        readout: Tensor,
    ) -> Tensor:
        """Outputs (dim_out,) at the window's end, in units of the output scale.

        session, readout: see `decoder.bundles.families.AttentionTables`.
        """
        latents_at = Phases(cos=self.latent_cos, sin=self.latent_sin)
        outputs_at = Phases(cos=self.output_cos, sin=self.output_sin)
        attended = self.gather(tokens, window_cos, window_sin, boundary_lse, boundary_value)
        latents = merge_spikes(self.model, self.config, attended, latents_at)
        latents = process(self.model, self.config, latents[None], latents_at)
        output = read_out(
            self.model,
            self.config,
            latents,
            session[None],
            latents_at=latents_at,
            outputs_at=outputs_at,
            readout=readout,
        )
        return output[0, 0]


class StreamingPossm(nn.Module):
    """One step of a streaming model over the open chunk; the exported module."""

    def __init__(self, model: Possm, config: PossmConfig) -> None:
        super().__init__()
        self.model, self.config = model.eval(), config
        self.gather = Gather(model, config.encoder)

    def forward(
        self,
        tokens: Tensor,
        window_cos: Tensor,
        window_sin: Tensor,
        boundary_lse: Tensor,
        boundary_value: Tensor,
        session: Tensor,
        readout: Tensor,
        state: Tensor,
        share: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Outputs (dim_out,) in units of the output scale, and the state after the chunk.

        session, readout: see `decoder.bundles.families.AttentionTables`.
        state: (hidden,), after the last closed chunk.
        share: (), how much of the open chunk has passed, 0 to 1.
        """
        gathered = self.gather(tokens, window_cos, window_sin, boundary_lse, boundary_value)
        inputs = possm.chunk_input(self.model, self.config, gathered, share)
        state = possm.step(self.model, inputs, state)
        return possm.read_state(self.model, state, session, readout), state


def streaming_module(model: Model, config: Config) -> StreamingPOYO | StreamingPossm:
    """The module of a model that is exported."""
    if isinstance(config, PossmConfig):
        assert isinstance(model, Possm)
        return StreamingPossm(model, config)
    assert isinstance(model, POYO)
    return StreamingPOYO(model, config)


def example_inputs(module: StreamingPOYO | StreamingPossm) -> tuple[Tensor, ...]:
    """Example inputs of the graph, in order: zeros."""
    config = module.config
    encoder = config.encoder if isinstance(config, PossmConfig) else config
    width, heads = encoder.dim_head, encoder.cross_heads
    n_latents = module.gather.queries.shape[1]
    inputs = (
        torch.zeros(EXAMPLE_SPIKES, 2 * heads, width),
        torch.ones(encoder.n_rotary),
        torch.zeros(encoder.n_rotary),
        torch.zeros(heads, n_latents),
        torch.zeros(heads, n_latents, width),
        torch.zeros(encoder.dim),
        torch.zeros(config.dim_out, encoder.dim + 1),
    )
    if isinstance(config, PossmConfig):
        return (*inputs, torch.zeros(config.hidden), torch.ones(()))
    return inputs
