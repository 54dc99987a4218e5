"""Domains of a session: cuts between trials, gaps, windows inside them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from decoder.errors import SessionError
from streaming.sessions.intervals import continuous_domain, duration_s, with_domains
from streaming.sessions.session import Session, Trials
from training.data.simulate import simulate
from training.data.windows import window_ends


@pytest.fixture(scope="module")
def session() -> Session:
    return simulate(n_units=12, minutes=2.0, subject=1, seed=5)


def with_gaps(session: Session, *gaps: tuple[float, float]) -> Session:
    """`session` without samples during `gaps`, with new domains."""
    times = session.cursor_times
    kept = ~np.any([(times > start) & (times < end) for start, end in gaps], axis=0)
    return with_domains(
        replace(
            session,
            cursor_times=times[kept],
            cursor_pos=session.cursor_pos[kept],
            cursor_vel=session.cursor_vel[kept],
            domain=continuous_domain(times[kept]),
        )
    )


def lie_inside(ends: np.ndarray, window_s: float, intervals: np.ndarray) -> bool:
    """Whether each window with an end in `ends` is inside one of `intervals`."""
    starts_in = ends[:, None] - window_s >= intervals[:, 0] - 1e-9
    ends_in = ends[:, None] <= intervals[:, 1] + 1e-9
    return bool((starts_in & ends_in).any(axis=1).all())


def test_domains_are_70_10_20_in_time_order(session: Session) -> None:
    total = duration_s(session.domain)
    shares = [duration_s(session.intervals(split)) / total for split in ("train", "valid", "test")]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.02)
    assert session.train_domain[-1, 1] <= session.valid_domain[0, 0]
    assert session.valid_domain[-1, 1] <= session.test_domain[0, 0]


def test_cuts_do_not_split_a_trial(session: Session) -> None:
    for cut in (session.valid_domain[0, 0], session.test_domain[0, 0]):
        start, end = session.trials.intervals.T
        assert not ((start < cut) & (cut < end)).any()


def test_cuts_do_not_split_overlapping_trials(session: Session) -> None:
    starts = np.arange(0.0, 110.0, 1.0)
    overlapping = np.stack([starts, starts + np.where(starts % 10 < 9, 1.5, 0.5)], axis=1)
    cut = with_domains(replace(session, trials=Trials(intervals=overlapping)))
    for time in (cut.valid_domain[0, 0], cut.test_domain[0, 0]):
        assert not ((overlapping[:, 0] < time) & (time < overlapping[:, 1])).any()


def test_a_cut_between_trials_does_not_move(session: Session) -> None:
    few = Trials(intervals=np.array([[1.0, 4.0], [9.0, 12.0]]))
    cut = with_domains(replace(session, trials=few))
    assert duration_s(cut.valid_domain) == pytest.approx(0.1 * duration_s(session.domain))


def test_a_trial_as_long_as_the_session_does_not_prevent_domains(session: Session) -> None:
    cut = with_domains(replace(session, trials=Trials(intervals=session.domain)))
    assert duration_s(cut.train_domain) == pytest.approx(0.7 * duration_s(session.domain))


def test_windows_never_span_a_gap_or_an_edge(session: Session) -> None:
    gaps = ((20.0, 22.0), (61.0, 61.5), (100.0, 104.0))
    gappy = with_gaps(session, *gaps)
    for split in ("train", "valid", "test"):
        ends = window_ends(gappy, split, 1.0, 0.037)
        assert len(ends)
        assert lie_inside(ends, 1.0, gappy.intervals(split))
        for start, end in gaps:
            assert not ((ends > start + 0.01) & (ends - 1.0 < end - 0.01)).any()


@pytest.mark.parametrize("n_blocks", [2, 3])
def test_trials_that_are_blocks_do_not_move_the_cuts_and_are_noted(
    session: Session, n_blocks: int
) -> None:
    edges = np.linspace(session.domain[0, 0], session.domain[0, 1], n_blocks + 1)
    blocks = Trials(intervals=np.stack([edges[:-1], edges[1:]], axis=1))
    cut = with_domains(replace(session, trials=blocks))
    shares = [duration_s(cut.intervals(part)) for part in ("train", "valid", "test")]
    assert np.array(shares) / sum(shares) == pytest.approx([0.7, 0.1, 0.2])
    assert "trials are too long to cut between them; domains are cut by time" in cut.notes


def test_a_tiny_domain_is_refused(session: Session) -> None:
    with pytest.raises(SessionError, match="can't be cut into 70/10/20"):
        with_domains(replace(session, domain=np.array([[1.0, 1.000001]])))
