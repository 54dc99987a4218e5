"""Windows of sessions as POYO's token batches.

A window holds a stretch of spikes, a start and an end token per unit, and query times with their
true velocity. Each window lies inside one interval of its split and never crosses a domain's edge
or a gap. Training windows drop units at random (POYO's unit dropout). Those of a session of several
blocks are drawn by weight, without the units that a block did not have.

This module knows only a model's vocabulary, the length of its windows and their query times
(`Layout`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from decoder.arrays import Floats, Ints
from decoder.errors import TrainingError
from streaming.sessions.intervals import within
from streaming.sessions.session import Session, Split, weighted_std
from training.data.identity import shared_words, subject_word
from training.data.profile import N_PROFILE, OWN, Identity, draw_identity, profiles
from training.models.encoder import END, SPIKE, START


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch, shapes as in `training.models.poyo.forward`.

    parts: (n_composed, 2), units whose embedding is a sum: rows of the unit embedding of the
        channel and of the day, 0 for none. Their tokens come after those of the vocabulary.
    profile: (n_profiled, N_PROFILE), of the last ones of them; see `training.data.profile`.
    target: (B, n_outputs, 2), velocity in the session's output scale.
    """

    token: Tensor
    times: Tensor
    lengths: Tensor
    session_index: Tensor
    output_times: Tensor
    parts: Tensor
    profile: Tensor
    target: Tensor

    @property
    def n_tokens(self) -> int:
        return len(self.token)

    def to(self, device: torch.device) -> Batch:
        """Move the batch to a device."""
        return Batch(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    def inputs(self) -> dict[str, Tensor]:
        """The arguments of the model's forward pass, by name."""
        return {
            "token": self.token,
            "times": self.times,
            "lengths": self.lengths,
            "session_index": self.session_index,
            "output_times": self.output_times,
            "parts": self.parts,
            "profile": self.profile,
        }


@dataclass(frozen=True, kw_only=True)
class OutputScale:
    """Scale of outputs: velocity in m/s is `output * std + mean`, each (2,) float64."""

    mean: Floats
    std: Floats

    @classmethod
    def of(cls, session: Session) -> OutputScale:
        """Mean and standard deviation of the session's velocity in the training domain."""
        inside = within(session.cursor_times, session.train_domain)
        vel, weight = session.cursor_vel[inside], session.weight_at(session.cursor_times[inside])
        if len(vel) < 2 or not (vel.std(axis=0) > 0).all():
            raise TrainingError(
                f"{session.session_id}: the cursor does not move in the training domain; expected "
                "a recording with movement"
            )
        mean = np.average(vel, axis=0, weights=weight)
        return cls(mean=mean, std=weighted_std(vel, weight))

    @classmethod
    def mean_of(cls, scales: Sequence[OutputScale]) -> OutputScale:
        """The mean of several sessions' scales."""
        return cls(
            mean=np.mean([scale.mean for scale in scales], axis=0),
            std=np.mean([scale.std for scale in scales], axis=0),
        )


def unit_words(session: Session) -> list[str]:
    """The words of a session's units in the model's vocabulary: `session/unit`."""
    return [f"{session.session_id}/{unit_id}" for unit_id in session.unit_ids]


class Layout(Protocol):
    """The part of a model's configuration that describes its windows."""

    @property
    def window_s(self) -> float: ...

    @property
    def n_together(self) -> int:
        """Windows of one session per group in a batch, at least; 1 if windows are independent."""

    @property
    def usual_batch(self) -> int:
        """Windows in a training batch, unless another number is given."""

    def training_queries(self, rng: np.random.Generator) -> Floats: ...

    def walked_queries(self, step_s: float) -> Floats: ...


class WindowSource:
    """Draws training batches from sessions, and walks a split for evaluation.

    sessions: sessions in memory.
    vocabulary: row of the unit embedding by word; row 0 is torch_brain's padding.
    session_rows: row of the session embedding by session id.
    sampling_power: a session's share is its training seconds to this power. 1 gives every second
        the same weight, 0 every session.
    shared_share: probability that the units of a session are those of any day of its subject, in
        the windows of a batch (`training.data.identity`). Otherwise what differs today is added.
    profiled_share: probability that they are known by profiles (`training.data.profile`), of a
        known channel or an unknown one.
    channels: tuning features (n_words, F) of the vocabulary's words, for the profiles.
    """

    def __init__(
        self,
        sessions: Sequence[Session],
        vocabulary: Mapping[str, int],
        session_rows: Mapping[str, int],
        *,
        layout: Layout,
        scales: Mapping[str, OutputScale],
        sampling_power: float = 1.0,
        shared_share: float = 0.0,
        profiled_share: float = 0.0,
        channels: Floats | None = None,
    ) -> None:
        self.sessions = list(sessions)
        self.layout = layout
        self.window_s = window_s = layout.window_s
        self.scales = dict(scales)
        self.n_words = len(vocabulary)
        self._rows = [np.array([vocabulary[w] for w in unit_words(s)]) for s in self.sessions]
        self._session_rows = [session_rows[s.session_id] for s in self.sessions]
        self._shared = [_shared_rows(s, vocabulary, session_rows) for s in self.sessions]
        self._shared_share, self._profiled_share = shared_share, profiled_share
        self._channels = channels
        self._starts = [_window_starts(s.train_domain, window_s) for s in self.sessions]
        seconds = np.array([(edges[:, 1] - edges[:, 0]).sum() for edges in self._starts])
        if not seconds.sum() > 0:
            raise TrainingError(
                f"no training interval is longer than the window of {window_s} s; "
                "record longer trials or choose a preset with a shorter window"
            )
        seconds = np.where(seconds > 0, seconds**sampling_power, 0.0)
        self._shares = seconds / seconds.sum()

    def plan(
        self,
        rng: np.random.Generator,
        batch_size: int,
        *,
        keep_units: tuple[float, float] = (0.4, 1.0),
        micro: int | None = None,
    ) -> list[WindowPlan]:
        """Draw the windows of a random training batch; `build` reads them.

        keep_units: range of the share of units kept. The share is drawn once per batch, so that its
            windows have similar lengths; the kept units are drawn for each window.
        micro: windows per micro-batch, which are adjacent in the batch; default: one micro-batch.
        """
        keep_share = rng.uniform(*keep_units)
        plans = []
        identities: dict[int, Identity] = {}
        for index in self._draw_sessions(rng, batch_size, micro or batch_size):
            start_s = _draw_start(self.sessions[index], self._starts[index], rng)
            end_s, units = start_s + self.window_s, self.sessions[index].units_at(start_s)
            kept = np.sort(rng.permutation(units)[: max(1, round(keep_share * len(units)))])
            queries = self.layout.training_queries(rng)
            if index not in identities:
                identities[index] = self._draw_identity(rng, index)
            plans.append(
                WindowPlan(int(index), end_s, kept, queries, self.window_s, identities[index])
            )
        return plans

    def _draw_sessions(self, rng: np.random.Generator, batch_size: int, micro: int) -> Ints:
        """Draw a session for each window: groups of `n_together` or more within a micro-batch."""
        n_groups = max(1, micro // self.layout.n_together)
        sizes = [len(group) for group in np.array_split(np.arange(micro), n_groups)]
        sizes *= batch_size // micro
        return np.repeat(rng.choice(len(self.sessions), size=len(sizes), p=self._shares), sizes)

    def _draw_identity(self, rng: np.random.Generator, index: int) -> Identity:
        lasts = self._shared[index] is not None and self._shared_share > 0
        return draw_identity(
            rng, self.sessions[index].train_domain, lasts=lasts,
            shared_share=self._shared_share, profiled_share=self._profiled_share,
        )  # fmt: skip

    def build(self, plans: Sequence[WindowPlan]) -> Batch:
        """Read planned windows from their sessions into a batch."""
        known = {plan.index: self._known(plan) for plan in {p.index: p for p in plans}.values()}
        composed = [units for units in known.values() if units.parts is not None]
        composed.sort(key=lambda units: units.profile is not None)
        n_rows = self.n_words
        for units in composed:
            units.row = np.arange(n_rows, n_rows + len(units.row))
            n_rows += len(units.row)
        windows = [self._window(plan, known[plan.index], n_rows) for plan in plans]
        return _stack(windows, composed)

    def _known(self, plan: WindowPlan) -> _Known:
        """How the model knows the units of a planned window."""
        session, identity = self.sessions[plan.index], plan.identity
        own, none = self._rows[plan.index], np.zeros(session.n_units, dtype=np.int64)
        channel, session_row = none, self._session_rows[plan.index] if identity.own else 0
        if identity.shared and (shared := self._shared[plan.index]) is not None:
            channel, of_subject = shared
            session_row = session_row or of_subject
        known = _Known(row=own if identity.own else channel, session_row=session_row)
        if identity.profiled is not None:
            tuning = self._channels if identity.shared else None
            known.profile = profiles(
                session,
                identity.profiled,
                labelled=identity.labelled,
                channels=None if tuning is None else tuning[channel - 1],
            )
        if identity.profiled is not None or (identity.own and identity.shared):
            known.parts = np.stack([channel, own if identity.own else none], axis=1)
        return known

    def differences(self) -> Ints:
        """Rows (n, 2) of units whose embedding, in training, is what differs from a shared one: the
        row of the session's own, and that of the shared one."""
        pairs = [
            np.stack([own, shared[0]], axis=1)
            for own, shared in zip(self._rows, self._shared, strict=True)
            if shared is not None and self._shared_share > 0
        ]
        return np.concatenate([np.empty((0, 2), dtype=np.int64), *pairs])

    def draw(self, rng: np.random.Generator, batch_size: int, **options: Any) -> Batch:
        """Draw a random training batch; options are as for `plan`."""
        return self.build(self.plan(rng, batch_size, **options))

    def walk(
        self,
        index: int,
        split: Split,
        *,
        step_s: float,
        layout: Layout | None = None,
        batch_size: int = 32,
        at_most: int | None = None,
    ) -> Iterator[tuple[Floats, Batch]]:
        """Walk a split in batches of windows, with a query every `step_s`.

        layout: layout of the windows; default: the layout for training.
        at_most: maximum number of windows, a random sample that is the same every time.
        Yields query times (B, n_queries) in seconds with each batch.
        """
        session = self.sessions[index]
        every_unit = np.arange(session.n_units)
        layout = layout or self.layout
        queries = layout.walked_queries(step_s)
        ends = window_ends(session, split, layout.window_s, step_s * len(queries))
        if at_most is not None and len(ends) > at_most:
            ends = ends[np.sort(np.random.default_rng(0).permutation(len(ends))[:at_most])]
        for chunk in np.array_split(ends, max(1, -(-len(ends) // batch_size))):
            if len(chunk):
                plans = [
                    WindowPlan(index, float(e), every_unit, queries, layout.window_s) for e in chunk
                ]
                yield chunk[:, None] - layout.window_s + queries, self.build(plans)

    def _window(self, plan: WindowPlan, known: _Known, n_rows: int) -> _Window:
        session, rows = self.sessions[plan.index], known.row
        kept, queries = plan.kept, plan.queries
        start_s = plan.end_s - plan.window_s
        inside = session.spikes_between(start_s, plan.end_s)
        units = session.spike_units[inside]
        times = session.spike_times[inside] - start_s
        if len(kept) < session.n_units:
            keeps = np.zeros(session.n_units, dtype=bool)
            keeps[kept] = True
            chosen = keeps[units]
            units, times = units[chosen], times[chosen]
        kept_rows = rows[kept]
        scale = self.scales[session.session_id]
        return _Window(
            token=np.concatenate(
                [
                    START * n_rows + kept_rows,
                    END * n_rows + kept_rows,
                    SPIKE * n_rows + rows[units],
                ]
            ),
            times=np.concatenate([np.zeros(len(kept)), np.full(len(kept), plan.window_s), times]),
            session_row=known.session_row,
            queries=queries,
            target=(session.velocity_at(start_s + queries) - scale.mean) / scale.std,
        )


@dataclass(frozen=True)
class WindowPlan:
    """One window: session index, end (s), kept unit indices, query times in it, length (s).
    identity: how its units are known.
    """

    index: int
    end_s: float
    kept: Ints
    queries: Floats
    window_s: float
    identity: Identity = OWN


@dataclass(kw_only=True)
class _Known:
    """How the model knows a session's units in a batch: rows of units and session, profiles.

    row: (n_units,) rows of the unit embedding, or of the batch's composed units.
    parts: (n_units, 2), as in `Batch`, if the units are composed.
    """

    row: Ints
    session_row: int
    parts: Ints | None = None
    profile: Floats | None = None


@dataclass(frozen=True, kw_only=True)
class _Window:
    token: Ints
    times: Floats
    session_row: int
    queries: Floats
    target: Floats


def _shared_rows(
    session: Session, vocabulary: Mapping[str, int], session_rows: Mapping[str, int]
) -> tuple[Ints, int] | None:
    """Rows of the units and of the session that the subject's days share; None unless all exist."""
    subject = subject_word(session.subject_id)
    words = shared_words(session, subject)
    if subject not in session_rows or not all(word in vocabulary for word in words):
        return None
    return np.array([vocabulary[word] for word in words]), session_rows[subject]


def window_ends(session: Session, split: Split, window_s: float, step_s: float) -> Floats:
    """Ends, every `step_s`, of the windows that fit inside one interval of a split."""
    grids = [np.arange(start + window_s, end, step_s) for start, end in session.intervals(split)]
    return np.concatenate(grids) if grids else np.empty(0)


def _window_starts(domain: Floats, window_s: float) -> Floats:
    """Intervals (n, 2) in which windows may start."""
    edges = domain - np.array([0.0, window_s])
    return np.asarray(edges[edges[:, 1] > edges[:, 0]])


def _draw_start(session: Session, edges: Floats, rng: np.random.Generator) -> float:
    lengths = session.weight_at(edges[:, 0]) * (edges[:, 1] - edges[:, 0])
    index = rng.choice(len(edges), p=lengths / lengths.sum())
    return float(rng.uniform(*edges[index]))


def _stack(windows: Sequence[_Window], composed: Sequence[_Known]) -> Batch:
    """Pack windows into a batch, one after another."""
    parts = [np.empty((0, 2), dtype=np.int64), *(k.parts for k in composed if k.parts is not None)]
    profile = [np.empty((0, N_PROFILE)), *(k.profile for k in composed if k.profile is not None)]
    return Batch(
        parts=torch.from_numpy(np.concatenate(parts)),
        profile=torch.from_numpy(np.concatenate(profile)).float(),
        token=torch.from_numpy(np.concatenate([window.token for window in windows])),
        times=torch.from_numpy(np.concatenate([window.times for window in windows])),
        lengths=torch.tensor([len(window.token) for window in windows]),
        session_index=torch.tensor([window.session_row for window in windows]),
        output_times=torch.from_numpy(np.stack([window.queries for window in windows])),
        target=torch.from_numpy(np.stack([window.target for window in windows])).float(),
    )
