"""Counts how the spikes of a stretch coincide: what `streaming.faults` judges units by.

Evidence is additive: of a whole session at once, or of a stream second by second. Artifacts, in
which many units fire within a millisecond, are found first, and their spikes count for nothing
else. Knows no stream or file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from decoder.arrays import Bools, Floats, Ints

AT_ONCE_S = 0.001  # one neuron doesn't fire twice within it, and units rarely do by chance
NEXT_S = (0.002, 0.006)  # lags between these are compared with those below AT_ONCE_S
COINCIDENCE_S = 0.0005
SAME_S = 1e-6
CHANCE = 1e-6  # greatest probability, per spike, that independent units look like an artifact
RISE = 2.0  # the rate of all units together rises above its mean by this factor
LEAST_UNITS, LEAST_SHARE = 5, 0.1  # of an artifact; the share is of all units
MAINS_HZ = (50.0, 60.0)
BLOCK_S = 2.0  # the phase of the mains drifts by less than a fifth of a cycle in it
MOST_NEIGHBOURS = 50  # spikes after a spike that are compared with it
TABLE_CELLS = 2**14  # with more pairs of units than this, and than coincidences, these are sorted
MOST_PAIRS = 1024  # pairs that a stream keeps: those with the most coincidences


class Evidence(NamedTuple):
    """What the spikes of some seconds say; arrays are (n_units,), counts of spikes or of pairs."""

    seconds: float
    artifacts: float  # moments
    spikes: Floats  # outside of artifacts, like all that follow except one
    in_artifacts: Floats
    at_once: Floats  # pairs of the unit's spikes, closer than AT_ONCE_S
    soon: Floats  # pairs of the unit's spikes, NEXT_S apart
    tied: Floats  # spikes with the time of another unit's spike, artifacts included
    locked: Floats  # (n_mains, n_units), squared length of the mean phasor, times `lockable`
    lockable: Floats  # (n_units,), spikes that are not alone in their block
    pairs: Ints  # (n_pairs,) first unit * n_units + second unit, ascending
    coincidences: Floats  # (n_pairs,)

    @classmethod
    def none(cls, n_units: int) -> Evidence:
        """No evidence yet."""
        zero = np.zeros(n_units)
        locked = np.zeros((len(MAINS_HZ), n_units))
        no_pair, no_count = np.empty(0, dtype=np.int64), np.empty(0)
        return cls(0.0, 0.0, zero, zero, zero, zero, zero, locked, zero, no_pair, no_count)

    def then(self, newer: Evidence, *, keep: float) -> Evidence:
        """Both together, this one weighted by `keep`, with the `MOST_PAIRS` most frequent pairs."""
        sums = self._replace(
            **{name: keep * getattr(self, name) + getattr(newer, name) for name in SUMS}
        )
        both = np.concatenate([self.pairs, newer.pairs])
        counts = np.concatenate([keep * self.coincidences, newer.coincidences])
        pairs, place = np.unique(both, return_inverse=True)
        counts = np.bincount(place, weights=counts).astype(np.float64)
        if len(pairs) > MOST_PAIRS:
            most = np.sort(np.argpartition(counts, -MOST_PAIRS)[-MOST_PAIRS:])
            pairs, counts = pairs[most], counts[most]
        return sums._replace(pairs=pairs, coincidences=counts)


SUMS = tuple(name for name in Evidence._fields if name not in ("pairs", "coincidences"))


def gather(
    times: Floats, units: Ints, n_units: int, *, seconds: float, fine: bool = True
) -> Evidence:
    """Evidence of a stretch: spike times (n,) s, ascending, and unit indices (n,).

    fine: whether times are known to a millisecond; if not, only rates are counted.
    """
    all_spikes = counts_of(units, n_units)
    if len(times) < 2 or not fine:
        return Evidence.none(n_units)._replace(seconds=seconds, spikes=all_spikes)
    order = by_unit(units, n_units)
    tied = _tied(times, units, n_units)
    is_artifact, n_artifacts = _artifacts(times, units, n_units, seconds, order)
    in_artifacts = np.zeros(n_units)
    if n_artifacts:
        in_artifacts = counts_of(units[is_artifact], n_units)
        order = (np.cumsum(~is_artifact) - 1)[order[~is_artifact[order]]]
        times, units = times[~is_artifact], units[~is_artifact]
    at_once, soon = _intervals(times[order], units[order], n_units)
    locked, lockable = _locked(times[order], units[order], n_units)
    pairs, coincidences = _coincidences(times, units, n_units)
    return Evidence(
        seconds, float(n_artifacts), all_spikes - in_artifacts, in_artifacts, at_once, soon, tied,
        locked, lockable, pairs, coincidences,
    )  # fmt: skip


def counts_of(units: Ints, n_units: int) -> Floats:
    return np.bincount(units, minlength=n_units).astype(np.float64)


def by_unit(units: Ints, n_units: int) -> Ints:
    """The order of the spikes (n,) by unit, then time; numpy sorts short integers much faster."""
    short = units.astype(np.uint16) if n_units <= 2**16 else units
    return np.argsort(short, kind="stable")


def _neighbours(times: Floats, within_s: float) -> Iterator[tuple[Ints, Ints]]:
    """Indices of all pairs of ascending times that are at most `within_s` apart."""
    here = np.flatnonzero(np.diff(times) <= within_s)
    for ahead in range(1, MOST_NEIGHBOURS):
        if len(here) == 0:
            return
        yield here, here + ahead
        here = here[here + ahead + 1 < len(times)]
        here = here[times[here + ahead + 1] - times[here] <= within_s]


def _artifacts(
    times: Floats, units: Ints, n_units: int, seconds: float, order: Ints
) -> tuple[Bools, int]:
    """Whether each spike (n,) is part of an artifact, and the number of artifacts.

    order: the spikes by unit. A unit counts once in an artifact.
    """
    is_artifact = np.zeros(len(times), dtype=bool)
    lag = np.diff(times[order])
    repeated = order[1:][(lag < AT_ONCE_S) & (lag >= 0) & (np.diff(units[order]) == 0)]
    is_first = np.ones(len(times), dtype=bool)
    is_first[repeated] = False
    first = np.flatnonzero(is_first)
    least = _least_units(len(first) / max(seconds, AT_ONCE_S), n_units)
    at = times[first]
    begin = np.flatnonzero(at[least - 1 :] - at[: max(0, len(at) - least + 1)] <= AT_ONCE_S)
    if len(begin) == 0:
        return is_artifact, 0
    edges = np.zeros(len(times) + 1, dtype=np.int64)
    np.add.at(edges, first[begin], 1)
    np.add.at(edges, first[begin + least - 1] + 1, -1)
    is_artifact = np.cumsum(edges[:-1]) > 0
    return is_artifact, int(np.count_nonzero(np.diff(is_artifact, prepend=False) & is_artifact))


def _least_units(rate_hz: float, n_units: int) -> int:
    """Units of an artifact: so many that chance doesn't bring them together (Chernoff's bound)."""
    expected = RISE * rate_hz * AT_ONCE_S
    least = max(LEAST_UNITS, int(np.ceil(LEAST_SHARE * n_units)), int(expected) + 1)
    while np.exp(least - expected) * (expected / least) ** least > CHANCE:
        least += 1 + least // 50
    return least


def _tied(times: Floats, units: Ints, n_units: int) -> Floats:
    """Spikes per unit that have the time of another unit's spike."""
    same = (np.diff(times) < SAME_S) & (np.diff(units) != 0)
    is_tied = np.zeros(len(times), dtype=bool)
    is_tied[1:] |= same
    is_tied[:-1] |= same
    return counts_of(units[is_tied], n_units)


