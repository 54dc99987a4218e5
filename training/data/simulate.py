"""Simulate sessions of a motor cortex: tuned units, and the reaches they encode.

Movement is a sequence of minimum-jerk reaches (Flash & Hogan 1985) with holds, alternating with
steering in the `steering` task (`draw_movement`). Each unit fires as a Poisson process with a
refractory period. Its rate leads the movement and follows cosine tuning to velocity (Georgopoulos
et al. 1982) and speed (Moran & Schwartz 1999), with position and acceleration terms:

    rate = baseline * exp(depth * (d·v + s|v| + p·x + a·acc + drift)),   v, x, acc scaled to ~1

Subjects differ in their units and in how they move, but all tuning is drawn from one family, so a
model can transfer between subjects. The same arguments give the same session. Needs numpy only.

Correlated noise between units, waveforms and sorting errors are not simulated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from decoder.arrays import Floats, Ints
from streaming.sessions.intervals import chronological_domains
from streaming.sessions.session import Session, Trials, sorted_spikes

Task = Literal["center_out", "random_target", "steering"]
TASKS: tuple[Task, ...] = get_args(Task)

STEP_S = 0.001  # rates are constant within a step
KINEMATICS_RATE_HZ = 100.0
MEDIAN_RATE_HZ = 8.0
REFRACTORY_S = 0.002
SPEED_SCALE = 0.2  # m/s; about the typical peak speed of an 8 cm reach in 0.7 s
POSITION_SCALE = 0.08  # m
ACCELERATION_SCALE = 1.5  # m/s^2
WORKSPACE_M = 0.065  # targets stay within this distance of the centre, on each axis
# Parameters of a stretch of steering, each drawn log-uniformly.
STEERED_S = (4.0, 16.0)  # duration
STEERED_NOISE_M_S = (0.015, 0.15)  # velocity noise, root mean square per axis
STEERED_TURN_S = (0.06, 0.25)  # time constant of velocity
STEERED_PULL_HZ = (1.5, 5.0)  # velocity toward the target, per distance to it
STEERED_STAY_S = (0.7, 2.5)  # before the target changes
STEERED_GAIN = (0.35, 1.0)  # ratio of the cursor's velocity to the intended velocity
STEERED_WITHIN_M = 0.12  # limit of the cursor on each axis; it slows down towards it


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How the rate of each unit follows the movement; arrays are (n_units,) or (n_units, 2)."""

    baseline_hz: Floats
    depth: Floats
    direction: Floats
    speed_gain: Floats
    position_gain: Floats
    acceleration_gain: Floats
    latency_s: Floats
    slow_gain: Floats


def draw_tuning(n_units: int, rng: np.random.Generator) -> Tuning:
    """Draw a population from the tuning family that all subjects share."""
    angle = rng.uniform(0, 2 * np.pi, n_units)
    tuned = rng.random(n_units) < 0.75  # on a typical array, a quarter of the units carry little
    depth = np.where(tuned, rng.gamma(5.0, 0.078, n_units), 0.03)
    return Tuning(
        baseline_hz=MEDIAN_RATE_HZ * np.exp(rng.normal(0.0, 0.8, n_units)),
        depth=depth,
        direction=np.stack([np.cos(angle), np.sin(angle)], axis=1),
        speed_gain=rng.normal(0.45, 0.35, n_units),
        position_gain=rng.normal(0.0, 0.45, (n_units, 2)),
        acceleration_gain=rng.normal(0.0, 0.2, (n_units, 2)),
        latency_s=rng.uniform(0.05, 0.15, n_units),
        slow_gain=np.abs(rng.normal(0.0, 0.4, n_units)),
    )


@dataclass(frozen=True, kw_only=True)
class Movement:
    """A cursor's path and the intended velocity, on a regular grid of `STEP_S`.

    Arrays are (n_steps, 2), in m, m/s and m/s^2. The intended velocity is the path's own, except
    while a cursor of low gain is steered: there it is higher (`STEERED_GAIN`).
    """

    pos: Floats
    vel: Floats
    acc: Floats
    trials: Trials


