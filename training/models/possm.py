"""The streaming model: POYO's spike tokens, one short chunk at a time, with a recurrent state.

It belongs to the class of POSSM (Ryoo et al., NeurIPS 2025). A few latents attend to the spikes of
one chunk, as in POYO's encoder: unit embeddings, with rotary times inside the chunk. They also
attend to one silence token per unit (POYO's start token). Without it, an empty chunk would carry no
information, and the softmax would normalise firing rates away. The latents drive a GRU, and its
state is read out.

A decode at `t` sees every spike before `t`: it runs the open chunk, however short, from the state
after the last closed chunk. Training queries such times too, and computes all chunks in parallel up
to the GRU. `training.exports` writes the same weights as a graph of one step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_brain.models.poyo import FeedForward
from torch_brain.nn import InfiniteVocabEmbedding, RotaryCrossAttention, RotaryTimeEmbedding

from decoder.memory.chunks import EDGE_S
from training.models.attention import attend_chunks
from training.models.config import PossmConfig
from training.models.encoder import (
    SPIKE,
    START,
    compact,
    latent_phases,
    latent_queries,
    merge_spikes,
    omega,
    output_layer,
)
from training.models.rotary import Phases, from_pairs, to_pairs

EMB_INIT_SCALE = 0.02  # as in torch_brain's POYO
FRESH_SHARE = 0.3  # of training windows start from a fresh state
N_AGES = 4  # GRU inputs that encode how much of a chunk has passed


class Possm(nn.Module):
    """The weights of a streaming model. Parts that POYO has too share torch_brain's names.

    carried_share: share of the last training batch's windows that started from a carried state.
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
        self.state_dropout = nn.Dropout(config.state_dropout)
        self.state_out = nn.Linear(config.hidden, dim)
        self.out_ffn = _feed_forward(config)
        self.readout = nn.Linear(dim, config.dim_out)


def _feed_forward(config: PossmConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(config.dim), FeedForward(dim=config.dim, dropout=config.dropout)
    )


def chunk_input(model: Possm, config: PossmConfig, gathered: Tensor, share: Tensor) -> Tensor:
    """The GRU's input for a chunk: (..., num_latents * dim + N_AGES).

    gathered: (..., cross_heads, num_latents, dim_head), the attention output over spikes, heads
        `[real | imaginary | unrotated]`.
    share: (...), how much of the chunk has passed, 0 to 1.
    """
    latents = merge_spikes(model, config.encoder, gathered, latent_phases(model, config.encoder))
    angles = torch.pi * share.float()[..., None] * torch.tensor([0.5, 1.0], device=share.device)
    return torch.cat([model.norm(latents.flatten(-2)), angles.cos(), angles.sin()], dim=-1)


def step(model: Possm, inputs: Tensor, state: Tensor) -> Tensor:
    """The state (..., hidden) after one more chunk, as defined by `torch.nn.GRU`."""
    weight_in, weight_state, bias_in, bias_state = model.gru.all_weights[0]
    reset, update, new = F.linear(inputs, weight_in, bias_in).chunk(3, dim=-1)
    kept = F.linear(state, weight_state, bias_state).chunk(3, dim=-1)
    reset, update = torch.sigmoid(reset + kept[0]), torch.sigmoid(update + kept[1])
    proposed = torch.tanh(new + reset * kept[2])
    stepped: Tensor = proposed + update * (state - proposed)
    return stepped


def read_state(
    model: Possm, state: Tensor, session: Tensor, readout: Tensor | None = None
) -> Tensor:
    """Decode outputs (..., dim_out) from states (..., hidden) and session embeddings (..., dim).

    readout: as for `training.models.encoder.output_layer`.
    """
    hidden = model.state_out(model.state_dropout(state)) + session
    return output_layer(model.readout, hidden + model.out_ffn(hidden), readout)


def forward(
    model: Possm,
    config: PossmConfig,
    *,
    token: Tensor,
    times: Tensor,
    lengths: Tensor,
    session_index: Tensor,
    output_times: Tensor,
    parts: Tensor | None = None,
    profile: Tensor | None = None,
) -> Tensor:
    """Outputs (B, n_outputs, dim_out) of windows that start from a fresh state.

    In training, most windows start from a carried state instead (`_carried`).
    Arguments are as for `training.models.poyo.forward`; end tokens are ignored.
    """
    queried = _OpenQueries.of(config, output_times)
    closed, opened = _chunk_inputs(model, config, token, times, lengths, queried, parts, profile)
    n_windows = len(lengths)
    initial = closed.new_zeros(n_windows, config.hidden, dtype=torch.float32)
    if model.training:
        initial = _carried(model, config, closed.detach(), session_index)
    states, _ = _recur(model, closed, initial[None])
    states = torch.cat([initial[:, None], states], dim=1)  # before each chunk, then after the last
    with torch.autocast(token.device.type, enabled=False):
        stepped = step(model, opened.float(), states[queried.window, queried.chunk])
    state = states[torch.arange(n_windows, device=token.device)[:, None], queried.closed_before]
    state = state.index_put((queried.window, queried.query), stepped)
    return read_state(model, state, model.session_emb(session_index)[:, None])


