"""Windows as token batches: their tokens, their place in a split, and their targets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from decoder.errors import TrainingError
from streaming.sessions.intervals import continuous_domain, with_domains
from streaming.sessions.session import Session
from training.data.simulate import simulate
from training.data.windows import Batch, OutputScale, WindowSource, unit_words, window_ends
from training.models.config import N_QUERIES, ModelConfig
from training.models.encoder import END, SPIKE, START

N_UNITS, WINDOW_S, SESSION_ROW = 20, 1.0, 5
LAYOUT = ModelConfig(sequence_length=WINDOW_S)
GAPS = ((10.0, 12.0), (40.0, 40.5), (95.0, 99.0), (110.0, 111.0))


@pytest.fixture(scope="module")
def session() -> Session:
    """A session of two minutes, with `GAPS` in the cursor's samples."""
    whole = simulate(n_units=N_UNITS, minutes=2.0, subject=1, seed=5)
    times = whole.cursor_times
    kept = ~np.any([(times > start) & (times < end) for start, end in GAPS], axis=0)
    return with_domains(
        replace(
            whole,
            cursor_times=times[kept],
            cursor_pos=whole.cursor_pos[kept],
            cursor_vel=whole.cursor_vel[kept],
            domain=continuous_domain(times[kept]),
        )
    )


def source_of(session: Session) -> WindowSource:
    words = ["NA", *reversed(unit_words(session))]  # rows differ from positions
    return WindowSource(
        [session],
        {word: row for row, word in enumerate(words)},
        {session.session_id: SESSION_ROW},
        layout=LAYOUT,
        scales={session.session_id: OutputScale.of(session)},
    )


@pytest.fixture(scope="module")
def source(session: Session) -> WindowSource:
    return source_of(session)


def drawn(source: WindowSource, seed: int = 0, **options: object) -> Batch:
    return source.draw(np.random.default_rng(seed), 16, **options)


