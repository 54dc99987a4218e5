"""A recorded session in memory.

A session is one continuous recording: spikes, units, cursor kinematics, trials, and the domains
(intervals of time) for training, validation and test. For training, several recordings of one
subject can be joined into a session (`training.calibration.blocks`), which then lists its blocks.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from decoder.arrays import Bools, Floats, Ints

Split = Literal["all", "train", "valid", "test"]


@dataclass(frozen=True, kw_only=True)
class Trials:
    """The trials of a session.

    intervals: (n_trials, 2) float64, start and end of each trial, s.
    target_pos: (n_trials, 2) float64, m; None if the task has no targets.
    """

    intervals: Floats
    target_pos: Floats | None = None


@dataclass(frozen=True, kw_only=True)
class Block:
    """One of the recordings that were joined into a session.

    start_s: where it starts on the session's time axis. It ends before the next one starts.
    weight: how much each of its seconds counts in training; 1 for the newest block.
    has_unit: (n_units,) bool, the session's units that its stream had.
    """

    start_s: float
    weight: float
    has_unit: Bools


@dataclass(frozen=True, kw_only=True)
class BlockNote:
    """What someone wrote down during a recording, such as a change of task or a loose cable.

    time_s: when; seconds on the session's time axis.
    """

    time_s: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Session:
    """A recorded session.

    spike_times: (n_spikes,) float64, seconds on the recording's clock, ascending.
    spike_units: (n_spikes,) int64, index into `unit_ids`.
    cursor_times: (n_samples,) float64, seconds, ascending.
    cursor_pos, cursor_vel: (n_samples, 2) float64, metres and metres per second.
    recorded_at: start of the recording, or None if unknown.
    domain, train_domain, valid_domain, test_domain: (n, 2) float64 intervals, seconds.
    notes: what was repaired, derived, chosen or left out when it was made.
    blocks: the recordings that it was joined from, in time order; empty for one recording.
    block_notes: what people wrote down meanwhile, in time order.
    """

    session_id: str
    subject_id: str
    unit_ids: tuple[str, ...]
    spike_times: Floats
    spike_units: Ints
    cursor_times: Floats
    cursor_pos: Floats
    cursor_vel: Floats
    domain: Floats
    train_domain: Floats
    valid_domain: Floats
    test_domain: Floats
    trials: Trials | None = None
    recorded_at: datetime.datetime | None = None
    source: str = "unknown"
    notes: tuple[str, ...] = field(default=())
    blocks: tuple[Block, ...] = field(default=())
    block_notes: tuple[BlockNote, ...] = field(default=())

    @property
    def n_units(self) -> int:
        return len(self.unit_ids)

    def intervals(self, split: Split) -> Floats:
        """The intervals (n, 2) of one split, s; `all` is the whole domain."""
        return {
            "all": self.domain,
            "train": self.train_domain,
            "valid": self.valid_domain,
            "test": self.test_domain,
        }[split]

    def spikes_between(self, start_s: float, end_s: float) -> slice:
        """Slice of the spikes with `start_s <= time < end_s`."""
        first, last = np.searchsorted(self.spike_times, (start_s, end_s))
        return slice(int(first), int(last))

    def velocity_at(self, times: Floats) -> Floats:
        """Cursor velocity (n, 2), m/s, interpolated linearly at `times` (n,)."""
        if len(times) == 0:
            return np.empty((0, 2))
        first, last = np.searchsorted(self.cursor_times, (np.min(times), np.max(times)))
        around = slice(max(0, int(first) - 1), int(last) + 1)  # a mapped session reads only these
        at, vel = self.cursor_times[around], self.cursor_vel[around]
        return np.stack([np.interp(times, at, vel[:, axis]) for axis in (0, 1)], axis=1)

    def weight_at(self, times: Floats) -> Floats:
        """How much each of `times` (n,) counts: the weight of its block, or 1."""
        if not self.blocks:
            return np.ones(len(times))
        return np.array([block.weight for block in self.blocks])[self._block_at(times)]

    def units_at(self, time_s: float) -> Ints:
        """The indices of the units that the stream had at a time."""
        if not self.blocks:
            return np.arange(self.n_units)
        return np.flatnonzero(self.blocks[int(self._block_at(time_s))].has_unit)

    def weighed(self, times: Floats) -> Iterator[tuple[Ints, Floats]]:
        """Units (m,) that were in the same blocks, and how much each of `times` (n,) counts for
        them: 0 in a block whose stream did not have them."""
        weight = self.weight_at(times)
        if not self.blocks:
            yield np.arange(self.n_units), weight
            return
        had = np.stack([block.has_unit for block in self.blocks])
        patterns, group = np.unique(had, axis=1, return_inverse=True)
        at = self._block_at(times)
        for number, pattern in enumerate(patterns.T):
            yield np.flatnonzero(group.ravel() == number), weight * pattern[at]

    def observed_s(self, domain: Floats, *, weighted: bool = False) -> Floats:
        """Seconds (n_units,) of a domain (n, 2) in which the stream had each unit.

        weighted: count each second by its weight.
        """
        seconds = np.zeros(self.n_units)
        for units, weight in self.weighed(domain.mean(axis=1)):
            counted = weight if weighted else weight > 0
            seconds[units] = ((domain[:, 1] - domain[:, 0]) * counted).sum()
        return seconds

    def _block_at(self, times: Floats | float) -> Ints:
        starts = np.array([block.start_s for block in self.blocks])
        return np.maximum(np.searchsorted(starts, times, side="right") - 1, 0)


def sorted_spikes(times: Floats, units: Ints) -> tuple[Floats, Ints, bool]:
    """Times and units of spikes in time order, and whether they had to be sorted."""
    if len(times) < 2 or bool((np.diff(times) >= 0).all()):
        return times, units, False
    order = np.argsort(times, kind="stable")
    return times[order], units[order], True


def weighted_std(values: Floats, weight: Floats) -> Floats:
    """Standard deviation of `values` (n, …) along the first axis, each counted by its weight."""
    mean = np.average(values, axis=0, weights=weight)
    return np.asarray(np.sqrt(np.average(np.square(values - mean), axis=0, weights=weight)))
