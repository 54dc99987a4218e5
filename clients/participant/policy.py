"""The intended movement of a simulated participant, from a delayed screen.

In closed loop the intended velocity points from the believed position of the cursor to the target.
Its size is a piecewise-linear function of the distance (Willett et al. 2017, "Feedback control
policies employed by people using intracortical brain-computer interfaces", J. Neural Eng. 14:
016001, and 2019, Sci. Rep. 9: 8881). A forward model makes up for the visual delay: it starts at
the seen cursor and adds the commands since. While the cursor is scripted, the expected movement is
imagined (clients/participant/imagery.py).

The intention at time t is the movement at t + `LEAD_S`, because motor cortex leads the hand: the
units of training.data.simulate fire 50-150 ms before the movement. Points and velocities are
complex numbers, x + iy, in m and m/s, so that a turn is a product.

The parameters are not fitted to any person.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clients.participant.imagery import Imagery
from clients.participant.screen import Glimpse

TICK_S = 0.005  # between two intentions
LEAD_S = 0.15  # an intention is for the movement this far ahead
PLAN_S = 0.03  # time constant of each of the two low-pass filters of the plan
SPARE_S = 0.2  # commands kept beyond the visual delay
GAIN_S, DRIFT_S = 5.0, 1.5  # time over which the forward model learns gain and drift
GAIN_PRIOR = 0.05**2  # (m/s)²; movement needed to change the gain from 1
GAINS = (0.2, 1.5)  # range of the learned gain
MAX_DRIFT, MAX_COMMAND = 0.05, 0.4  # m/s
CONTEXT_S = 1.0  # time constant of the transition between watching and control
OBSERVATION = "observation"


@dataclass(frozen=True, kw_only=True)
class Habits:
    """How a participant controls a cursor.

    delay_s: visual delay. reaction_s: from a new target to the first intention toward it,
    including the delay. distances, speeds: the policy's knots, m and m/s.
    cursor_lag_s: time constant of the cursor in the forward model. turn_noise: standard deviation
    of the direction, rad; size_noise: of the speed, as a share of it; noise_s: how long both last.
    """

    delay_s: float = 0.15
    reaction_s: float = 0.2
    distances: tuple[float, ...] = (0.0, 0.002, 0.01, 0.03, 0.08)
    speeds: tuple[float, ...] = (0.0, 0.0, 0.04, 0.12, 0.22)
    cursor_lag_s: float = 0.1
    turn_noise: float = 0.15
    size_noise: float = 0.1
    noise_s: float = 0.3


def draw_habits(subject: int, delay_s: float) -> Habits:
    """A subject's habits: how fast, how careful, how quick to react."""
    rng = np.random.default_rng([104_729, subject])
    haste = 1.0 / rng.uniform(0.85, 1.1)  # as in training.data.simulate, for the same subject
    return Habits(
        delay_s=delay_s,
        reaction_s=max(delay_s, rng.uniform(0.19, 0.23)),
        speeds=tuple(haste * speed for speed in Habits.speeds),
        turn_noise=rng.uniform(0.12, 0.18),
    )


@dataclass(frozen=True, kw_only=True)
class Intention:
    """The intended movement at `time` (LSL clock, s): m, m/s, m/s², complex.

    effort: 0 to 1. control: 0 (watching) to 1 (in control).
    """

    time: float
    pos: complex
    vel: complex
    acc: complex
    effort: float
    control: float


class Policy:
    """The intentions of a participant, one every `TICK_S`."""

    def __init__(self, habits: Habits, rng: np.random.Generator) -> None:
        self._habits, self._rng = habits, rng
        self._imagery = Imagery()
        self._forward = ForwardModel(habits.cursor_lag_s, habits.delay_s)
        self._plan = _LowPass()
        self._noise = 0j  # real: of the size; imaginary: of the direction; unit variance
        self._effort = self._control = 0.0

    def intend(self, now: float, seen: Glimpse) -> Intention:
        """The intention at `now`; call it once per tick, in order."""
        at = now + LEAD_S
        in_control = OBSERVATION not in seen.block
        self._control += (in_control - self._control) * TICK_S / CONTEXT_S
        self._effort += (_strain(now, seen, in_control) - self._effort) * TICK_S / CONTEXT_S
        if in_control:
            self._forward.learn(seen)
            pos = self._forward.position(at, seen)
            want = self._toward(seen.target, pos)
        else:  # the movement is known ahead, so the plan's lag is compensated
            pos, _ = self._imagery.expect(at, seen)
            _, want = self._imagery.expect(at + 2 * PLAN_S, seen)
        plan, acceleration = self._plan.step(want * self._tremble())
        self._forward.remember(at, plan)
        return Intention(
            time=at,
            pos=pos,
            vel=plan,
            acc=acceleration,
            effort=self._effort,
            control=self._control,
        )

    def _toward(self, target: complex | None, pos: complex) -> complex:
        if target is None:
            return 0j
        distance = abs(target - pos)
        speed = float(np.interp(distance, self._habits.distances, self._habits.speeds))
        return self._forward.command(speed * (target - pos) / max(distance, 1e-9))

    def _tremble(self) -> complex:
        """A factor near 1: noise in proportion to the signal (Harris & Wolpert 1998)."""
        keep = math.exp(-TICK_S / self._habits.noise_s)
        x, y = self._rng.standard_normal(2).tolist()
        self._noise = keep * self._noise + math.sqrt(1.0 - keep**2) * complex(x, y)
        size = max(0.0, 1.0 + self._habits.size_noise * self._noise.real)
        turn = self._habits.turn_noise * self._noise.imag
        return size * complex(math.cos(turn), math.sin(turn))


