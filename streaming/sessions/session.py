"""A recorded session in memory.

A session is one continuous recording: spikes, units, cursor kinematics, trials, and the domains
(intervals of time) for training, validation and test.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from decoder.arrays import Floats, Ints

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
class Session:
    """A recorded session.

    spike_times: (n_spikes,) float64, seconds on the recording's clock, ascending.
    spike_units: (n_spikes,) int64, index into `unit_ids`.
    cursor_times: (n_samples,) float64, seconds, ascending.
    cursor_pos, cursor_vel: (n_samples, 2) float64, metres and metres per second.
    recorded_at: start of the recording, or None if unknown.
    domain, train_domain, valid_domain, test_domain: (n, 2) float64 intervals, seconds.
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


def sorted_spikes(times: Floats, units: Ints) -> tuple[Floats, Ints, bool]:
    """Times and units of spikes in time order, and whether they had to be sorted."""
    if len(times) < 2 or bool((np.diff(times) >= 0).all()):
        return times, units, False
    order = np.argsort(times, kind="stable")
    return times[order], units[order], True
