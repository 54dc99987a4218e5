"""Intervals (n, 2) in seconds, and the cut of a domain into train, valid and test parts."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from decoder.arrays import Bools, Floats
from decoder.errors import SessionError
from streaming.sessions.session import Session, Trials

GAP_FACTOR = 5.0  # a longer step between samples, in median steps, is a gap
MIN_GAP_S = 0.2
SLIVER_S = 1e-6  # shorter intervals are rounding errors
MIN_PART = 0.5  # least part of its share that each of train, valid and test must get


def duration_s(intervals: Floats) -> float:
    """Total duration of intervals (n, 2), s."""
    return float((intervals[:, 1] - intervals[:, 0]).sum())


def within(times: Floats, intervals: Floats, margin_s: float = 0.0) -> Bools:
    """Mask of the `times` in one of the sorted intervals, at least `margin_s` after its start."""
    index = np.searchsorted(intervals[:, 0], times, side="right") - 1
    inside = index >= 0
    safe = np.maximum(index, 0)
    return np.asarray(
        inside & (times < intervals[safe, 1]) & (times - margin_s >= intervals[safe, 0] - 1e-9)
    )


def intersect(intervals: Floats, start_s: float, end_s: float) -> Floats:
    """The parts of `intervals` (n, 2) in [start_s, end_s)."""
    clipped = np.clip(intervals, start_s, end_s)
    return clipped[clipped[:, 1] - clipped[:, 0] > SLIVER_S]


def continuous_domain(timestamps: Floats) -> Floats:
    """Intervals (n, 2) without a gap between kinematics samples.

    A gap is a step longer than both `GAP_FACTOR` median steps and `MIN_GAP_S`.
    """
    steps = np.diff(timestamps)
    step = float(np.median(steps)) if len(steps) else 0.0
    breaks = np.flatnonzero(steps > max(GAP_FACTOR * step, MIN_GAP_S))
    starts = timestamps[np.concatenate(([0], breaks + 1))] - step / 2
    ends = timestamps[np.concatenate((breaks, [len(timestamps) - 1]))] + step / 2
    return np.stack([starts, ends], axis=1)


def without_gaps(intervals: Floats, timestamps: Floats) -> Floats:
    """`intervals` (n, 2) without the gaps between kinematics samples at `timestamps`."""
    sampled = continuous_domain(timestamps)
    gaps = np.stack([sampled[:-1, 1], sampled[1:, 0]], axis=1)
    edges = (-np.inf, *gaps.ravel(), np.inf)
    parts = [intersect(intervals, a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return np.concatenate(parts)


def chronological_domains(
    domain: Floats,
    trials: Trials | None,
    notes: list[str] | None = None,
    *,
    shares: tuple[float, float] = (0.7, 0.1),
) -> tuple[Floats, Floats, Floats]:
    """Cut a domain into train, valid and test parts, in time order.

    A cut is at the given share of the domain's duration. If that would cut a trial in two, the cut
    moves to the nearest edge of a trial. A "trial" longer than half of the session is ignored: some
    tables have one row for the whole recording. If trials are so long (blocks) that a part would
    get less than `MIN_PART` of its share, the cuts ignore trials.

    shares: of train and valid; test gets the rest. notes: gets a note if trials were too long.
    Raises SessionError if a part would be empty.
    """
    total = duration_s(domain)
    given = np.empty((0, 2)) if trials is None else trials.intervals
    whole = given[given[:, 1] - given[:, 0] <= total / 2]
    at = [time_after(domain, share * total) for share in (shares[0], shares[0] + shares[1])]
    parts = _cut(domain, [_off_trials(time, whole) for time in at])
    wanted = np.array([shares[0], shares[1], 1 - sum(shares)]) * total
    if not all(duration_s(p) >= MIN_PART * w for p, w in zip(parts, wanted, strict=True)):
        parts = _cut(domain, at)
        if notes is not None and len(given):
            notes.append("trials are too long to cut between them; domains are cut by time")
    if min(map(len, parts)) == 0:
        raise SessionError(
            f"a domain of {total:.3g} s can't be cut into 70/10/20 parts: record for longer"
        )
    return parts


def _cut(domain: Floats, cuts: list[float]) -> tuple[Floats, Floats, Floats]:
    edges = (float(domain[0, 0]), *cuts, float(domain[-1, 1]))
    train, valid, test = (intersect(domain, a, b) for a, b in pairwise(edges))
    return train, valid, test


def time_after(domain: Floats, seconds: float) -> float:
    """The time at which `seconds` of a domain (n, 2) have passed."""
    lengths = domain[:, 1] - domain[:, 0]
    before = np.concatenate(([0.0], np.cumsum(lengths)))
    index = min(int(np.searchsorted(before, seconds, side="right")) - 1, len(domain) - 1)
    return float(min(domain[index, 0] + seconds - before[index], domain[index, 1]))


def _off_trials(time_s: float, trials: Floats) -> float:
    """`time_s`, or the nearest trial edge if it is inside a trial (n, 2)."""
    by_start = trials[np.argsort(trials[:, 0])]
    edges = np.unique(np.append(trials, time_s))
    n_begun = np.searchsorted(by_start[:, 0], edges)
    latest_end = np.maximum.accumulate(np.append(-np.inf, by_start[:, 1]))[n_begun]
    free = edges[latest_end <= edges]
    return float(free[np.argmin(np.abs(free - time_s))])


def with_domains(session: Session) -> Session:
    """The session with new train, valid and test domains: 70/10/20 in time order."""
    notes = [*session.notes]
    train, valid, test = chronological_domains(session.domain, session.trials, notes)
    return replace(
        session, train_domain=train, valid_domain=valid, test_domain=test, notes=tuple(notes)
    )
