"""A streaming sibling of POYO: the same spike tokens, a short chunk at a time, a recurrent state.

The class of POSSM (Ryoo et al., NeurIPS 2025). A few latents attend to the spikes of one chunk,
as POYO's encoder does: unit embeddings, rotary times inside the chunk. Beside spikes they attend
to one silence token a unit (POYO's start token), so that an empty chunk means something and rates
survive the softmax's normalisation. What latents gather drives a GRU; its state is read out.

At any time the open chunk, however short yet, is run from the state of the last closed one: a
decode at `t` sees every spike before `t`. Training asks at such times too, all chunks in parallel
up to the GRU; `training.exports.export` writes the same weights as a graph of one step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_brain.models.poyo import FeedForward
from torch_brain.nn import InfiniteVocabEmbedding, RotaryCrossAttention, RotaryTimeEmbedding

from decoder.arrays import Floats
from decoder.memory.chunks import EDGE_S
from training.models.attention import attend_chunks
from training.models.poyo import (
    SPIKE,
    START,
    ModelConfig,
    Phases,
    compact,
    from_pairs,
    latent_phases,
    latent_queries,
    merge_spikes,
    omega,
    to_pairs,
)

EMB_INIT_SCALE = 0.02  # as torch_brain's POYO
N_OPEN = 8  # queries of a training window inside chunks
MAX_WALK_S = 4.0
FRESH_SHARE = 0.3  # of training windows that begin with a fresh state
N_AGES = 4  # numbers that tell the GRU how much of a chunk has passed


@dataclass(frozen=True, kw_only=True)
class PossmConfig:
    """Sizes of a streaming model.

    chunk_s: seconds of a chunk. warm_up_s: seconds after a reset until the state is worth
    trusting. train_s: seconds of a training window. n_carried: windows that a state has been
    through before one.
    """

    chunk_s: float = 0.04
    warm_up_s: float = 0.4
    train_s: float = 1.0
    n_carried: int = 4
    num_latents: int = 8
    dim: int = 64
    dim_head: int = 16
    cross_heads: int = 2
    hidden: int = 128
    dropout: float = 0.0
    t_min: float = 1e-2
    t_max: float = 4.0
    dim_out: int = 2

    @property
    def encoder(self) -> ModelConfig:
        """The encoder, as that of a POYO whose window is one chunk."""
        return ModelConfig(
            sequence_length=self.chunk_s,
            latent_step=self.chunk_s,
            num_latents_per_step=self.num_latents,
            dim=self.dim,
            depth=0,
            dim_head=self.dim_head,
            cross_heads=self.cross_heads,
            ffn_dropout=self.dropout,
            lin_dropout=self.dropout,
            atn_dropout=0.0,
            t_min=self.t_min,
            t_max=self.t_max,
            dim_out=self.dim_out,
        )

    @property
    def n_chunks(self) -> int:
        """Chunks of a training window."""
        return round(self.train_s / self.chunk_s)

    @property
    def window_s(self) -> float:
        """Seconds of a training window."""
        return self.train_s

    @property
    def n_together(self) -> int:
        """Windows of one session in a batch, so that states can be carried from one to another."""
        return self.n_carried

    def training_queries(self, rng: np.random.Generator) -> Floats:
        """Times in a training window that are asked for: every chunk's end, and some between."""
        first = math.ceil(self.warm_up_s / self.chunk_s)
        ends = self.chunk_s * np.arange(first, self.n_chunks + 1)
        return np.append(rng.uniform(self.warm_up_s, self.train_s, N_OPEN), ends)

    def walking(self, intervals: Floats) -> PossmConfig:
        """With windows for walking these intervals (n, 2): longer ones, since live states are old.

        Three intervals of four hold one.
        """
        lengths = intervals[:, 1] - intervals[:, 0]
        fitting = float(np.percentile(lengths, 25)) - self.chunk_s
        longest = min(max(fitting, self.train_s), MAX_WALK_S)
        return replace(self, train_s=self.chunk_s * int(longest / self.chunk_s + EDGE_S))

    def walked_queries(self, step_s: float) -> Floats:
        """Times, every `step_s`, that one window answers for when a recording is walked."""
        n_steps = max(1, int((self.train_s - self.warm_up_s) / step_s + EDGE_S))
        return np.asarray(self.train_s - step_s * np.arange(n_steps, dtype=np.float64)[::-1])


