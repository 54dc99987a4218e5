"""The simulated participant: reaches, holds, drifts on command, and fires over real LSL."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pylsl
import pytest

from clients.participant.drift import Drift, Drifting
from clients.participant.neurons import Neurons, draw_population
from clients.participant.policy import TICK_S, ForwardModel, Intention
from clients.participant.screen import Glimpse, Screen, Seen
from clients.participant.simulated import Participant, ParticipantSettings
from decoder.errors import SettingsError
from streaming.columns import COLUMNS
from streaming.inlets.spikes import SpikeInlet
from tests.clients.rig.offline import (
    DRIFT,
    RADIUS_M,
    Loop,
    RidgeDecoder,
    control,
    loop,
    observe,
    r2,
    what_is_meant,
)
from tests.rig import DEADLINE_S, wait_for

# What it wants.


def test_with_a_perfect_decoder_every_target_is_reached_and_held() -> None:
    rig = loop(seed=3)
    assert control(rig, what_is_meant, 16, np.random.default_rng(0)) == 1.0
    assert 0.6 < np.mean(rig.waits) < 2.5
    assert rig.target is not None
    for _ in range(200):  # and stays there
        rig.step(what_is_meant(rig))
        assert abs(rig.pos - rig.target) < RADIUS_M


@pytest.mark.parametrize("disturbance", [lambda v: 0.6 * v, lambda v: 0.3 * v, lambda v: v + 0.02])
def test_a_weak_or_drifting_cursor_is_mastered(disturbance) -> None:
    rig = loop(seed=3)
    rng = np.random.default_rng(0)
    control(rig, lambda rig: disturbance(what_is_meant(rig)), 8, rng)  # to get used to it
    assert control(rig, lambda rig: disturbance(what_is_meant(rig)), 12, rng) >= 0.9


def test_a_new_target_is_not_reacted_to_at_once() -> None:
    rig = loop(seed=1)
    rig.block("closed")
    rig.target, shown_at = 0.08 + 0j, rig.now
    while abs(rig.intended[-1]) < 0.005:
        rig.step(0j)
    assert 0.19 < rig.now - shown_at < 0.3


def test_a_longer_visual_delay_gives_a_later_reaction() -> None:
    assert Participant(ParticipantSettings(prefix="x", delay_s=0.4), 0.0).habits.reaction_s == 0.4


def test_without_a_target_or_with_a_dark_screen_nothing_is_wanted() -> None:
    rig = loop(seed=1)
    rig.block("closed")
    rig.target = 0.08 + 0j
    for _ in range(60):
        rig.step(0j)
    assert abs(rig.intended[-1]) > 0.05
    rig.participant.step(rig.now + 2.0)  # nothing came any more
    assert abs(rig.participant.intention.vel) < 0.01


def test_in_an_observation_block_the_movement_seen_is_imagined() -> None:
    rig = loop(seed=1)
    observe(rig, 30.0, np.random.default_rng(0))
    assert r2(seen(rig)[500:], rig.meant()[500:]) > 0.85


def test_the_forward_model_makes_up_for_late_eyes() -> None:
    model = ForwardModel(lag_s=0.05, delay_s=0.15)
    for tick in range(1, 60):
        model.remember(tick * TICK_S, 0.1 + 0j)
    glimpse = Glimpse(
        time=0.0, pos=0.01j, vel=0.1 + 0j, target=None, target_since=0.0, block="closed"
    )
    assert model.position(0.3, glimpse) == pytest.approx(0.03 + 0.01j, abs=1e-3)


def test_a_short_look_shows_only_the_elapsed_part() -> None:
    screen = Screen()
    row = [[0.01, 0.0, 0.1, 0.0, math.nan, math.nan], [0.02, 0.0, 0.1, 0.0, 0.08, 0.0]]
    markers = [(1.0, "block observation"), (1.5, "trial_start 3")]
    screen.show(Seen(times=np.array([1.0, 1.1]), values=np.array(row), markers=markers))
    early = screen.glimpse(until=1.05, target_until=1.05)
    assert (early.pos, early.target, early.block) == (0.01, None, "observation")
    late = screen.glimpse(until=1.2, target_until=1.2)
    assert (late.pos, late.target, late.target_since) == (0.02, 0.08, 1.1)
    assert screen.glimpse(until=9.0, target_until=9.0).target is None


# What fires.


@pytest.fixture(scope="module")
def watched() -> Loop:
    rig = loop(seed=8)
    observe(rig, 60.0, np.random.default_rng(1))
    return rig


def seen(rig: Loop) -> np.ndarray:
    return np.stack([np.real(rig.velocities), np.imag(rig.velocities)], axis=1)


def test_rates_and_intervals_are_those_of_units(watched: Loop) -> None:
    times, units = watched.spikes()
    assert (np.diff(times) >= 0).all()
    rates_hz = np.bincount(units, minlength=96) / watched.now
    assert 5 < np.median(rates_hz) < 12
    assert rates_hz.max() < 120
    for unit in range(96):
        assert (np.diff(times[units == unit]) > 0.002).all()


def test_units_that_burst_fire_soon_again_more_than_those_that_do_not() -> None:
    rng = np.random.default_rng(0)
    population = draw_population(200, rng)
    neurons = Neurons(population, rng)
    rest = Intention(time=0.0, pos=0j, vel=0j, acc=0j, effort=0.0, control=0.0)
    times, units = [], []
    for tick in range(4000):
        offsets, hit = neurons.fire(rest)
        times.append(TICK_S * tick + offsets)
        units.append(hit)
    at, of = np.concatenate(times), np.concatenate(units)

    def soon(which: np.ndarray) -> float:
        """Share of intervals below 8 ms, of what a Poisson process of the rate would have."""
        found = expected = 0.0
        for unit in np.flatnonzero(which):
            gaps = np.diff(at[of == unit])
            found += (gaps < 0.008).sum()
            expected += len(gaps) * (1 - np.exp(-0.006 * len(gaps) / 20.0))
        return found / expected

    assert soon(population.burst > 0.5) > 1.4 * soon(population.burst < -0.5)


def test_context_effort_and_posture_change_what_a_unit_does() -> None:
    population = draw_population(96, np.random.default_rng(0))

    def rates_hz(pos: complex = 0j, effort: float = 0.0, control: float = 0.0) -> np.ndarray:
        neurons = Neurons(population, np.random.default_rng(1))
        moving = Intention(time=0.0, pos=pos, vel=0.2 + 0j, acc=0j, effort=effort, control=control)
        for _ in range(60):
            rates = neurons.rates_hz(moving)
        return np.log(rates / population.tuning.baseline_hz)

    watching = rates_hz()
    for other in (rates_hz(control=1.0), rates_hz(effort=1.0)):
        assert 0.02 < np.abs(other - watching).mean() < 0.5
        assert np.corrcoef(other, watching)[0, 1] > 0.8


def test_the_same_seed_gives_the_same_spikes_and_another_seed_others() -> None:
    def spikes(seed: int) -> tuple[np.ndarray, np.ndarray]:
        rig = loop(seed=seed)
        observe(rig, 5.0, np.random.default_rng(0))
        rig.participant.drift(DRIFT)
        control(rig, what_is_meant, 2, np.random.default_rng(0))
        return rig.spikes()

    first, again, other = spikes(1), spikes(1), spikes(2)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert len(first[0]) != len(other[0])


def test_ridge_decodes_the_participant_until_the_units_drift(watched: Loop) -> None:
    times = np.array(watched.times)
    ridge = RidgeDecoder(watched, 2.0, 46.0, seen(watched))
    later = np.flatnonzero(times > 46.0)
    assert r2(watched.meant()[later], ridge.decode(watched, times[later])) > 0.5
    rig = loop(seed=8)
    rig.participant.drift(DRIFT)
    observe(rig, 20.0, np.random.default_rng(1))
    later = np.flatnonzero(np.array(rig.times) > 3.0)
    assert r2(rig.meant()[later], ridge.decode(rig, np.array(rig.times)[later])) < 0.2


# Drift.


def test_a_drift_replaces_rotates_weakens_and_adds_noise() -> None:
    before = draw_population(96, np.random.default_rng(0))
    drift = Drift(replaced=0.5, turned_deg=60.0, rate_factor=0.8, noise_units=5)
    drifting = Drifting(before, drift, np.random.default_rng(1))
    after = drifting.at(1.0)
    stayed = ~drifting.replaced & ~drifting.noise
    assert drifting.replaced.sum() == 48
    assert (~stayed).sum() == 53
    angle = np.angle(
        (after.tuning.direction @ [1, 1j]) / (before.tuning.direction @ [1, 1j]), deg=True
    )
    np.testing.assert_allclose(angle[stayed], 60.0)
    assert np.std(angle[drifting.replaced]) > 50
    np.testing.assert_allclose(
        after.tuning.baseline_hz[stayed], 0.8 * before.tuning.baseline_hz[stayed]
    )
    assert (after.tuning.depth[drifting.noise] == 0).all()
    assert (after.burst[drifting.replaced] != before.burst[drifting.replaced]).all()
    np.testing.assert_array_equal(after.burst[stayed], before.burst[stayed])


def test_a_ramp_reaches_its_drift_gradually() -> None:
    participant = Participant(ParticipantSettings(prefix="x"), start=0.0)
    direction = participant.neurons.population.tuning.direction @ [1, 1j]
    participant.drift(Drift(turned_deg=60.0, ramp_s=10.0))
    turned = []
    for now in (1.0, 5.0, 9.0, 12.0, 20.0):
        participant.step(now)
        there = participant.neurons.population.tuning.direction @ [1, 1j]
        turned.append(np.angle(there / direction, deg=True).mean())
    np.testing.assert_allclose(turned, [6, 30, 54, 60, 60], atol=1.0)


def test_replaced_units_of_a_ramp_change_one_after_the_other() -> None:
    before = draw_population(96, np.random.default_rng(0))
    drifting = Drifting(before, Drift(replaced=1.0, ramp_s=1.0), np.random.default_rng(1))
    others = [(drifting.at(share).burst != before.burst).sum() for share in (0.0, 0.5, 1.0)]
    assert others[0] == 0
    assert 30 < others[1] < 66
    assert others[2] == 96


@pytest.mark.parametrize("wrong", [
    {"replaced": 1.5}, {"rate_factor": 0.0}, {"noise_units": 97}, {"ramp_s": -1.0},
])  # fmt: skip
def test_an_impossible_drift_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        Participant(ParticipantSettings(prefix="x"), start=0.0).drift(Drift(**wrong))


# Live.


class Live:
    """`volition participant` in its own process, and its output."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self.output = folder / "participant.log"
        with self.output.open("w") as output, (folder / "errors.log").open("w") as errors:
            self.popen = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "clients", "participant",
                 "--prefix", prefix, "--units", "96", "--seed", "1"],
                stdin=subprocess.PIPE, stdout=output, stderr=errors,
            )  # fmt: skip

    def tell(self, line: str) -> None:
        self.popen.stdin.write(line.encode() + b"\n")
        self.popen.stdin.flush()

    def lines(self) -> list[str]:
        """Whole lines so far."""
        return self.output.read_text().rpartition("\n")[0].splitlines()

    def said(self, key: str) -> object:
        def look() -> dict | None:
            lines = [json.loads(line) for line in self.lines()]
            return next((line for line in lines if key in line), None)

        try:
            return wait_for(key, look)[key]
        except AssertionError:
            raise AssertionError(f"{key} was not said:\n{self.output.read_text()}") from None


