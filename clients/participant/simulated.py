"""A simulated participant without sockets: eyes, intention and units, stepped through time.

Its input is the screen, its output spikes. The same seed gives the same units, noise and spikes if
the same samples arrive at the same ticks. It is not fitted to any person.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clients.participant.drift import Drift, Drifting
from clients.participant.neurons import Neurons, draw_population
from clients.participant.policy import TICK_S, Intention, Policy, draw_habits
from clients.participant.screen import NOTHING_NEW, Screen, Seen
from decoder.arrays import Floats, Ints
from decoder.errors import SettingsError

RAMP_STEP_S = 0.1  # interval of updates of the units during a drift


@dataclass(frozen=True, kw_only=True)
class ParticipantSettings:
    """Settings of a participant. seed: the day and its units. delay_s: visual delay."""

    prefix: str
    n_units: int = 96
    subject: int = 9
    seed: int = 1
    delay_s: float = 0.15

    def __post_init__(self) -> None:
        if self.n_units < 1:
            raise SettingsError(f"{self.n_units} units; expected at least 1")
        if not 0 <= self.delay_s <= 1:
            raise SettingsError(f"delay {self.delay_s * 1e3:g} ms; expected 0 to 1000")


class Participant:
    """Eyes, intention and units, without sockets: `step` it through time.

    start: LSL time of its first tick. intention: the newest one, for `LEAD_S` ahead, or None.
    """

    def __init__(self, settings: ParticipantSettings, start: float) -> None:
        self.settings = settings
        self.habits = draw_habits(settings.subject, settings.delay_s)
        self.intention: Intention | None = None
        self.drifting: Drifting | None = None
        self._screen = Screen()
        self._policy = Policy(self.habits, self._rng(0))
        self.neurons = Neurons(draw_population(settings.n_units, self._rng(1)), self._rng(2))
        self._drift_rng = self._rng(3)
        self._drift_start, self._ramp_s = 0.0, 0.0
        self._start, self._n_ticks = start, 0

    @property
    def unit_ids(self) -> tuple[str, ...]:
        """As `training.data.simulate` names them: another neuron on an electrode keeps the name."""
        return tuple(f"elec{unit}/unit0" for unit in range(self.settings.n_units))

    @property
    def now(self) -> float:
        """The time of the last tick, LSL clock, s."""
        return self._start + self._n_ticks * TICK_S

    def step(self, now: float, seen: Seen = NOTHING_NEW) -> tuple[Floats, Ints]:
        """Run the ticks until `now`, after adding what is new on the screen.

        Returns the spikes: times (n,), LSL clock, ascending, and unit indices (n,).
        """
        self._screen.show(seen)
        parts = []
        while self.now + TICK_S <= now:
            parts.append(self._tick())
        if not parts:
            return np.empty(0), np.empty(0, dtype=np.int64)
        return np.concatenate([t for t, _ in parts]), np.concatenate([u for _, u in parts])

    def skip(self, now: float) -> None:
        """Skip the ticks before `now`."""
        self._n_ticks = max(self._n_ticks, int((now - self._start) / TICK_S))

    def drift(self, drift: Drift) -> None:
        """Start a drift of the current units. Raises SettingsError."""
        self.drifting = Drifting(self.neurons.population, drift, self._drift_rng)
        self._drift_start, self._ramp_s = self.now, drift.ramp_s
        self._drift_further(every_tick=True)

    def _tick(self) -> tuple[Floats, Ints]:
        now = self.now
        glimpse = self._screen.glimpse(
            until=now - self.habits.delay_s, target_until=now - self.habits.reaction_s
        )
        self._drift_further()
        self.intention = self._policy.intend(now, glimpse)
        offsets, units = self.neurons.fire(self.intention)
        self._n_ticks += 1
        return now + offsets, units

    def _drift_further(self, every_tick: bool = False) -> None:
        if self.drifting is None:
            return
        if not every_tick and self._n_ticks % round(RAMP_STEP_S / TICK_S):
            return
        gone_s = self.now - self._drift_start
        share = min(1.0, gone_s / self._ramp_s) if self._ramp_s > 0 else 1.0
        self.neurons.become(self.drifting.at(share))
        if share >= 1.0:
            self.drifting = None

    def _rng(self, purpose: int) -> np.random.Generator:
        settings = self.settings
        return np.random.default_rng([settings.seed, settings.subject, settings.n_units, purpose])