class Possm(nn.Module):
    """The weights; names as in torch_brain's POYO as far as it has the part.

    carried_share: of the last training batch's windows, which began with a carried state.
    """

    def __init__(self, config: PossmConfig) -> None:
        super().__init__()
        dim = config.dim
        self.carried_share: Tensor | None = None
        self.unit_emb = InfiniteVocabEmbedding(dim, init_scale=EMB_INIT_SCALE)
        self.session_emb = InfiniteVocabEmbedding(dim, init_scale=EMB_INIT_SCALE)
        self.token_type_emb = nn.Embedding(2, dim)
        self.latent_emb = nn.Embedding(config.num_latents, dim)
        for embedding in (self.token_type_emb, self.latent_emb):
            nn.init.normal_(embedding.weight, std=EMB_INIT_SCALE)
        self.rotary_emb = RotaryTimeEmbedding(
            head_dim=config.dim_head, rotate_dim=config.dim_head // 2,
            t_min=config.t_min, t_max=config.t_max,
        )  # fmt: skip
        self.enc_atn = RotaryCrossAttention(
            dim=dim, heads=config.cross_heads, dim_head=config.dim_head, rotate_value=True,
            dropout=0.0,
        )  # fmt: skip
        self.enc_ffn = _feed_forward(config)
        self.norm = nn.LayerNorm(config.num_latents * dim)
        self.gru = nn.GRU(config.num_latents * dim + N_AGES, config.hidden, batch_first=True)
        self.state_out = nn.Linear(config.hidden, dim)
        self.out_ffn = _feed_forward(config)
        self.readout = nn.Linear(dim, config.dim_out)


def _feed_forward(config: PossmConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(config.dim), FeedForward(dim=config.dim, dropout=config.dropout)
    )


def chunk_input(model: Possm, config: PossmConfig, gathered: Tensor, share: Tensor) -> Tensor:
    """What drives the GRU: (..., num_latents * dim + N_AGES).

    gathered: (..., cross_heads, num_latents, dim_head), what latents gathered, heads
        `[real | imaginary | unrotated]`. share: (...) of the chunk that has passed, 0 to 1.
    """
    latents = merge_spikes(model, config.encoder, gathered, latent_phases(model, config.encoder))
    angles = torch.pi * share.float()[..., None] * torch.tensor([0.5, 1.0], device=share.device)
    return torch.cat([model.norm(latents.flatten(-2)), angles.cos(), angles.sin()], dim=-1)


def step(model: Possm, inputs: Tensor, state: Tensor) -> Tensor:
    """The state (..., hidden) after one more chunk, as `torch.nn.GRU` defines it."""
    weight_in, weight_state, bias_in, bias_state = model.gru.all_weights[0]
    reset, update, new = F.linear(inputs, weight_in, bias_in).chunk(3, dim=-1)
    kept = F.linear(state, weight_state, bias_state).chunk(3, dim=-1)
    reset, update = torch.sigmoid(reset + kept[0]), torch.sigmoid(update + kept[1])
    proposed = torch.tanh(new + reset * kept[2])
    stepped: Tensor = proposed + update * (state - proposed)
    return stepped


def read_state(model: Possm, state: Tensor, session: Tensor) -> Tensor:
    """Outputs (..., dim_out) from states (..., hidden) and session embeddings (..., dim)."""
    hidden = model.state_out(state) + session
    outputs: Tensor = model.readout(hidden + model.out_ffn(hidden))
    return outputs


def forward(
    model: Possm,
    config: PossmConfig,
    *,
    token: Tensor,
    times: Tensor,
    lengths: Tensor,
    session_index: Tensor,
    output_times: Tensor,
) -> Tensor:
    """Outputs (B, n_outputs, dim_out) in windows that begin with a fresh state.

    In training most begin with one that was carried on (`_carried`).

    Arguments as for `training.models.poyo.forward`; end tokens are left out.
    """
    encoder, device = config.encoder, token.device
    n_windows, n_chunks = len(lengths), config.n_chunks
    row, tables = compact(model, encoder, token)
    kind = token // len(model.unit_emb.weight)
    window = torch.arange(n_windows, device=device).repeat_interleave(lengths)
    queries = to_pairs(latent_queries(model, encoder, latent_phases(model, encoder)), encoder)
    starts = kind == START
    with torch.autocast(device.type, enabled=False):
        lse, value = _silence(queries, tables, row[starts], window[starts], n_windows)

    spikes = kind == SPIKE
    row, times, window = row[spikes], times[spikes], window[spikes]
    chunk = ((times + EDGE_S) / config.chunk_s).long().clamp_(max=n_chunks - 1)
    n_closed = torch.bincount(window * n_chunks + chunk, minlength=n_windows * n_chunks)

    asked = _Asked.of(config, output_times)
    begin = asked.chunk.double() * config.chunk_s
    apart = 2.0 * config.train_s  # so that times of all windows ascend
    order = times + window * apart
    first = torch.searchsorted(order, begin - EDGE_S + asked.window * apart)
    n_open = torch.searchsorted(order, asked.time + asked.window * apart) - first
    of = torch.arange(len(n_open), device=device).repeat_interleave(n_open)
    again = (first - n_open.cumsum(0) + n_open)[of] + torch.arange(len(of), device=device)

    since = torch.cat([times - chunk.double() * config.chunk_s, times[again] - begin[of]])
    at = Phases.of(since, omega(model, encoder))
    whose = torch.arange(n_windows, device=device).repeat_interleave(n_chunks)
    whose = torch.cat([whose, asked.window])
    gathered = attend_chunks(
        queries,
        tables,
        silence_lse=lse[whose],
        silence_value=value[whose],
        token=torch.cat([row, row[again]]),
        turn=torch.complex(at.cos, at.sin),
        lengths=torch.cat([n_closed, n_open]),
    )
    share = torch.cat(
        [torch.ones(len(n_closed), device=device), (asked.time - begin) / config.chunk_s]
    )
    inputs = chunk_input(model, config, from_pairs(gathered, encoder), share)
    closed, opened = inputs.split([len(n_closed), len(n_open)])
    closed = closed.unflatten(0, (n_windows, n_chunks))
    begins = closed.new_zeros(n_windows, config.hidden, dtype=torch.float32)
    if model.training:
        begins = _carried(model, config, closed.detach(), session_index)
    states, _ = _recur(model, closed, begins[None])
    states = torch.cat([begins[:, None], states], dim=1)  # before each chunk, and after all
    with torch.autocast(device.type, enabled=False):
        stepped = step(model, opened.float(), states[asked.window, asked.chunk])
    state = states[torch.arange(n_windows, device=device)[:, None], asked.closed_before]
    state = state.index_put((asked.window, asked.query), stepped)
    return read_state(model, state, model.session_emb(session_index)[:, None])