def _intervals(times: Floats, units: Ints, n_units: int) -> tuple[Floats, Floats]:
    """Pairs of each unit's spikes `AT_ONCE_S` and `NEXT_S` apart. Spikes are in order of units."""
    apart = times + units * (float(np.ptp(times)) + 1.0)  # units follow each other
    at_once, soon = np.zeros((2, n_units))
    for here, there in _neighbours(apart, NEXT_S[1]):
        lag = times[there] - times[here]
        at_once += counts_of(units[here[lag < AT_ONCE_S]], n_units)
        soon += counts_of(units[here[lag >= NEXT_S[0]]], n_units)
    return at_once, soon


def _locked(times: Floats, units: Ints, n_units: int) -> tuple[Floats, Floats]:
    """How far the spikes are locked to the mains, in blocks; spikes are in order of units.

    In a block of n spikes, the squared length of the sum of phasors is n by chance, and n² if they
    are locked; so what exceeds n, divided by n - 1, is 0 or n.
    """
    block = (times / BLOCK_S).astype(np.int64)
    if len(times) == 0:
        return np.zeros((len(MAINS_HZ), n_units)), np.zeros(n_units)
    starts = np.flatnonzero(np.diff(block + units * (block.max() + 1), prepend=-1))
    unit, n = units[starts], np.diff(starts, append=len(times)).astype(np.float64)
    locked = []
    for mains_hz in MAINS_HZ:
        phase = (2 * np.pi * ((mains_hz * times) % 1.0)).astype(np.float32)  # faster by far
        along, across = (np.add.reduceat(f(phase), starts, dtype=float) for f in (np.cos, np.sin))
        excess = (along**2 + across**2 - n) / np.maximum(n - 1, 1)
        locked.append(np.bincount(unit, excess, minlength=n_units))
    return np.array(locked), np.bincount(unit, n * (n > 1), minlength=n_units).astype(float)


def _coincidences(times: Floats, units: Ints, n_units: int) -> tuple[Ints, Floats]:
    """Pairs of units that fire within `COINCIDENCE_S`, and how often."""
    found = [np.empty(0, dtype=np.int64)]
    for here, there in _neighbours(times, COINCIDENCE_S):
        one, other = units[here], units[there]
        pair = np.minimum(one, other) * n_units + np.maximum(one, other)
        found.append(pair[one != other])
    together = np.concatenate(found)
    if n_units**2 > max(TABLE_CELLS, len(together)):
        pairs, n = np.unique(together, return_counts=True)
        return pairs, n.astype(np.float64)
    table = np.bincount(together, minlength=n_units**2)
    pairs = np.flatnonzero(table)
    return pairs, table[pairs].astype(np.float64)