def draw_movement(n_steps: int, task: Task, rng: np.random.Generator, pace: float) -> Movement:
    """Draw minimum-jerk reaches with holds; `pace` scales this subject's reach durations.

    The `steering` task alternates two reaches to random targets with a stretch of steering at any
    speed, as by someone correcting a decoder. A model trained only on reaches and rests decodes
    nothing else, and takes slow corrections for rest.
    """
    pos = np.zeros((n_steps, 2))
    effort = np.ones((n_steps, 1))  # ratio of the intended velocity to the path's
    here = np.zeros(2)
    starts: list[float] = []
    ends: list[float] = []
    targets: list[Floats] = []
    step = 0
    outward = True
    while step < n_steps:
        if task == "steering" and len(targets) % 2 == 0:
            stretch = _steered(here, rng)
            room = max(0, min(len(stretch), n_steps - step))
            pos[step : step + room] = stretch[:room]
            effort[step : step + room] = 1.0 / _log_uniform(STEERED_GAIN, rng)
            step, here = step + len(stretch), stretch[-1]
        hold = int(rng.uniform(0.2, 0.6) / STEP_S)
        pos[step : step + hold] = here
        begin = step
        step += hold
        target = _next_target(task, outward, rng)
        outward = not outward
        distance = float(np.linalg.norm(target - here))
        reach_s = pace * (0.35 + 3.0 * distance) * rng.uniform(0.8, 1.25)
        n_reach = int(reach_s / STEP_S)
        phase = np.arange(1, n_reach + 1) / n_reach
        blend = phase**3 * (10 - 15 * phase + 6 * phase**2)
        bend = rng.normal(0, 0.06) * np.sin(np.pi * blend) * distance
        normal = np.array([-(target - here)[1], (target - here)[0]]) / max(distance, 1e-9)
        path = here + blend[:, None] * (target - here) + bend[:, None] * normal
        room = max(0, min(n_reach, n_steps - step))
        pos[step : step + room] = path[:room]
        step += n_reach
        here = target
        if step <= n_steps:
            starts.append(begin * STEP_S)
            ends.append(step * STEP_S)
            targets.append(target)
    vel = np.asarray(effort * np.gradient(pos, STEP_S, axis=0))
    acc = np.asarray(np.gradient(vel, STEP_S, axis=0))
    intervals = np.array([starts, ends]).T.reshape(-1, 2)
    trials = Trials(intervals=intervals, target_pos=np.array(targets).reshape(-1, 2))
    return Movement(pos=pos, vel=vel, acc=acc, trials=trials)


def _steered(here: Floats, rng: np.random.Generator) -> Floats:
    """Positions (n, 2) of one stretch of steering.

    The velocity is a pull toward successive targets plus noise, low-pass filtered twice. It begins
    and ends at rest, and the position never reaches `STEERED_WITHIN_M`.
    """
    seconds, astray_m_s, turn_s, pull_hz = (
        _log_uniform(between, rng)
        for between in (STEERED_S, STEERED_NOISE_M_S, STEERED_TURN_S, STEERED_PULL_HZ)
    )
    n = int(seconds / STEP_S)
    shortest, longest = STEERED_STAY_S
    stays = shortest * (longest / shortest) ** rng.random(int(seconds / shortest) + 1)
    targets = rng.uniform(-WORKSPACE_M, WORKSPACE_M, (len(stays), 2))
    place = np.repeat(targets, (stays / STEP_S).astype(int), axis=0)
    keep = np.exp(-STEP_S / turn_s)
    noise = 2 * astray_m_s * np.sqrt(turn_s / STEP_S) * rng.standard_normal((n, 2))
    rests = np.minimum(1.0, np.minimum(np.arange(n), np.arange(n)[::-1]) * STEP_S / 0.2)
    free, first, vel = STEERED_WITHIN_M * np.arctanh(here / STEERED_WITHIN_M), *np.zeros((2, 2))
    path = np.empty((n, 2))
    for i in range(n):
        first += (1 - keep) * (noise[i] + pull_hz * (place[i] - free) - first)
        vel += (1 - keep) * (first - vel)
        free += STEP_S * rests[i] * vel
        path[i] = free
    return STEERED_WITHIN_M * np.tanh(path / STEERED_WITHIN_M)


def _log_uniform(between: tuple[float, float], rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(*np.log(between))))


def _next_target(task: Task, outward: bool, rng: np.random.Generator) -> Floats:
    if task != "center_out":
        return rng.uniform(-WORKSPACE_M, WORKSPACE_M, 2)
    if not outward:
        return np.zeros(2)
    angle = rng.integers(8) * np.pi / 4
    return np.asarray(0.08 * np.array([np.cos(angle), np.sin(angle)]))


