"""A closed loop in no time: a centre-out task, a simulated participant, a decoder as a function.

What `clients/rig` does over sockets, stepped 10 ms at a time, so that a minute takes a second.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from clients.participant.drift import Drift
from clients.participant.policy import LEAD_S
from clients.participant.screen import Seen
from clients.participant.simulated import Participant, ParticipantSettings

STEP_S = 0.01
DISTANCE_M, RADIUS_M, HOLD_S, LIMIT_S = 0.08, 0.01, 0.3, 4.0
HALF_SIDE_M = 0.12
Decoder = Callable[["Loop"], complex]


@dataclass
class Loop:
    """The recorded loop, one row per step; positions (m) and velocities (m/s) as complex x + iy."""

    participant: Participant
    pos: complex = 0j
    vel: complex = 0j
    target: complex | None = None
    n_steps: int = 0
    times: list[float] = field(default_factory=list)
    velocities: list[complex] = field(default_factory=list)
    intended: list[complex] = field(default_factory=list)
    spike_times: list[np.ndarray] = field(default_factory=list)
    spike_units: list[np.ndarray] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)  # s to each target, nan where it was missed

    @property
    def now(self) -> float:
        return self.n_steps * STEP_S

    def block(self, name: str) -> None:
        """Announce a block, and let a second pass."""
        markers = [(self.now, f"block {name}")]
        self.target = None
        for _ in range(100):
            self.step(0j, markers)
            markers = []

    def step(self, vel: complex, markers: list[tuple[float, str]] = []) -> None:  # noqa: B006
        """Move the cursor for a step, show it, and let the participant live through it."""
        self.vel, self.pos = vel, _inside(self.pos + vel * STEP_S)
        aim = self.target if self.target is not None else complex(math.nan, math.nan)
        row = [self.pos.real, self.pos.imag, vel.real, vel.imag, aim.real, aim.imag]
        seen = Seen(times=np.array([self.now]), values=np.array([row]), markers=markers)
        self.n_steps += 1
        times, units = self.participant.step(self.now, seen)
        self.spike_times.append(times)
        self.spike_units.append(units)
        self.times.append(self.now)
        self.velocities.append(vel)
        assert self.participant.intention is not None
        self.intended.append(self.participant.intention.vel)

    def spikes(self) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate(self.spike_times), np.concatenate(self.spike_units)

    def meant(self) -> np.ndarray:
        """Intended velocity (n, 2) in m/s at each of `times`, delayed by LEAD_S."""
        lead = round(LEAD_S / STEP_S)
        meant = np.array([0j] * lead + self.intended)[: len(self.intended)]
        return np.stack([meant.real, meant.imag], axis=1)


def _inside(pos: complex) -> complex:
    return complex(*np.clip([pos.real, pos.imag], -HALF_SIDE_M, HALF_SIDE_M))


def loop(**settings: float) -> Loop:
    """A participant at a centre-out task."""
    given = ParticipantSettings(prefix="offline", **settings)
    return Loop(Participant(given, start=0.0))


def observe(rig: Loop, seconds: float, rng: np.random.Generator) -> None:
    """Minimum-jerk reaches out and back, as a task shows them in an observation block."""
    rig.block("observation")
    end = rig.now + seconds
    outward = True
    while rig.now < end:
        aim = DISTANCE_M * np.exp(1j * math.pi / 4 * rng.integers(8)) if outward else 0j
        outward = not outward
        rig.target, start = complex(aim), rig.pos
        duration = rng.uniform(0.8, 1.25) * (0.35 + 3.0 * abs(aim - start))
        for _ in range(25):
            rig.step(0j)
        n = round(duration / STEP_S)
        phase = np.arange(n + 1) / n
        path = start + (phase**3 * (10 - 15 * phase + 6 * phase**2)) * (aim - start)
        for vel in np.diff(path) / STEP_S:
            rig.step(complex(vel))
        for _ in range(round(0.2 / STEP_S)):
            rig.step(0j)


def control(rig: Loop, decoder: Decoder, n_targets: int, rng: np.random.Generator) -> float:
    """Centre-out targets (and the way back) in closed loop; returns the share acquired."""
    rig.block("closed")
    outward, first = True, len(rig.waits)
    for _ in range(n_targets):
        aim = DISTANCE_M * np.exp(1j * math.pi / 4 * rng.integers(8)) if outward else 0j
        outward = not outward
        rig.target = complex(aim)
        rig.waits.append(_reach(rig, decoder))
        if math.isnan(rig.waits[-1]):
            rig.pos, outward = 0j, True
    return float(np.isfinite(rig.waits[first:]).mean())


def _reach(rig: Loop, decoder: Decoder) -> float:
    begin, inside = rig.now, 0.0
    while rig.now - begin < LIMIT_S:
        rig.step(decoder(rig))
        assert rig.target is not None
        inside = inside + STEP_S if abs(rig.pos - rig.target) < RADIUS_M else 0.0
        if inside >= HOLD_S:
            return rig.now - begin
    return math.nan


def what_is_meant(rig: Loop) -> complex:
    """A perfect decoder: the velocity that was intended for now."""
    lead = round(LEAD_S / STEP_S)
    return rig.intended[-lead] if len(rig.intended) >= lead else 0j


class RidgeDecoder:
    """Ridge regression from counts of 10 bins of 50 ms before each step to velocity."""

    BIN_S, LAGS = 0.05, 10

    def __init__(self, rig: Loop, first: float, last: float, target: np.ndarray) -> None:
        at = [i for i, t in enumerate(rig.times) if first <= t < last][::3]
        counts = self.counts(rig, np.array(rig.times)[at])
        self.center, self.spread = counts.mean(axis=0), counts.std(axis=0) + 0.1
        x = (counts - self.center) / self.spread
        y = target[at]
        self.bias = y.mean(axis=0)
        self.weights = np.linalg.solve(x.T @ x + 1e3 * np.eye(x.shape[1]), x.T @ (y - self.bias))

    def counts(self, rig: Loop, times: np.ndarray) -> np.ndarray:
        spike_times, spike_units = rig.spikes()
        n_units = rig.participant.settings.n_units
        edges = np.arange(self.LAGS, -1, -1) * self.BIN_S
        counts = np.empty((len(times), n_units, self.LAGS))
        for unit in range(n_units):
            own = spike_times[spike_units == unit]
            counts[:, unit] = np.diff(np.searchsorted(own, times[:, None] - edges), axis=1)
        return counts.reshape(len(times), -1)

    def decode(self, rig: Loop, times: np.ndarray) -> np.ndarray:
        return ((self.counts(rig, times) - self.center) / self.spread) @ self.weights + self.bias

    def __call__(self, rig: Loop) -> complex:
        """Velocity now."""
        recent = rig.spike_times[-round(self.BIN_S * self.LAGS / STEP_S) - 1 :]
        units = np.concatenate(rig.spike_units[-len(recent) :])
        lag = ((rig.now - np.concatenate(recent)) / self.BIN_S).astype(int)
        keep = (lag >= 0) & (lag < self.LAGS)
        counts = np.zeros((rig.participant.settings.n_units, self.LAGS))
        np.add.at(counts, (units[keep], self.LAGS - 1 - lag[keep]), 1)
        x, y = ((counts.ravel() - self.center) / self.spread) @ self.weights + self.bias
        return complex(x, y)


def r2(true: np.ndarray, decoded: np.ndarray) -> float:
    residual = ((true - decoded) ** 2).sum(axis=0)
    return float((1 - residual / ((true - true.mean(axis=0)) ** 2).sum(axis=0)).mean())


DRIFT = Drift(replaced=0.5, turned_deg=60.0)