@contextmanager
def live(folder: Path, prefix: str) -> Iterator[Live]:
    process = Live(folder, prefix)
    try:
        yield process
    finally:
        process.popen.kill()
        process.popen.wait()
        process.popen.stdin.close()


def kinematics(prefix: str) -> pylsl.StreamOutlet:
    name = f"{prefix}-kinematics"
    info = pylsl.StreamInfo(name, "Kinematics", 6, 100.0, pylsl.cf_double64, name)
    info.set_channel_labels(list(COLUMNS))
    info.set_channel_units(["m", "m", "m/s", "m/s", "m", "m"])
    return pylsl.StreamOutlet(info)


def test_a_live_participant_sees_the_task_and_sends_spikes_in_chunks(tmp_path: Path) -> None:
    prefix = f"rig-{uuid.uuid4().hex[:8]}"
    outlet = kinematics(prefix)
    markers = pylsl.StreamOutlet(
        pylsl.StreamInfo(f"{prefix}-markers", "Markers", 1, 0.0, pylsl.cf_string, prefix)
    )
    with live(tmp_path, prefix) as process:
        ready = process.said("ready")
        assert ready["stream"] == f"{prefix}-spikes"
        inlet = SpikeInlet(pylsl.resolve_byprop("name", ready["stream"], timeout=DEADLINE_S)[0])
        assert (inlet.kind, inlet.source_id) == ("Spikes", ready["source_id"])
        assert inlet.unit_ids == [f"elec{unit}/unit0" for unit in range(96)]
        wait_for("both seen", lambda: process.output.read_text().count("sees") == 2)
        markers.push_sample(["block closed"])

        def listen(target: tuple[float, float], seconds: float) -> tuple[np.ndarray, np.ndarray]:
            """Show a motionless cursor and record the spikes of `seconds` seconds."""
            heard, began = [], pylsl.local_clock()
            while not heard or heard[-1][0][-1] < began + seconds:
                now = pylsl.local_clock()
                assert now < began + seconds + DEADLINE_S
                outlet.push_sample([0.0, 0.0, 0.0, 0.0, *target])
                times, units = inlet.drain(now)
                if len(times):
                    assert times.max() < pylsl.local_clock()
                    heard.append((times, units))
                wait_for("10 ms", lambda due=now + 0.01: pylsl.local_clock() > due)
            return np.concatenate([t for t, _ in heard]), np.concatenate([u for _, u in heard])

        times, _ = listen((math.nan, math.nan), 2.0)
        assert 96 * 4 < len(times) / (times[-1] - times[0]) < 96 * 30
        right = np.bincount(listen((0.08, 0.0), 2.5)[1], minlength=96)
        left = np.bincount(listen((-0.08, 0.0), 2.5)[1], minlength=96)
        tuning = draw_population(96, np.random.default_rng([1, 9, 96, 1])).tuning
        preferred = tuning.depth * tuning.direction[:, 0]
        change = np.sqrt(right) - np.sqrt(left)
        assert np.corrcoef(preferred, change)[0, 1] > 0.4
        process.tell('{"drift": {"replaced": 0.5, "noise_units": 3}}')
        assert process.said("drifted")["replaced"] == 0.5
        process.tell('{"drift": {"replaced": 7}}')
        assert "expected a share" in process.said("problem")["detail"]
        process.popen.stdin.close()
        assert process.popen.wait(DEADLINE_S) == 0
        assert process.said("done") == prefix


def test_a_live_participant_waits_for_a_task_and_for_the_next_one(tmp_path: Path) -> None:
    prefix = f"rig-{uuid.uuid4().hex[:8]}"
    with live(tmp_path, prefix) as process:
        process.said("ready")
        outlet = kinematics(prefix)
        assert process.said("sees") == f"{prefix}-kinematics"
        del outlet
        assert process.said("lost") == f"{prefix}-kinematics"
        again = kinematics(prefix)
        wait_for("seen again", lambda: process.output.read_text().count("sees") == 2)
        del again
        os.kill(process.popen.pid, signal.SIGTERM)
        assert process.popen.wait(DEADLINE_S) == 0