def draw_spikes(
    movement: Movement, tuning: Tuning, rng: np.random.Generator
) -> tuple[Floats, Ints]:
    """Draw spike times (n_spikes,) in seconds, ascending, and the unit index of each spike."""
    n_steps = len(movement.pos)
    vel = movement.vel / SPEED_SCALE
    speed = np.linalg.norm(vel, axis=1)
    pos = movement.pos / POSITION_SCALE
    acc = movement.acc / ACCELERATION_SCALE
    slow = _slow_drift(n_steps, rng)
    times, units = [], []
    for unit in range(len(tuning.depth)):
        lead = int(tuning.latency_s[unit] / STEP_S)
        drive = (
            _along(vel, tuning.direction[unit])
            + tuning.speed_gain[unit] * speed
            + _along(pos, tuning.position_gain[unit])
            + _along(acc, tuning.acceleration_gain[unit])
        )
        drive = tuning.depth[unit] * np.concatenate([drive[lead:], np.repeat(drive[-1], lead)])
        drive += tuning.slow_gain[unit] * slow
        rate_hz = np.minimum(tuning.baseline_hz[unit] * np.exp(drive), 200.0)
        unit_times = _poisson_times(rate_hz, rng)
        times.append(unit_times)
        units.append(np.full(len(unit_times), unit, dtype=np.int64))
    spike_times, spike_units, _ = sorted_spikes(np.concatenate(times), np.concatenate(units))
    return spike_times, spike_units


def _along(xy: Floats, gain: Floats) -> Floats:
    """Weighted sum of two columns without BLAS.

    BLAS threads cost more than the sum, and BLAS rounding differs between machines.
    """
    return np.asarray(xy[:, 0] * gain[0] + xy[:, 1] * gain[1])


def _slow_drift(n_steps: int, rng: np.random.Generator) -> Floats:
    """A common gain that drifts over seconds (arousal): unit variance, independent of movement."""
    n_knots = max(4, int(n_steps * STEP_S / 4.0) + 2)
    knots = rng.normal(0.0, 1.0, n_knots)
    return np.interp(np.linspace(0, n_knots - 1, n_steps), np.arange(n_knots), knots)


def _poisson_times(rate_hz: Floats, rng: np.random.Generator) -> Floats:
    """Times of an inhomogeneous Poisson process (time change), thinned by the refractory period."""
    expected = np.concatenate(([0.0], np.cumsum(rate_hz) * STEP_S))
    n_events = rng.poisson(expected[-1])
    marks = np.sort(rng.uniform(0.0, expected[-1], n_events))
    times = np.interp(marks, expected, np.arange(len(expected)) * STEP_S)
    keep = np.diff(times, prepend=-np.inf) > REFRACTORY_S
    return np.asarray(times[keep])


def simulate(
    *,
    n_units: int = 96,
    minutes: float = 10.0,
    subject: int = 0,
    seed: int = 0,
    task: Task | None = None,
) -> Session:
    """Simulate one session. The same arguments give the same session, to the last spike.

    `subject` fixes how the subject moves. `seed` fixes the day: its units and reaches, and the task
    unless `task` is given. `cursor_vel` of the session is the intended velocity (`Movement`).
    """
    habits = np.random.default_rng([104_729, subject])
    pace = float(habits.uniform(0.85, 1.1))
    rng = np.random.default_rng([seed, subject, n_units])
    chosen: Task = task or ("center_out" if rng.random() < 0.5 else "random_target")
    n_steps = round(minutes * 60.0 / STEP_S)
    movement = draw_movement(n_steps, chosen, rng, pace)
    spike_times, spike_units = draw_spikes(movement, draw_tuning(n_units, rng), rng)

    stride = round(1.0 / (KINEMATICS_RATE_HZ * STEP_S))
    domain = np.array([[0.0, n_steps * STEP_S]])
    train, valid, test = chronological_domains(domain, movement.trials)
    name = f"sim_s{subject:02d}_{chosen}_{seed:04d}"
    return Session(
        session_id=name,
        subject_id=f"sim{subject:02d}",
        unit_ids=tuple(f"elec{unit}/unit0" for unit in range(n_units)),
        spike_times=spike_times,
        spike_units=spike_units,
        cursor_times=np.asarray(np.arange(0, n_steps, stride) * STEP_S, dtype=np.float64),
        cursor_pos=movement.pos[::stride],
        cursor_vel=movement.vel[::stride],
        domain=domain,
        train_domain=train,
        valid_domain=valid,
        test_domain=test,
        trials=movement.trials,
        source="simulated by volition",
        notes=(f"simulated: {n_units} units, {chosen}, seed {seed}",),
    )
