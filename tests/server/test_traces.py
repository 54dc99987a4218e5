"""What of a calibration's held-out velocities is sent to be plotted."""

from __future__ import annotations

import numpy as np
import pytest

from decoder.traces import Traces
from server.calibration.traces import MOST_POINTS, HeldOutTraces, to_plot

TICK_S = 0.05


def traces(*stretches: tuple[float, int], active: bool = True) -> Traces:
    """Traces of stretches: start in s, number of ticks. The velocity tells the time."""
    times = np.concatenate([start + TICK_S * np.arange(n) for start, n in stretches])
    told = np.column_stack([times, -times])
    return Traces(
        times=times, true=told, candidate=told + 1, active=told + 2 if active else None,
        tick_s=TICK_S,
    )  # fmt: skip


def check(plot: HeldOutTraces) -> None:
    """Each point has the velocities of its time, or none of them has one."""
    assert 0 < len(plot.seconds) <= MOST_POINTS
    assert plot.seconds == sorted(plot.seconds)
    for plus, velocity in enumerate((plot.true, plot.candidate, plot.active)):
        assert velocity is not None
        assert len(velocity.x) == len(velocity.y) == len(plot.seconds)
        for second, x, y in zip(plot.seconds, velocity.x, velocity.y, strict=True):
            assert (x is None) == (y is None)
            if x is not None:
                assert (x, y) == pytest.approx((second + plus, -second + plus), abs=1e-3)
    assert plot.true is not None
    assert plot.true.x[0] is not None
    assert plot.true.x[-1] is not None


def test_a_line_breaks_between_two_stretches_and_nowhere_else() -> None:
    plot = to_plot(traces((1.0, 3), (2.0, 2)))
    check(plot)
    assert plot.seconds == [1.0, 1.05, 1.1, 1.55, 2.0, 2.05]
    assert plot.true is not None
    assert plot.true.x == [1.0, 1.05, 1.1, None, 2.0, 2.05]
    assert plot.held_out


def test_what_is_missing_is_null() -> None:
    plot = to_plot(traces((0.0, 10), active=False))
    assert plot.active is None
    broken = traces((0.0, 3))
    broken.candidate[1, 0] = np.nan
    shown = to_plot(broken).candidate
    assert shown is not None
    assert shown.x == [1.0, None, 1.1]


@pytest.mark.parametrize(
    "stretches",
    [
        [(0.0, MOST_POINTS)],
        [(0.0, MOST_POINTS + 1)],
        [(0.0, 100_000)],
        [(10.0 * i, 150) for i in range(30)],
        [(10.0 * i, 1) for i in range(999)],
        [(10.0 * i, 60) for i in range(1000)],
        [(10.0 * i, 60) for i in range(2500)],
        [(0.0, 1), (1.0, 9000), (1000.0, 1)],
    ],
)
def test_long_data_are_thinned_out_but_cover_all_of_the_time(
    stretches: list[tuple[float, int]],
) -> None:
    whole = traces(*stretches)
    plot = to_plot(whole)
    check(plot)
    last_s = whole.times[-1]
    assert plot.seconds[0] == whole.times[0]
    assert plot.seconds[-1] >= 0.99 * last_s
    if len(whole.times) + len(stretches) - 1 > MOST_POINTS:
        assert len(plot.seconds) > MOST_POINTS / 3, "not thinner than needed"
    else:
        assert len(plot.seconds) == len(whole.times) + len(stretches) - 1


def test_no_instant_gives_an_empty_plot() -> None:
    empty = Traces(
        times=np.empty(0), true=None, candidate=np.empty((0, 2)), active=None, tick_s=TICK_S
    )
    assert to_plot(empty).seconds == []
