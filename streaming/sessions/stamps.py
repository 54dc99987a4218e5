"""Chooses the samples and spikes of a file to keep, given outliers and jumps among their stamps.

`streaming.sessions.jumps` finds the outliers and jumps. Kinematics are chosen so that their times
ascend: an outlier loses its sample, and a jump of the clock leaves one cut. Spikes may be in any
order: an outlier loses its spike, and a jump is only noted.
"""

from __future__ import annotations

import numpy as np

from decoder.arrays import Bools, Floats, Ints
from decoder.errors import SessionError
from streaming.sessions.jumps import ORDERED_S, SPIKES_S, judge

JUMP_S = 1.0  # a step longer than this, and than `JUMP_STEPS` usual steps, begins a new run
JUMP_STEPS = 10.0
PAUSE_S = 1.0  # longer steps are ignored in the detection of bursts
TINY_S = 1e-9
FAR_S = 86_400.0  # runs more than a day apart are on different clocks
MAX_RUNS = 2000  # with more runs, the clock steps all the time and all runs are kept
LONE_SAMPLES = 2  # a run of at most this many samples is an outlier
BURST_STEP = 0.1  # samples closer than this share of the mean step share a stamp
BURST_SHARE = 0.25  # least share of such steps in data with bursts
MAX_BURST_S = 0.2  # between bursts; with longer steps, the times of samples are unknown


def in_order(times: Floats, notes: list[str]) -> tuple[Ints, Floats]:
    """Indices of the kinematics samples to keep, and their ascending times.

    times: (n,) float64, finite, s, in the order of the file. notes: gets a note on every change.
    If the samples of a burst share a stamp, they get evenly spaced times.
    Raises SessionError if the times of samples are unknown, or fewer than two samples are usable.
    """
    if _in_bursts(times):
        evenly = _spread(times)
        if evenly is None:
            raise SessionError(
                "kinematics come in bursts that share a time stamp, too far apart to spread their "
                "samples; expected a time stamp for each sample"
            )
        notes.append("kinematics came in bursts that share a time stamp; spread evenly up to it")
        times = evenly
    kept = placed(times)
    if n_left := len(times) - len(kept):
        notes.append(
            f"{n_left} kinematics samples with time stamps that repeat, step back or are far off "
            "were left out"
        )
    if len(kept) < 2:
        raise SessionError(f"{len(kept)} usable samples of kinematics; expected many more")
    return kept, times[kept]


def spikes_on_line(times: Floats, name: str, notes: list[str]) -> Bools:
    """Mask (n_spikes,) of the spikes whose time stamps are not outliers.

    times: (n_spikes,) float64, s, in the order of arrival. name: of the stream.
    notes: gets a note on outliers and on jumps of the clock.
    """
    verdict = judge(np.where(times == 0.0, TINY_S, times), tolerance_s=SPIKES_S)
    if n_wild := int(verdict.wild.sum()):
        notes.append(f"{n_wild} spikes of {name!r} with outlying time stamps were left out")
    if verdict.jumps:
        where = ", ".join(f"{times[i]:.1f} s" for i in verdict.jumps[:3])
        notes.append(
            f"the clock of {name!r} stepped back {len(verdict.jumps)} times (to {where}); later "
            "spikes may not match the movement"
        )
    return ~verdict.wild


def placed(times: Floats) -> Ints:
    """Indices of the samples to keep: their times ascend and are on one clock.

    times: (n,) float64, finite, s, in the order of the file.
    """
    if len(times) < 2:
        return np.arange(len(times))
    steps = np.diff(times)
    usual = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.0
    timed = np.where(times == 0.0, TINY_S, times)  # zero is a valid time in a file, but not live
    on_line = np.flatnonzero(~judge(timed, tolerance_s=max(ORDERED_S, 2 * usual)).wild)
    if len(on_line) < 2:
        return on_line
    runs = _near(_runs(times[on_line], usual), times[on_line])
    if len(runs) > MAX_RUNS:
        kept = np.concatenate([np.arange(*run) for run in runs])
    else:
        kept = _best_chain(runs, times[on_line])
    kept = on_line[kept]
    ascends = np.append(True, np.diff(np.maximum.accumulate(times[kept])) > 0)
    return np.asarray(kept[ascends])