def closed_states(
    model: Possm, config: PossmConfig, *, token: Tensor, times: Tensor, lengths: Tensor
) -> Tensor:
    """The states (B, n_chunks, hidden) after each chunk of windows that start from a fresh state.

    Arguments as for `forward`.
    """
    none = _OpenQueries.of(config, times.new_empty(len(lengths), 0))
    closed, _ = _chunk_inputs(model, config, token, times, lengths, none, None, None)
    return _recur(model, closed, closed.new_zeros(1, len(lengths), config.hidden))[0]


def _chunk_inputs(
    model: Possm,
    config: PossmConfig,
    token: Tensor,
    times: Tensor,
    lengths: Tensor,
    queried: _OpenQueries,
    parts: Tensor | None,
    profile: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The GRU's inputs for every closed chunk (B, n_chunks, …) and every open query (n_open, …)."""
    encoder, device = config.encoder, token.device
    n_windows, n_chunks = len(lengths), config.n_chunks
    row, kind, tables = compact(model, encoder, token, parts, profile)
    window = torch.arange(n_windows, device=device).repeat_interleave(lengths)
    queries = to_pairs(latent_queries(model, encoder, latent_phases(model, encoder)), encoder)
    starts = kind == START
    with torch.autocast(device.type, enabled=False):
        lse, value = _silence(queries, tables, row[starts], window[starts], n_windows)

    spikes = kind == SPIKE
    row, times, window = row[spikes], times[spikes], window[spikes]
    chunk = ((times + EDGE_S) / config.chunk_s).long().clamp_(max=n_chunks - 1)
    n_closed = torch.bincount(window * n_chunks + chunk, minlength=n_windows * n_chunks)

    # A query inside a chunk attends, once more, to the spikes of its chunk before it.
    begin = queried.chunk.double() * config.chunk_s
    apart = 2.0 * config.train_s  # one ascending time axis for all windows
    order = times + window * apart
    first = torch.searchsorted(order, begin - EDGE_S + queried.window * apart)
    n_open = torch.searchsorted(order, queried.time + queried.window * apart) - first
    of_query = torch.arange(len(n_open), device=device).repeat_interleave(n_open)
    shift = first - n_open.cumsum(0) + n_open
    in_open = shift[of_query] + torch.arange(len(of_query), device=device)

    since = torch.cat([times - chunk.double() * config.chunk_s, times[in_open] - begin[of_query]])
    at = Phases.of(since, omega(model, encoder))
    of_window = torch.arange(n_windows, device=device).repeat_interleave(n_chunks)
    of_window = torch.cat([of_window, queried.window])
    gathered = attend_chunks(
        queries,
        tables,
        silence_lse=lse[of_window],
        silence_value=value[of_window],
        token=torch.cat([row, row[in_open]]),
        rotation=torch.complex(at.cos, at.sin),
        lengths=torch.cat([n_closed, n_open]),
    )
    share = torch.cat(
        [torch.ones(len(n_closed), device=device), (queried.time - begin) / config.chunk_s]
    )
    inputs = chunk_input(model, config, from_pairs(gathered, encoder), share)
    closed, opened = inputs.split([len(n_closed), len(n_open)])
    return closed.unflatten(0, (n_windows, n_chunks)), opened


@torch.no_grad()
def _carried(model: Possm, config: PossmConfig, inputs: Tensor, session_index: Tensor) -> Tensor:
    """The states (B, hidden) that training windows start from: a few fresh, most carried over.

    Live, a state runs for hours. To imitate that, a state first passes through up to `n_carried`
    other windows of its session in the batch, without gradients; `training.data.windows` draws
    several windows of each session. `model.carried_share` is set to the share of windows that
    start from a carried state.
    """
    order = session_index.argsort(stable=True)
    ranked, position = session_index[order], torch.arange(len(order), device=order.device)
    first = torch.searchsorted(ranked, ranked)
    last = torch.searchsorted(ranked, ranked, right=True) - 1
    before = torch.empty_like(order)  # each window's predecessor, cyclically within its session
    before[order] = order[torch.where(position == first, last, position - 1)]
    n_of_session = torch.empty_like(order)
    n_of_session[order] = last - first + 1
    state = inputs.new_zeros(1, len(inputs), model.gru.hidden_size)
    for n_passed in range(1, config.n_carried + 1):
        ends = _recur(model, inputs, state)[1]
        goes_on = (n_passed < n_of_session)[:, None]  # otherwise it would reach its own window
        state = torch.where(goes_on, ends[:, before], state)
    fresh = torch.rand(len(inputs), 1, device=inputs.device) < FRESH_SHARE
    model.carried_share = ((n_of_session > 1) & ~fresh[:, 0]).float().mean()
    return state[0].masked_fill(fresh, 0.0)


def _recur(model: Possm, inputs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """States (B, n_chunks, hidden) after each chunk, and the last (1, B, hidden), in float32."""
    with torch.autocast(inputs.device.type, enabled=False):
        states, last = model.gru(inputs.float(), state.float())
    return states, last


@dataclass(frozen=True, kw_only=True)
class _OpenQueries:
    """The queries inside chunks: window, number, chunk and time in the window, each (n_open,).

    closed_before: (B, n_outputs), the number of closed chunks at each query of the batch.
    """

    window: Tensor
    query: Tensor
    chunk: Tensor
    time: Tensor
    closed_before: Tensor

    @classmethod
    def of(cls, config: PossmConfig, output_times: Tensor) -> _OpenQueries:
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
    """Attention over the silence tokens of each window's units.

    row, window: (n,), table row and window of each silence token.
    Returns the log-sum-exp (B, heads, latents) and the attended value
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