def _strain(now: float, seen: Glimpse, in_control: bool) -> float:
    """Effort: it rises from 1.5 s without success to 3.5 s."""
    if seen.target is None or not in_control:
        return 0.0
    return min(1.0, max(0.0, (now - seen.target_since - 1.5) / 2.0))


class ForwardModel:
    """The current position of the cursor, from its seen position and the commands since.

    It believes in a cursor that follows commands with one time constant, some gain, and a drift
    of its own: v' = (gain * command + drift - v) / lag. Gain and drift are learned from what the
    cursor is seen to do (Golub et al. 2015, eLife 4: e10015: internal models of a BCI); a turn of
    the movement is not: that takes people much longer.
    """

    def __init__(self, lag_s: float, delay_s: float) -> None:
        self.gain, self.drift = 1.0, 0j
        self._lag_s = lag_s
        n = round((delay_s + LEAD_S + SPARE_S) / TICK_S)
        self._times = np.full(n, -np.inf)
        self._commands: NDArray[np.complex128] = np.zeros(n, dtype=np.complex128)
        self._followed: NDArray[np.complex128] = np.zeros(n, dtype=np.complex128)
        self._next = 0
        self._moved, self._obeyed = GAIN_PRIOR, GAIN_PRIOR

    def remember(self, at: float, command: complex) -> None:
        """Note the command for the time `at`."""
        i, before = self._next, self._followed[self._next - 1]
        self._times[i], self._commands[i] = at, command
        self._followed[i] = before + TICK_S / self._lag_s * (command - before)
        self._next = (self._next + 1) % len(self._times)

    def learn(self, seen: Glimpse) -> None:
        """Compare past commands with the seen movement; call it once per tick."""
        newest = self._next - 1
        age_s = self._times[newest] - seen.time if math.isfinite(seen.time) else math.inf
        if not 0 <= age_s < TICK_S * (len(self._times) - 1):
            return
        expected = complex(self._followed[newest - round(age_s / TICK_S)])
        own = seen.vel - self.drift
        forget = TICK_S / GAIN_S
        self._moved += forget * (GAIN_PRIOR + abs(expected) ** 2 - self._moved)
        obeyed = (expected.conjugate() * own).real
        self._obeyed += forget * (GAIN_PRIOR + obeyed - self._obeyed)
        self.gain = min(GAINS[1], max(GAINS[0], self._obeyed / self._moved))
        self.drift += TICK_S / DRIFT_S * (seen.vel - self.gain * expected - self.drift)
        self.drift *= min(1.0, MAX_DRIFT / max(abs(self.drift), 1e-9))

    def command(self, velocity: complex) -> complex:
        """The command that gives the cursor this velocity."""
        command = (velocity - self.drift) / self.gain
        return command * min(1.0, MAX_COMMAND / max(abs(command), 1e-9))

    def position(self, at: float, seen: Glimpse) -> complex:
        """The expected position of the cursor at `at`."""
        if math.isinf(seen.time):
            return seen.pos
        lag_s = self._lag_s
        since = self._times > seen.time
        reach = 1.0 - np.exp(np.minimum((self._times[since] - at) / lag_s, 0.0))
        commanded = complex(TICK_S * (reach * self._commands[since]).sum())
        coasting = lag_s * (1.0 - math.exp(-(at - seen.time) / lag_s))
        drifted = (at - seen.time - coasting) * self.drift
        return seen.pos + coasting * seen.vel + self.gain * commanded + drifted


class _LowPass:
    """Two low-pass filters in series: plans are smooth and have an acceleration."""

    def __init__(self) -> None:
        self._first = self._second = 0j

    def step(self, want: complex) -> tuple[complex, complex]:
        """The planned velocity, and its rate of change."""
        share = 1.0 - math.exp(-TICK_S / PLAN_S)
        self._first += share * (want - self._first)
        change = share * (self._first - self._second)
        self._second += change
        return self._second, change / TICK_S
