"""An outlier loses one sample, a jump of the clock makes one cut."""

from __future__ import annotations

import numpy as np
import pytest

from streaming.sessions.jumps import ORDERED_S, SPIKES_S, Line, judge

REGULAR = 100.0 + 0.01 * np.arange(3000)


def found(stamps: np.ndarray, tolerance_s: float = ORDERED_S) -> tuple[list[int], list[int]]:
    verdict = judge(stamps, tolerance_s=tolerance_s)
    return np.flatnonzero(verdict.wild).tolist(), list(verdict.jumps)


def with_(index: int | slice, value: float) -> np.ndarray:
    stamps = REGULAR.copy()
    stamps[index] = value
    return stamps


def test_regular_stamps_are_unchanged() -> None:
    assert found(REGULAR) == ([], [])
    paused = np.append(REGULAR, REGULAR + 500.0)
    assert found(paused) == ([], [])
    sparse = np.cumsum(np.random.default_rng(0).exponential(5.0, 1000))
    assert found(sparse) == ([], [])


@pytest.mark.parametrize("value", [1e8, -1e8, 1.7e9, 101.0, 500.0, 1e-9, np.nan, np.inf, 0.0])
@pytest.mark.parametrize("index", [0, 1, 1500, 2999])
def test_a_single_outlier_loses_one_sample(value: float, index: int) -> None:
    wild, jumps = found(with_(index, value))
    if index in (0, 2999) and value not in (0.0, 1e-9) and np.isfinite(value):
        assert set(wild) <= {index}  # at an edge, it could also be a pause
    elif index in (1, 1500):
        assert wild == [index]
    assert jumps == []


def test_a_chunk_of_outliers_loses_that_chunk() -> None:
    assert found(with_(slice(1000, 1020), 1e8)) == (list(range(1000, 1020)), [])
    stamps = REGULAR.copy()
    stamps[1000:1020] -= 30.0
    assert found(stamps) == (list(range(1000, 1020)), [])


def test_outliers_in_both_directions_lose_two_samples() -> None:
    stamps = with_(1000, 1e8)
    stamps[1001] = -5.0
    assert found(stamps) == ([1000, 1001], [])


@pytest.mark.parametrize("by", [0.3, 5.0, 90.0, 1e6])
def test_a_lasting_step_back_is_one_cut(by: float) -> None:
    stamps = REGULAR.copy()
    stamps[2000:] -= by
    assert found(stamps) == ([], [2000])


def test_two_restarts_of_a_sender_are_two_cuts() -> None:
    assert found(np.concatenate([REGULAR, REGULAR, REGULAR])) == ([], [3000, 6000])


def test_spikes_sorted_by_unit_inside_chunks_are_neither_outliers_nor_jumps() -> None:
    rng = np.random.default_rng(1)
    chunks = [np.sort(rng.uniform(t, t + 0.5, 40)) for t in np.arange(0.5, 60, 0.5) for _ in "ab"]
    assert found(np.concatenate(chunks), SPIKES_S) == ([], [])


def test_a_lasting_step_back_of_sparse_events_is_one_cut() -> None:
    """The last event before the step may be an outlier, and is left out."""
    stamps = np.concatenate([10.0 * np.arange(1, 20), 10.0 * np.arange(3, 20) + 5.0])
    assert found(stamps) == ([18], [19])


@pytest.mark.parametrize("size", [1, 7, 100])
def test_the_size_of_chunks_does_not_change_the_verdict(size: int) -> None:
    stamps = REGULAR.copy()
    stamps[700] = 1e8
    stamps[1500:] -= 20.0
    stamps[2200] -= 3.0
    whole = judge(stamps, tolerance_s=ORDERED_S)
    line = Line(tolerance_s=ORDERED_S)
    for start in range(0, len(stamps), size):
        line.feed(stamps[start : start + size])
    assert line.wild == [(700, 701), (2200, 2201)]
    assert tuple(line.jumps) == whole.jumps == (1500,)
    assert whole.wild.sum() == 2
