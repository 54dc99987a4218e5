"""Finds silent, noisy and doubled units, and units of artifacts, from the spikes alone.

    artifact   half of its spikes fall within 1 ms of those of many other units
    doubled    half of its spikes fall within 0.5 ms of those of one other unit
    noisy      a tenth of its spikes have another one within 1 ms, twice as many as its spikes 2 to
               6 ms apart explain; or half of its spikes are locked to 50 or 60 Hz; or more than
               400 spikes/s
    silent     no spike for 30 s or longer, with 100 or more expected from its own rate; or none

Each is compared with independent units of the same rates. A mixture of neurons on one electrode
doesn't fire more within a millisecond than a few milliseconds later, so ordinary threshold
crossings pass as sorted units do. If stamps are coarser than a millisecond (bins, or one
stamp per chunk), only silence and rates are judged. docs/RECALIBRATION.md has the figures of real
recordings. Needs numpy only; `streaming.evidence` counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from decoder.arrays import Bools, Floats, Ints
from streaming.evidence import (
    AT_ONCE_S,
    COINCIDENCE_S,
    NEXT_S,
    Evidence,
    by_unit,
    counts_of,
    gather,
)

LEAST_SPIKES, LEAST_IN_ARTIFACTS = 50.0, 10.0  # of a unit; with fewer, nothing is concluded
OFTEN = 2.0  # times as many spikes at once as in the next milliseconds: noise
NOISY_SHARE = 0.1  # of the unit's spikes
LOCKED, LOCKED_Z = 0.25, 6.0  # squared length of the mean phasor, and standard deviations
MOST_HZ = 400.0
DOUBLED_SHARE = ARTIFACT_SHARE = 0.5
SILENT_S, SILENT_EXPECTED = 30.0, 100.0
COARSE_S = 0.0015
MANY_ARTIFACTS, MOST_NAMES = 1.0, 8  # in sentences; per minute
LONGEST_PAUSE_S = 0.5  # of all units together; longer pauses are gaps in the recording


@dataclass(frozen=True, kw_only=True)
class Faults:
    """The faulty units of a stretch, by id. `doubled`: the unit, and the one that it doubles.

    artifact: units that fire mainly in artifacts.
    artifacts_per_min: moments at which many units fire within a millisecond.
    """

    silent: list[str]
    noisy: list[str]
    doubled: list[tuple[str, str]]
    artifact: list[str]
    artifacts_per_min: float

    def by_unit(self) -> dict[str, str]:
        """The kind of fault of each faulty unit, by id: the name of its list."""
        doubled = [copy for copy, _ in self.doubled]
        kinds = {
            "doubled": doubled, "noisy": self.noisy, "artifact": self.artifact,
            "silent": self.silent,
        }  # fmt: skip
        return {unit_id: kind for kind, unit_ids in kinds.items() for unit_id in unit_ids}

    def sentences(self) -> list[str]:
        """One sentence for each kind of fault that was found, for people."""
        doubled = [f"{copy} of {original}" for copy, original in self.doubled]
        kinds = (
            ("silent units (throughout, or for 30 s and longer)", self.silent),
            (
                "noisy units (spikes within a millisecond, mains hum, or over 400 Hz)",
                self.noisy,
            ),
            ("copies of other units (their spikes coincide)", doubled),
            ("units that fire mainly in artifacts", self.artifact),
        )
        found = [f"{what}: {listed(units)}" for what, units in kinds if units]
        if self.artifacts_per_min >= MANY_ARTIFACTS:
            found.append(
                f"{self.artifacts_per_min:.0f} artifacts per minute, in which many units fire "
                "within a millisecond"
            )
        return found


def listed(names: list[str]) -> str:
    """The names, at most `MOST_NAMES`."""
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def faults_of(times: Floats, units: Ints, unit_ids: tuple[str, ...]) -> Faults:
    """The faulty units of a recording: spike times (n,) s, ascending, and unit indices (n,)."""
    return judged_whole(times, units, len(unit_ids)).named(unit_ids)


def judged_whole(times: Floats, units: Ints, n_units: int) -> Judged:
    """The same by unit index, for `n_units` units."""
    if len(times) == 0:
        return judged(Evidence.none(n_units), np.ones(n_units, dtype=bool), np.ones(n_units))
    # Without the gaps of the recording, from the first spike to the last.
    times = np.cumsum(np.minimum(np.diff(times, prepend=times[:1]), LONGEST_PAUSE_S))
    seconds = float(times[-1])
    silence_s = _longest_silence(times, units, n_units, seconds)
    n = counts_of(units, n_units)
    silent = is_silent(silence_s, n, seconds - silence_s) | (n == 0)
    evidence = gather(times, units, n_units, seconds=seconds)
    return judged(evidence, silent, np.ones(n_units))


class Judged(NamedTuple):
    """Which units (n_units,) have which fault. `doubles`: the unit that it doubles, or -1."""

    silent: Bools
    noisy: Bools
    doubles: Ints
    artifact: Bools
    artifacts_per_min: float

    def any(self) -> Bools:
        """Whether a unit has a fault at all."""
        return self.silent | self.noisy | self.artifact | (self.doubles >= 0)

    def named(self, unit_ids: tuple[str, ...]) -> Faults:
        """The same by unit id."""

        def ids(which: Bools) -> list[str]:
            return [unit_ids[index] for index in np.flatnonzero(which)]

        doubled = [
            (unit_ids[index], unit_ids[self.doubles[index]])
            for index in np.flatnonzero(self.doubles >= 0)
        ]
        return Faults(
            silent=ids(self.silent), noisy=ids(self.noisy), doubled=doubled,
            artifact=ids(self.artifact), artifacts_per_min=round(self.artifacts_per_min, 1),
        )  # fmt: skip


def judged(evidence: Evidence, silent: Bools, ease: Floats) -> Judged:
    """The faults that the evidence shows.

    ease: (n_units,) factor of the thresholds; below 1 for units that had a fault, so that names
        in a status don't flicker.
    """
    e, nobody = evidence, np.zeros(len(evidence.spikes), dtype=bool)
    n_all = np.maximum(e.spikes + e.in_artifacts, 1.0)
    too_many = (n_all > ease * MOST_HZ * e.seconds) & (n_all >= LEAST_SPIKES)
    if _is_coarse(e):
        return Judged(silent, too_many, np.full(len(n_all), -1), nobody, 0.0)
    artifact = e.in_artifacts >= np.maximum(ease * ARTIFACT_SHARE * n_all, LEAST_IN_ARTIFACTS)
    enough = (e.spikes >= LEAST_SPIKES) & ~artifact
    by_chance = e.soon * AT_ONCE_S / (NEXT_S[1] - NEXT_S[0])
    often = e.at_once > ease * np.maximum(NOISY_SHARE * e.spikes, OFTEN * by_chance)
    most, phase = np.maximum(e.lockable, 1.0), e.locked.max(axis=0)
    locked = (phase > ease * LOCKED * most) & (phase > LOCKED_Z * np.sqrt(most))
    noisy = too_many | (enough & (often | locked))
    doubles = _doubles(e, enough & ~noisy, ease)
    per_min = 60 * e.artifacts / max(e.seconds, 1.0)
    return Judged(silent & ~artifact, noisy, doubles, artifact, per_min)


def _is_coarse(e: Evidence) -> bool:
    """Whether stamps are shared as on a grid of `COARSE_S` or more: bins, or one per chunk.

    Judged by the quarter of the units with the fewest shared stamps, which leaves out copies.
    """
    n = e.spikes + e.in_artifacts
    if not n.any() or e.seconds <= 0:
        return False
    shares = np.sort(e.tied[n > 0] / n[n > 0])
    return bool(shares[len(shares) // 4] > 1 - np.exp(-COARSE_S * n.sum() / e.seconds))


def _doubles(e: Evidence, enough: Bools, ease: Floats) -> Ints:
    """The unit that each unit doubles, or -1. Of two, the one with fewer spikes is the copy."""
    n_units = len(e.spikes)
    doubles = np.full(n_units, -1)
    if e.seconds <= 0:
        return doubles
    first, second = e.pairs // n_units, e.pairs % n_units
    weight = ease * e.spikes  # a unit that is named as a copy stays the copy
    swap = weight[first] < weight[second]
    original, copy = np.where(swap, second, first), np.where(swap, first, second)
    n = e.spikes[copy]
    by_chance = n * e.spikes[original] * 2 * COINCIDENCE_S / e.seconds
    share = (e.coincidences - by_chance) / np.maximum(n - by_chance, 1.0)
    known = enough[first] & enough[second] & (by_chance < n / 2)
    for index in np.flatnonzero(known & (share >= ease[copy] * DOUBLED_SHARE)):
        doubles[copy[index]] = original[index]
    return doubles


def _longest_silence(times: Floats, units: Ints, n_units: int, seconds: float) -> Floats:
    """The longest time (n_units,) without a spike of each unit, s."""
    longest = np.full(n_units, seconds)
    order = by_unit(units, n_units)
    at, of = times[order], units[order]
    starts = np.flatnonzero(np.diff(of, prepend=-1))
    since = np.diff(at, prepend=0.0)
    since[starts] = at[starts]
    ends = np.append(starts[1:], len(at)) - 1
    longest[of[starts]] = np.maximum(np.maximum.reduceat(since, starts), seconds - at[ends])
    return longest


def is_silent(silence_s: Floats, n: Floats, other_s: Floats) -> Bools:
    """Whether silences (n_units,) are too long for units with `n` spikes in their other seconds."""
    expected = silence_s * n / np.maximum(other_s, SILENT_S)
    return (silence_s >= SILENT_S) & (expected >= SILENT_EXPECTED)