@torch.no_grad()
def _carried(model: Possm, config: PossmConfig, inputs: Tensor, session_index: Tensor) -> Tensor:
    """States (B, hidden) that windows begin with in training: some fresh, most carried on.

    Live, a state runs for hours. So it goes through up to `n_carried` other windows of its session
    first, as many as the batch has, without gradient. `training.data.windows` draws several of
    each. `model.carried_share` says how many windows did begin with such a state.
    """
    order = session_index.argsort(stable=True)
    ranked, here = session_index[order], torch.arange(len(order), device=order.device)
    first = torch.searchsorted(ranked, ranked)
    last = torch.searchsorted(ranked, ranked, right=True) - 1
    before = torch.empty_like(order)  # the window before each, in the circle of its session
    before[order] = order[torch.where(here == first, last, here - 1)]
    n_of_session = torch.empty_like(order)
    n_of_session[order] = last - first + 1
    state = inputs.new_zeros(1, len(inputs), model.gru.hidden_size)
    for turn in range(config.n_carried):
        ends = _recur(model, inputs, state)[1]
        goes_on = (turn + 1 < n_of_session)[:, None]  # or it would come to the window itself
        state = torch.where(goes_on, ends[:, before], state)
    fresh = torch.rand(len(inputs), 1, device=inputs.device) < FRESH_SHARE
    model.carried_share = ((n_of_session > 1) & ~fresh[:, 0]).float().mean()
    return state[0].masked_fill(fresh, 0.0)


def _recur(model: Possm, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """States (B, n_chunks, hidden) after every chunk, and the last (1, B, hidden), in float32."""
    with torch.autocast(inputs.device.type, enabled=False):
        states, last = model.gru(inputs.float(), state.float())
    return states, last


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """Queries inside chunks, (n_open,) each: their window, number, chunk and time in the window.

    closed_before: (B, n_outputs), chunks that are closed at each query, of all queries.
    """

    window: Tensor
    query: Tensor
    chunk: Tensor
    time: Tensor
    closed_before: Tensor

    @classmethod
    def of(cls, config: PossmConfig, output_times: Tensor) -> _Asked:
        closed = ((output_times + EDGE_S) / config.chunk_s).long().clamp_(max=config.n_chunks)
        is_open = output_times - closed.double() * config.chunk_s > EDGE_S
        window, query = is_open.nonzero(as_tuple=True)
        return cls(
            window=window,
            query=query,
            chunk=closed[window, query],
            time=output_times[window, query],
            closed_before=closed,
        )


def _silence(
    queries: Tensor, tables: Tensor, row: Tensor, window: Tensor, n_windows: int
) -> tuple[Tensor, Tensor]:
    """What latents find in the silence tokens of each window's units: log-sum-exp and value.

    row, window: (n,) of every silence token. Returns (B, heads, latents) and
    (B, heads, latents, dim_head).
    """
    present = torch.zeros(n_windows, len(tables), dtype=torch.bool, device=row.device)
    present[window, row] = True
    units = present.any(dim=0).nonzero()[:, 0]
    queries, (keys, values) = queries.float(), tables[units].float().unbind(1)
    logit = torch.einsum("hmd,uhd->hmu", queries, keys) * queries.shape[-1] ** -0.5
    logit = torch.where(present[:, None, None, units], logit[None], -math.inf)
    lse = logit.logsumexp(-1)
    value = torch.einsum("bhmu,uhd->bhmd", (logit - lse[..., None]).exp(), values)
    return lse, value