def _runs(times: Floats, usual: float) -> list[tuple[int, int]]:
    """Slices of the times without a pause or a step back."""
    steps = np.diff(times)
    breaks = np.flatnonzero((steps < 0) | (steps > max(JUMP_S, JUMP_STEPS * usual))) + 1
    edges = np.concatenate(([0], breaks, [len(times)]))
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def _near(runs: list[tuple[int, int]], times: Floats) -> list[tuple[int, int]]:
    """The runs on the clock with most samples, without lone samples."""
    long = [run for run in runs if run[1] - run[0] > LONE_SAMPLES]
    runs = long or runs
    order = sorted(runs, key=lambda run: times[run[0]])
    starts = np.array([times[first] for first, _ in order])
    ends = np.maximum.accumulate([times[stop - 1] for _, stop in order])
    clock = np.append(0, np.cumsum(starts[1:] - ends[:-1] > FAR_S))
    sizes = np.bincount(clock, weights=[stop - first for first, stop in order])
    main = int(np.argmax(sizes))
    return sorted(run for run, number in zip(order, clock, strict=True) if number == main)


def _best_chain(runs: list[tuple[int, int]], times: Floats) -> Ints:
    """Indices of the longest chain of runs in ascending time.

    A run that starts before the end of the previous one loses its beginning.
    """
    ends = np.array([times[stop - 1] for _, stop in runs])
    total = np.zeros(len(runs))
    came_from = np.full(len(runs), -1)
    for index, (first, stop) in enumerate(runs):
        total[index] = stop - first
        left = stop - first - np.searchsorted(times[first:stop], ends[:index], side="right")
        with_before = np.where(left > 0, total[:index] + left, 0)
        if index and with_before.max() > total[index]:
            came_from[index] = int(np.argmax(with_before))
            total[index] = with_before.max()
    at = int(np.argmax(total))
    parts: list[Ints] = []
    while at >= 0:
        first, stop = runs[at]
        before = int(came_from[at])
        if before >= 0:
            first += int(np.searchsorted(times[first:stop], ends[before], side="right"))
        parts.append(np.arange(first, stop))
        at = before
    return np.concatenate(parts[::-1])


def _in_bursts(times: Floats) -> bool:
    """Whether samples come in bursts that share a time stamp."""
    steps = np.diff(times)
    steps = steps[(steps >= 0) & (steps <= PAUSE_S)]
    if len(steps) < 10 or not steps.mean() > 0:
        return False
    return bool((steps < BURST_STEP * steps.mean()).mean() > BURST_SHARE)


def _spread(times: Floats) -> Floats | None:
    """Times of samples in bursts, spread evenly up to the time stamp of each burst, as in LSL.

    Returns None if the bursts are too far apart.
    """
    steps = np.diff(times)
    inside = (steps >= 0) & (steps <= PAUSE_S)
    apart = BURST_STEP * float(steps[inside].mean())
    ends = np.append(np.flatnonzero((steps > apart) | (steps < 0)), len(times) - 1)
    sizes = np.diff(ends, prepend=-1)
    stamps = times[ends]
    since = np.diff(stamps)
    usual = float(np.median(since[since > 0])) if (since > 0).any() else 0.0
    if not 0 < usual <= MAX_BURST_S:
        return None
    step = usual / float(np.median(sizes))
    room = np.append(step * sizes[0], np.where(since > 0, since, np.inf))
    per_sample = np.minimum(room / sizes, step * 1.5)
    back = np.repeat(np.cumsum(sizes), sizes) - 1 - np.arange(len(times))
    return np.asarray(np.repeat(stamps, sizes) - back * np.repeat(per_sample, sizes))