def tokens_of(batch: Batch, row: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """The unit rows and times of one window's tokens, by token type."""
    lengths = batch.lengths.tolist()
    token = batch.token.split(lengths)[row].numpy()
    times = batch.times.split(lengths)[row].numpy()
    kinds, units = np.divmod(token, N_UNITS + 1)
    return {kind: (units[kinds == kind], times[kinds == kind]) for kind in (SPIKE, START, END)}


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_windows_never_cross_a_gap(session: Session, split: str) -> None:
    ends = window_ends(session, split, WINDOW_S, 0.03)
    assert len(ends)
    for start, end in GAPS:
        assert not ((ends > start + 0.01) & (ends - WINDOW_S < end - 0.01)).any()


def test_windows_never_cross_the_edge_of_their_split(session: Session) -> None:
    for split in ("train", "valid", "test"):
        intervals = session.intervals(split)
        ends = window_ends(session, split, WINDOW_S, 0.03)[:, None]
        inside = (ends - WINDOW_S >= intervals[:, 0] - 1e-9) & (ends <= intervals[:, 1] + 1e-9)
        assert inside.any(axis=1).all()


def test_intervals_shorter_than_a_window_are_skipped(session: Session) -> None:
    short = replace(session, test_domain=np.array([[100.0, 100.9], [101.0, 103.0]]))
    assert window_ends(short, "test", WINDOW_S, 0.1).min() >= 102.0


def test_training_windows_lie_inside_the_training_domain(session: Session) -> None:
    """With a ramp as velocity, the targets show where each window was drawn."""
    ramp = np.repeat(session.cursor_times[:, None], 2, axis=1)
    timed = replace(session, cursor_vel=ramp)
    scale = OutputScale.of(timed)
    batches = [drawn(source_of(timed), seed) for seed in range(10)]
    scaled = np.concatenate([batch.target[:, -1].numpy() for batch in batches])
    ends = (scaled * scale.std + scale.mean)[:, :1]
    edges = timed.train_domain
    inside = (ends - WINDOW_S >= edges[:, 0] - 0.02) & (ends <= edges[:, 1] + 0.02)
    assert inside.any(axis=1).all()


def test_each_kept_unit_has_one_start_and_one_end_token(source: WindowSource) -> None:
    batch = drawn(source)
    for row in range(16):
        tokens = tokens_of(batch, row)
        starts, ends = tokens[START], tokens[END]
        np.testing.assert_array_equal(starts[0], ends[0])
        assert len(set(starts[0])) == len(starts[0])
        assert (starts[1] == 0.0).all()
        assert (ends[1] == WINDOW_S).all()


def test_spikes_belong_to_kept_units_and_lie_inside_the_window(source: WindowSource) -> None:
    batch = drawn(source)
    for row in range(16):
        tokens = tokens_of(batch, row)
        units, times = tokens[SPIKE]
        assert set(units) <= set(tokens[START][0])
        assert (times >= 0.0).all()
        assert (times < WINDOW_S).all()
        assert (np.diff(times) >= 0).all()


def test_the_last_query_is_at_the_windows_end(source: WindowSource) -> None:
    batch = drawn(source)
    assert batch.output_times.shape == (16, N_QUERIES)
    assert (batch.output_times[:, -1] == WINDOW_S).all()
    assert ((batch.output_times >= 0) & (batch.output_times <= WINDOW_S)).all()


def test_windows_are_packed_one_after_another(source: WindowSource) -> None:
    batch = drawn(source)
    assert int(batch.lengths.sum()) == len(batch.token) == len(batch.times) == batch.n_tokens
    assert batch.n_tokens == sum(
        len(units) for row in range(16) for units, _ in tokens_of(batch, row).values()
    )


def test_every_window_has_the_row_of_its_session(source: WindowSource) -> None:
    assert (drawn(source).session_index == SESSION_ROW).all()


@pytest.mark.parametrize("keep", [(0.2, 0.9), (0.5, 0.5), (0.01, 0.01), (1.0, 1.0)])
def test_the_share_of_units_kept_stays_in_its_range(
    source: WindowSource, keep: tuple[float, float]
) -> None:
    least, most = (max(1, round(share * N_UNITS)) for share in keep)
    for seed in range(20):
        batch = drawn(source, seed, keep_units=keep)
        n_kept = {len(tokens_of(batch, row)[START][0]) for row in range(16)}
        assert len(n_kept) == 1
        assert least <= n_kept.pop() <= most


def test_windows_of_a_batch_keep_different_units(source: WindowSource) -> None:
    batch = drawn(source, keep_units=(0.5, 0.5))
    assert len({tuple(tokens_of(batch, row)[START][0]) for row in range(16)}) > 8


def test_a_walk_gives_each_windows_spikes_and_true_velocity(
    session: Session, source: WindowSource
) -> None:
    scale = OutputScale.of(session)
    for times, batch in source.walk(0, "test", step_s=0.5, batch_size=8):
        ends = times[:, 0]
        true = (session.velocity_at(ends) - scale.mean) / scale.std
        np.testing.assert_allclose(batch.target[:, 0].numpy(), true, atol=1e-6)
        for row, end in enumerate(ends):
            inside = session.spikes_between(end - WINDOW_S, end)
            units, since = tokens_of(batch, row)[SPIKE]
            np.testing.assert_array_equal(N_UNITS - units, session.spike_units[inside])
            np.testing.assert_allclose(since, session.spike_times[inside] - (end - WINDOW_S))


def test_a_walk_visits_every_window_once(session: Session, source: WindowSource) -> None:
    walked = [times[:, 0] for times, _ in source.walk(0, "test", step_s=0.5, batch_size=7)]
    np.testing.assert_array_equal(
        np.concatenate(walked), window_ends(session, "test", WINDOW_S, 0.5)
    )


def test_targets_are_scaled_by_the_training_velocity(session: Session) -> None:
    scale = OutputScale.of(session)
    inside = np.zeros(len(session.cursor_times), dtype=bool)
    for start, end in session.train_domain:
        inside |= (session.cursor_times >= start) & (session.cursor_times < end)
    np.testing.assert_allclose(scale.mean, session.cursor_vel[inside].mean(axis=0))
    np.testing.assert_allclose(scale.std, session.cursor_vel[inside].std(axis=0))


def test_the_same_generator_draws_the_same_batch(source: WindowSource) -> None:
    first, second = drawn(source, 3), drawn(source, 3)
    assert torch.equal(first.token, second.token)
    assert torch.equal(first.target, second.target)


def test_a_session_without_a_long_enough_interval_is_refused(session: Session) -> None:
    with pytest.raises(TrainingError, match="no training interval is longer than the window"):
        source_of(replace(session, train_domain=np.array([[0.0, 0.9], [1.0, 1.9]])))


def test_a_cursor_that_never_moves_is_refused(session: Session) -> None:
    with pytest.raises(TrainingError, match="does not move"):
        OutputScale.of(replace(session, cursor_vel=np.zeros_like(session.cursor_vel)))
