"""Output filters: neutral by default, and always within their limits."""

from __future__ import annotations

import math

import numpy as np
import pytest

from decoder.errors import SettingsError
from decoder.filters import Filters, OutputFilters

TICK_S = 0.01


def at_work(**settings: float) -> OutputFilters:
    return OutputFilters(Filters(**settings), tick_s=TICK_S)


def test_the_default_filters_change_nothing() -> None:
    assert at_work()((0.123, -4.5)) == (0.123, -4.5)


def test_the_speed_limit_holds_for_any_gain_and_keeps_the_direction() -> None:
    x, y = at_work(gain=50.0, speed_limit=0.5)((0.3, 0.4))
    assert math.hypot(x, y) == pytest.approx(0.5)
    assert y / x == pytest.approx(4 / 3)


def test_the_acceleration_limit_holds_for_every_tick() -> None:
    filters = at_work(acceleration_limit=2.0, speed_limit=0.4)
    rng = np.random.default_rng(0)
    left = np.array([(0.0, 0.0), *(filters(tuple(v)) for v in rng.normal(0, 1, (500, 2)))])
    assert np.linalg.norm(np.diff(left, axis=0), axis=1).max() <= 2.0 * TICK_S + 1e-12
    assert np.linalg.norm(left, axis=1).max() <= 0.4 + 1e-12
    filters.interrupt()  # restarts from rest
    assert math.hypot(*filters((9.0, 0.0))) == pytest.approx(2.0 * TICK_S)


def test_speeds_below_the_dead_zone_are_zero() -> None:
    filters = at_work(dead_zone=0.01)
    assert filters((0.005, 0.005)) == (0.0, 0.0)
    assert filters((0.02, 0.0)) == (0.02, 0.0)


def test_smoothing_has_its_time_constant_and_restarts_after_an_interruption() -> None:
    filters = at_work(smoothing_s=0.1)
    filters((0.0, 0.0))
    for _ in range(10):  # one time constant
        x, _ = filters((1.0, 0.0))
    assert x == pytest.approx(1 - math.exp(-1), abs=1e-9)
    filters.interrupt()
    assert filters((0.5, 0.5)) == (0.5, 0.5)


def test_a_constant_bias_is_subtracted() -> None:
    rng = np.random.default_rng(0)
    filters = at_work(bias_s=10.0)
    seen = []
    for _ in range(200):  # reaches of a second, 200 s
        angle, speeds = rng.uniform(0, 2 * np.pi), 0.2 * np.sin(np.linspace(0, np.pi, 100))
        for speed in speeds:
            velocity = (speed * math.cos(angle) + 0.05, speed * math.sin(angle) - 0.02)
            seen.append(filters(velocity))
    assert np.mean(seen[-10_000:], axis=0) == pytest.approx([0.0, 0.0], abs=0.02)
    assert filters.bias == pytest.approx((0.05, -0.02), abs=0.02)


def test_a_filter_that_was_off_starts_without_state() -> None:
    filters = at_work(smoothing_s=1.0, bias_s=1.0)
    filters((1.0, 0.0))
    filters.bias = (0.2, 0.0)
    filters.settings = Filters()
    assert filters((0.5, 0.0)) == (0.5, 0.0)
    filters.settings = Filters(smoothing_s=1.0, bias_s=1.0)
    assert filters((0.1, 0.0)) == (0.1, 0.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"gain": -1.0},
        {"gain": math.nan},
        {"smoothing_s": 1e3},
        {"bias_s": 0.0},
        {"acceleration_limit": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        Filters(**wrong)
