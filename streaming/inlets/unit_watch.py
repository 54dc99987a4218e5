"""Watches the units of the open stream: which are faulty now, over about the last minute.

The daemon calls `see` once a second, after its frame is published, with at most `MOST_SPIKES` of
that second's spikes; this bounds its cost, whatever the rate. Evidence fades with a time constant
of `FADES_S`. A unit that has a fault keeps it until the evidence falls below `EASE` of the
threshold, so that names don't come and go.
"""

from __future__ import annotations

import math

import numpy as np

from decoder.arrays import Floats, Ints
from streaming.evidence import Evidence, counts_of, gather
from streaming.faults import Faults, Judged, is_silent, judged

MOST_SPIKES = 1000
FADES_S, RATES_FADE_S = 30.0, 600.0
EASE = 0.7
NEVER_FIRED_S = 60.0  # a unit that hasn't fired since the start is silent after this


class UnitWatch:
    """The faulty units of a stream, by their numbers in the stream.

    until_s: time up to which spikes were seen.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything: the next spikes are of another stream."""
        self._evidence = Evidence.none(0)
        self._judged: Judged | None = None
        self._n = self._firing_s = self._silence_s = np.zeros(0)
        self.until_s = -np.inf

    def see(
        self, times: Floats, units: Ints, n_units: int, *, seconds: float, fine: bool = True
    ) -> None:
        """Add the spikes of the last `seconds`: times (n,) s, ascending, and stream units (n,).

        Events of unknown units have a negative number.

        fine: whether times are known to a millisecond; counts in bins are not. Seconds in which no
        unit fired say nothing about single units.
        """
        known = units >= 0
        times, units = times[known], units[known]
        if len(times) == 0 or seconds <= 0:
            return
        if n_units != len(self._n):
            self._judged = None
            self._evidence = Evidence.none(n_units)
            self._n = self._firing_s = self._silence_s = np.zeros(n_units)
        if len(times) > MOST_SPIKES:
            times, units = times[:MOST_SPIKES], units[:MOST_SPIKES]
            seconds_seen = float(times[-1] - times[0])
        else:
            seconds_seen = seconds
        newest = gather(times, units, n_units, seconds=seconds_seen, fine=fine)
        self._evidence = self._evidence.then(newest, keep=math.exp(-seconds / FADES_S))
        self._see_rates(counts_of(units, n_units), seconds_seen)
        never = (self._n == 0) & (self._silence_s >= NEVER_FIRED_S)
        silent = is_silent(self._silence_s, self._n, self._firing_s) | never
        had = np.zeros(n_units, dtype=bool) if self._judged is None else self._judged.any()
        self._judged = judged(self._evidence, silent, np.where(had, EASE, 1.0))

    def _see_rates(self, n: Floats, seconds: float) -> None:
        """Add spikes (n_units,) to each unit's rate, without the silence since its last spike."""
        fires = n > 0
        keep = math.exp(-seconds / RATES_FADE_S)
        lasted_s = self._silence_s + seconds
        self._firing_s = np.where(fires, keep * self._firing_s + lasted_s, self._firing_s)
        self._n = np.where(fires, keep * self._n + n, self._n)
        self._silence_s = np.where(fires, 0.0, lasted_s)

    def faults(self, unit_ids: tuple[str, ...]) -> Faults | None:
        """The faulty units by id; None before any spike was seen."""
        if self._judged is None or len(unit_ids) < len(self._n):
            return None
        return self._judged.named(unit_ids)
