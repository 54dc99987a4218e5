"""The units of a simulated participant: their tuning and their spikes.

Tuning is drawn from the family of training.data.simulate, so that a decoder pretrained on it can
transfer. The following effects are added. No decoder here assumes them, and they make a closed loop
differ from a recording:

    hazard = baseline * exp(gain * tuning + slow * arousal) * history,     at most 200 Hz
    gain   = (1 + posture·p) * (1 + effort) * control

- history: a refractory period, then a burst or a relative refractory period (6 ms), and an
  adaptation (80 ms) that grows with every spike; each unit has its own (Truccolo et al. 2005).
- posture: the cursor's position scales the depth of tuning (Scott & Kalaska 1997).
- control: in closed loop every unit has another gain, and its preferred direction turns by some
  degrees (Carmena et al. 2003; Ganguly & Carmena 2009).
- effort: more effort means more modulation (up to `EFFORT_GAIN`).
- arousal: a slow gain shared by all units. A quarter of the units hardly responds to movement.

The sizes of the effects are plausible, but not fitted to any data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np

from clients.participant.policy import LEAD_S, TICK_S, Intention
from decoder.arrays import Bools, Floats, Ints
from training.data.simulate import (
    ACCELERATION_SCALE,
    POSITION_SCALE,
    SPEED_SCALE,
    STEP_S,
    Tuning,
    draw_tuning,
)

Table = TypeVar("Table")

STEPS = round(TICK_S / STEP_S)
REFRACTORY_STEPS = 2  # whole steps without a spike: more than 2 ms between spikes
MAX_RATE_HZ = 200.0
MAX_HAZARD = 0.3  # upper limit of the spike probability per step
BURST_S, ADAPTATION_S, AROUSAL_S = 0.006, 0.08, 4.0
HISTORY_COST = 1.12  # compensates the rates for the effect of history, by the median
EFFORT_GAIN = 0.2
POSTURE_RANGE = (0.6, 1.4)
MEMORY = round(LEAD_S / TICK_S) + 1  # past intentions that units with a short lead still need


@dataclass(frozen=True, kw_only=True)
class Population:
    """Units: their tuning and other parameters of their rates; arrays (n_units,), posture (.., 2).

    burst: log of the hazard's factor right after the refractory period. adaptation: log of its
    fall for every recent spike. control_gain, control_turn: factor and angle (rad) in closed loop.
    """

    tuning: Tuning
    burst: Floats
    adaptation: Floats
    posture: Floats
    control_gain: Floats
    control_turn: Floats

    @property
    def n_units(self) -> int:
        return len(self.burst)


def draw_population(n_units: int, rng: np.random.Generator) -> Population:
    """Draw units of the shared tuning family, each with its own history and context."""
    bursts = rng.random(n_units) < 0.3
    tuning = draw_tuning(n_units, rng)
    return Population(
        tuning=replace(tuning, baseline_hz=HISTORY_COST * tuning.baseline_hz),
        burst=np.where(bursts, rng.uniform(0.5, 1.2, n_units), rng.uniform(-1.5, 0.0, n_units)),
        adaptation=rng.uniform(0.0, 0.15, n_units),
        posture=rng.normal(0.0, 0.15, (n_units, 2)),
        control_gain=np.exp(rng.normal(0.0, 0.15, n_units)),
        control_turn=rng.normal(0.0, math.radians(10.0), n_units),
    )


def chosen(mask: Bools, new: Table, old: Table) -> Table:
    """A table (Tuning, Population) with the units of `mask` (n_units,) from `new`."""
    columns: dict[str, Any] = {}
    for field in fields(new):  # type: ignore[arg-type]
        a, b = getattr(new, field.name), getattr(old, field.name)
        if isinstance(a, np.ndarray):
            columns[field.name] = np.where(mask if a.ndim == 1 else mask[:, None], a, b)
        else:
            columns[field.name] = chosen(mask, a, b)
    return type(new)(**columns)


def turned(vectors: Floats, angle: Floats | float) -> Floats:
    """Vectors (n, 2) turned by an angle each, rad, counterclockwise."""
    z = (vectors[:, 0] + 1j * vectors[:, 1]) * np.exp(1j * np.asarray(angle))
    return np.stack([z.real, z.imag], axis=1)


class Neurons:
    """A population that fires; call `fire` once per tick."""

    def __init__(self, population: Population, rng: np.random.Generator) -> None:
        self._rng = rng
        n = population.n_units
        self._movements = np.zeros((MEMORY, 7))  # newest first, starting at `_newest`
        self._newest = 0
        self._arousal, self._control = 0.0, -1.0
        self._step = 0
        self._last = [-10_000] * n  # step of each unit's last spike
        self._recent = [0.0] * n  # count of recent spikes, decaying with `ADAPTATION_S`
        self.become(population)

    def become(self, population: Population) -> None:
        """Replace the units from now on, keeping their indices."""
        self.population = population
        tuning = population.tuning
        self._bursts, self._adapts = population.burst.tolist(), population.adaptation.tolist()
        self._highest = np.exp(np.maximum(population.burst, 0.0))
        self._behind = np.round((LEAD_S - tuning.latency_s) / TICK_S).astype(np.int64)
        self._watching = _weights(tuning, tuning.depth, 0.0)
        self._in_control = _weights(
            tuning, tuning.depth * population.control_gain, population.control_turn
        )
        self._control = -1.0

    def rates_hz(self, intention: Intention) -> Floats:
        """Rates (n_units,) before history, and one tick of arousal; remembers the intention."""
        self._newest = (self._newest - 1) % MEMORY
        self._movements[self._newest] = _movement(intention)
        if abs(intention.control - self._control) > 0.01:
            self._control = intention.control
            share = min(1.0, max(0.0, self._control))
            self._weights = (1 - share) * self._watching + share * self._in_control
        keep = math.exp(-TICK_S / AROUSAL_S)
        self._arousal *= keep
        self._arousal += math.sqrt(1 - keep**2) * self._rng.standard_normal()
        behind = self._movements[(self._newest + self._behind) % MEMORY]
        drive = (behind * self._weights).sum(axis=1)
        here = self._movements[self._newest]
        posture = self.population.posture
        gain = 1 + posture[:, 0] * here[3] + posture[:, 1] * here[4]
        drive *= np.minimum(np.maximum(gain, POSTURE_RANGE[0]), POSTURE_RANGE[1])
        drive *= 1 + EFFORT_GAIN * intention.effort
        tuning = self.population.tuning
        drive += tuning.slow_gain * self._arousal
        return np.asarray(np.minimum(tuning.baseline_hz * np.exp(drive), MAX_RATE_HZ))

    def fire(self, intention: Intention) -> tuple[Floats, Ints]:
        """A tick's spikes in the order of time: seconds (n,) since its start, units (n,).

        Candidates are drawn from the highest hazard that history allows and thinned by the actual
        hazard (Ogata 1981), so that the cost depends on the candidates only.
        """
        expected = self.rates_hz(intention) * STEP_S
        draws = self._rng.random((STEPS, len(expected)))
        maybe = np.nonzero(draws < np.minimum(expected * self._highest, MAX_HAZARD))
        steps, units = maybe[0].tolist(), maybe[1].tolist()
        times, fired = [], []
        for step, unit, draw in zip(steps, units, draws[maybe].tolist(), strict=True):
            hazard = min(MAX_HAZARD, float(expected[unit]) * self._history(unit, step))
            if draw < hazard:
                self._spike(unit, step)
                times.append((step + draw / hazard) * STEP_S)  # uniform, where there is a spike
                fired.append(unit)
        self._step += STEPS
        order = np.argsort(times)
        return np.array(times)[order], np.array(fired, dtype=np.int64)[order]

    def _history(self, unit: int, step: int) -> float:
        """The factor of a unit's hazard from its own earlier spikes, in a step of this tick."""
        since = self._step + step - self._last[unit]
        if since <= REFRACTORY_STEPS:
            return 0.0
        burst = self._bursts[unit] * math.exp(-since * STEP_S / BURST_S)
        recent = self._recent[unit] * math.exp(-since * STEP_S / ADAPTATION_S)
        return math.exp(burst - self._adapts[unit] * recent)

    def _spike(self, unit: int, step: int) -> None:
        since = self._step + step - self._last[unit]
        self._recent[unit] = 1.0 + self._recent[unit] * math.exp(-since * STEP_S / ADAPTATION_S)
        self._last[unit] = self._step + step


def _movement(intention: Intention) -> tuple[float, ...]:
    """Velocity, speed, position and acceleration, scaled to about 1 (`training.data.simulate`)."""
    vel = intention.vel / SPEED_SCALE
    pos = intention.pos / POSITION_SCALE
    acc = intention.acc / ACCELERATION_SCALE
    return vel.real, vel.imag, abs(vel), pos.real, pos.imag, acc.real, acc.imag


def _weights(tuning: Tuning, depth: Floats, turn: Floats | float) -> Floats:
    """Weights (n_units, 7) of `_movement`, with everything directional turned."""
    columns = (
        turned(tuning.direction, turn),
        tuning.speed_gain[:, None],
        turned(tuning.position_gain, turn),
        turned(tuning.acceleration_gain, turn),
    )
    return depth[:, None] * np.concatenate(columns, axis=1)
