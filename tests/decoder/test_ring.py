"""The token ring, compared with a sorted list for any order of arrival."""

from __future__ import annotations

import numpy as np
import pytest

from decoder.memory.ring import COMPACT_FLOOR, TokenRing


def rows_of(times: np.ndarray) -> np.ndarray:
    """A token row that identifies its spike."""
    return np.asarray(times, dtype=np.float32)[:, None]


def append(ring: TokenRing, times: list[float] | np.ndarray) -> None:
    times = np.asarray(times, dtype=np.float64)
    ring.append(times, np.arange(len(times)), rows_of(times))


def test_a_window_includes_its_start_but_not_its_end() -> None:
    ring = TokenRing(100, (1,))
    append(ring, [0.0, 1.0, 2.0, 3.0])
    rows, n_spikes = ring.window(1.0, 3.0)
    assert rows[:, 0].tolist() == [1.0, 2.0]
    assert n_spikes == 2


def test_spikes_out_of_order_are_merged_into_place() -> None:
    ring = TokenRing(100, (1,))
    append(ring, [5.0, 1.0, 3.0])
    append(ring, [2.0, 6.0, 4.0])
    assert ring.times.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert ring.rows[:, 0].tolist() == ring.times.tolist()


def test_above_capacity_the_oldest_spikes_are_dropped_and_counted() -> None:
    ring = TokenRing(3, (1,))
    append(ring, [1.0, 2.0])
    append(ring, [3.0, 4.0])
    assert ring.times.tolist() == [2.0, 3.0, 4.0]
    append(ring, [9.0, 8.0, 7.0, 6.0, 5.0])
    assert ring.times.tolist() == [7.0, 8.0, 9.0]
    assert ring.n_overflowed == 1 + 2 + 3


def test_nothing_is_kept_after_clear() -> None:
    ring = TokenRing(10, (1,))
    append(ring, [1.0])
    ring.clear()
    assert len(ring) == 0
    assert ring.window(0.0, 2.0)[1] == 0


def test_a_ring_without_a_reader_forgets_old_spikes() -> None:
    """As during a pause of minutes, when nothing is decoded."""
    ring = TokenRing(10_000, (1,), keep_s=0.5)
    for second in range(300):
        append(ring, second + np.linspace(0.0, 1.0, 1000, endpoint=False))
    assert ring.n_overflowed == 0
    assert ring.times[0] >= 299.0 - 0.5
    assert len(ring._times[ring._first : ring._last]) <= 1500
    assert ring._last <= 3 * 1500 + COMPACT_FLOOR, "memory use must not grow"


def test_a_ring_without_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one spike"):
        TokenRing(0, (1,))


@pytest.mark.parametrize("seed", range(5))
def test_a_ring_equals_a_sorted_list_after_thousands_of_random_appends(seed: int) -> None:
    rng = np.random.default_rng(seed)
    capacity = 2 * COMPACT_FLOOR
    ring = TokenRing(capacity, (1,))
    kept = np.empty(0)
    now = 0.0
    for _ in range(400):
        now += 0.01
        new = now - rng.exponential(0.005, size=rng.integers(0, 200))
        append(ring, new)
        kept = np.sort(np.concatenate([kept, new]))[-capacity:]
        if rng.random() < 0.5:
            start = now - rng.uniform(0.0, 0.5)
            ring.forget_before(start)
            kept = kept[kept >= start]
    np.testing.assert_array_equal(ring.times, kept)
    np.testing.assert_array_equal(ring.rows, rows_of(kept))
    rows, _ = ring.window(now - 0.1, now)
    np.testing.assert_array_equal(rows, rows_of(kept[(kept >= now - 0.1) & (kept < now)]))
    assert ring.rows.flags.c_contiguous
