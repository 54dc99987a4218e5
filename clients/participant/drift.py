"""Drift of the units on command: replaced, turned and weaker units, and noise.

Ids stay the same: a replaced unit is another neuron on the same electrode.
"""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import numpy as np

from clients.participant.neurons import Population, chosen, draw_population, turned
from decoder.arrays import Bools
from decoder.errors import SettingsError

NOISE_RATE_HZ = (10.0, 40.0)


class Drift(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A change of the units.

    replaced: share of units that are replaced. turned_deg: counterclockwise turn of the preferred
    directions of the other units. rate_factor: factor on their baseline rates.
    noise_units: number of units that become unrelated noise. ramp_s: 0 for a step; otherwise turns
    and rates change gradually over this time, and units are replaced one after another.
    """

    replaced: float = 0.0
    turned_deg: float = 0.0
    rate_factor: float = 1.0
    noise_units: int = 0
    ramp_s: float = 0.0

    def check(self, n_units: int) -> None:
        """Raise SettingsError if it is impossible for this number of units."""
        if not 0 <= self.replaced <= 1:
            raise SettingsError(f"replaced {self.replaced}; expected a share of units, 0 to 1")
        if not self.rate_factor > 0:
            raise SettingsError(f"rate_factor {self.rate_factor}; expected more than 0")
        if not 0 <= self.noise_units <= n_units:
            raise SettingsError(f"noise_units {self.noise_units}; expected 0 to {n_units}")
        if not self.ramp_s >= 0:
            raise SettingsError(f"ramp_s {self.ramp_s}; expected 0 or more")


class Drifting:
    """A drift of one population; `at` gives the population during the ramp.

    The same rng state gives the same drift. The first `n_replaced` units in `order` are replaced;
    the last ones become noise.
    """

    def __init__(self, before: Population, drift: Drift, rng: np.random.Generator) -> None:
        n = before.n_units
        drift.check(n)
        self._before, self._drift = before, drift
        self._others = draw_population(n, rng)
        self._order = rng.permutation(n)
        self._when = rng.random(n)  # share of the ramp at which a unit is replaced
        self._noise_hz = rng.uniform(*NOISE_RATE_HZ, n)
        self.replaced = np.isin(np.arange(n), self._order[: round(drift.replaced * n)])
        self.noise = np.isin(np.arange(n), self._order[n - drift.noise_units :])

    def at(self, share: float) -> Population:
        """The population after a share (0 to 1) of the ramp."""
        drift, before = self._drift, self._before
        angle = math.radians(drift.turned_deg) * share
        tuning = replace(
            before.tuning,
            baseline_hz=before.tuning.baseline_hz * drift.rate_factor**share,
            direction=turned(before.tuning.direction, angle),
            position_gain=turned(before.tuning.position_gain, angle),
            acceleration_gain=turned(before.tuning.acceleration_gain, angle),
        )
        done = self._when < share if share < 1 else np.ones(before.n_units, dtype=bool)
        population = chosen(self.replaced & done, self._others, replace(before, tuning=tuning))
        return self._silenced(population, self.noise & done)

    def _silenced(self, population: Population, noise: Bools) -> Population:
        tuning = population.tuning
        return replace(
            population,
            tuning=replace(
                tuning,
                depth=np.where(noise, 0.0, tuning.depth),
                slow_gain=np.where(noise, 0.0, tuning.slow_gain),
                baseline_hz=np.where(noise, self._noise_hz, tuning.baseline_hz),
            ),
        )
