"""One test for every kind of time stamp: admitted or left out, and its counter."""

from __future__ import annotations

import numpy as np

from decoder.runtimes.base import FUTURE_S
from streaming.inlets.admission import Admission
from streaming.units import UNKNOWN

NOW = 100.0


def admit(
    admission: Admission, times: list[float], units: list[int] | None = None, now: float = NOW
) -> list[float]:
    index = np.array(units if units is not None else range(len(times)), dtype=np.int64)
    taken, _ = admission.admit(np.array(times), index, window_end=now, now=now)
    return list(taken.tolist())


def counted(admission: Admission) -> dict[str, int]:
    return {name: n for name, n in admission.counters.as_dict().items() if n}


def test_spikes_in_the_window_are_taken() -> None:
    admission = Admission(1.0)
    assert admit(admission, [99.5, 99.9]) == [99.5, 99.9]
    assert counted(admission) == {"taken": 2}


def test_a_late_spike_in_the_window_is_taken_and_counted() -> None:
    admission = Admission(1.0)
    admit(admission, [99.95])
    assert admit(admission, [99.96], now=NOW + 0.01) == [99.96]
    assert counted(admission) == {"taken": 2, "late": 1}


def test_out_of_order_spikes_are_taken_and_counted() -> None:
    admission = Admission(1.0)
    assert admit(admission, [99.90, 99.85, 99.95]) == [99.90, 99.85, 99.95]
    assert counted(admission) == {"taken": 3, "out_of_order": 1}


def test_duplicates_are_taken_and_counted() -> None:
    admission = Admission(1.0)
    assert admit(admission, [99.9, 99.9, 99.9], [1, 1, 2]) == [99.9, 99.9, 99.9]
    assert counted(admission) == {"taken": 3, "duplicate": 1}


def test_a_spike_older_than_the_window_is_left_out() -> None:
    admission = Admission(1.0)
    assert admit(admission, [98.9, 99.9]) == [99.9]
    assert counted(admission) == {"taken": 1, "too_old": 1}


def test_a_spike_from_the_future_is_left_out() -> None:
    admission = Admission(1.0)
    assert admit(admission, [NOW + FUTURE_S + 0.01, 99.9]) == [99.9]
    assert counted(admission) == {"taken": 1, "future": 1}


def test_a_spike_slightly_in_the_future_is_kept_but_does_not_hide_silence() -> None:
    admission = Admission(1.0)
    assert admit(admission, [NOW + 0.05]) == [NOW + 0.05]
    assert admission.newest == NOW


def test_zero_and_missing_stamps_are_left_out() -> None:
    admission = Admission(1.0)
    assert admit(admission, [0.0, np.nan, np.inf, 99.9]) == [99.9]
    assert counted(admission) == {"taken": 1, "no_time": 3}


def test_a_clock_that_steps_back_is_counted_and_its_old_spikes_left_out() -> None:
    admission = Admission(1.0)
    assert admit(admission, [99.8, 99.9, 42.0, 42.1]) == [99.8, 99.9]
    assert counted(admission) == {"taken": 2, "too_old": 2, "backward_steps": 1}


def test_a_small_step_back_inside_the_window_is_taken() -> None:
    admission = Admission(1.0)
    assert admit(admission, [99.9, 99.5]) == [99.9, 99.5]
    assert counted(admission) == {"taken": 2, "out_of_order": 1, "backward_steps": 1}


def test_spikes_of_unknown_units_are_left_out_and_leave_the_stream_stale() -> None:
    admission = Admission(1.0)
    assert admit(admission, [99.9, 99.95], [UNKNOWN, UNKNOWN]) == []
    assert counted(admission) == {"unknown_unit": 2}
    assert admission.newest is None


def test_the_newest_spike_of_a_lost_stream_does_not_count_for_the_next() -> None:
    """Earlier stamps of the next sender are not out of order either."""
    admission = Admission(1.0)
    admit(admission, [99.9])
    admission.forget()
    assert admission.newest is None
    assert admit(admission, [99.2, 99.3]) == [99.2, 99.3]
    assert admission.newest == 99.3
    assert "out_of_order" not in counted(admission)
    assert "backward_steps" not in counted(admission)
