"""What moves the cursor, and for how long each frame counts."""

from __future__ import annotations

import math

import msgspec
import pytest

from clients.task.cursor import Cursor, FrameClock, Reach, mixed, toward
from clients.task.workspace import Block
from tests.clients.test_subscriber import frame

BLOCK = Block()


def changed(seq: int, at: float, **fields: object):
    return msgspec.structs.replace(frame(seq, published=at), **fields)


def test_a_frame_counts_for_the_time_since_the_frame_before() -> None:
    clock = FrameClock(0.1)
    frames = [changed(i, at) for i, at in enumerate((5.0, 5.01, 5.03, 5.12))]
    assert [clock.seconds(f, 0.001) for f in frames] == pytest.approx([0.0, 0.01, 0.02, 0.09])


def test_invalid_frames_count_for_nothing() -> None:
    clock = FrameClock(0.1)
    clock.seconds(changed(0, 5.0), 0.0)
    assert clock.seconds(changed(1, 5.01, valid=False, velocity=(9.0, 9.0)), 0.0) == 0.0
    assert clock.seconds(changed(2, 5.02), 0.0) == pytest.approx(0.01)
    assert clock.seconds(changed(3, 5.03, velocity=(math.nan, 0.0)), 0.0) == 0.0


def test_old_frames_and_the_first_after_a_silence_count_for_nothing() -> None:
    clock = FrameClock(0.1)
    clock.seconds(changed(0, 5.0), 0.0)
    assert clock.seconds(changed(1, 5.01), 0.11) == 0.0
    assert clock.seconds(changed(2, 5.30), 0.0) == 0.0
    assert clock.seconds(changed(3, 5.31), 0.0) == pytest.approx(0.01)


def test_another_daemon_resets_the_clock_and_time_never_runs_backward() -> None:
    clock = FrameClock(0.1)
    clock.seconds(changed(0, 5.0), 0.0)
    assert clock.seconds(changed(0, 5.01, started=2.0), 0.0) == 0.0
    assert clock.seconds(changed(1, 5.0, started=2.0), 0.0) == 0.0


def test_the_cursor_integrates_velocity_and_stops_at_the_edge() -> None:
    cursor = Cursor()
    cursor.move(BLOCK, (0.2, -0.1), 0.01, 1.0)
    assert cursor.position == pytest.approx((0.002, -0.001))
    assert cursor.velocity == (0.2, -0.1)
    cursor.move(BLOCK, (5.0, 0.1), 0.1, 1.1)
    assert cursor.position == pytest.approx((BLOCK.half_side_m, 0.009))
    assert cursor.velocity == (0.0, 0.1)


def test_the_velocity_rests_when_frames_stop() -> None:
    cursor = Cursor()
    cursor.move(BLOCK, (0.2, 0.0), 0.05, 1.0)
    cursor.rest_when_due(1.1)
    assert cursor.velocity == (0.2, 0.0)
    cursor.rest_when_due(1.101)
    assert cursor.velocity == (0.0, 0.0)
    assert cursor.position == pytest.approx((0.01, 0.0))


def test_a_minimum_jerk_reach_is_smooth_and_fastest_in_the_middle() -> None:
    reach = Reach(start=(0.0, 0.0), goal=(0.08, 0.0), begins=1.0, duration_s=0.6)
    assert reach.at(0.5) == ((0.0, 0.0), (0.0, 0.0))
    assert reach.at(1.3)[0] == pytest.approx((0.04, 0.0))
    assert reach.at(1.3)[1] == pytest.approx((1.875 * 0.08 / 0.6, 0.0))
    assert reach.at(9.0) == ((0.08, 0.0), (0.0, 0.0))
    for now in (1.1, 1.25, 1.5):
        (after, _), (before, _) = reach.at(now + 1e-6)[0], reach.at(now - 1e-6)[0]
        assert (after - before) / 2e-6 == pytest.approx(reach.at(now)[1][0], rel=1e-4)


def test_help_points_at_the_target_and_slows_down_near_it() -> None:
    assert toward((0.0, 0.0), (0.0, 0.08)) == pytest.approx((0.0, 0.15))
    assert toward((0.0, 0.07), (0.0, 0.08)) == pytest.approx((0.0, 0.04))
    assert toward((0.0, 0.08), (0.0, 0.08)) == (0.0, 0.0)
    assert mixed((1.0, 0.0), (0.0, 1.0), 0.25) == (0.75, 0.25)
