"""Which seconds a calibration learns from: the first ones, a held-out fifth, joined blocks.

The labelled blocks of several calibrations or days can be joined into one session. They are
recordings of one subject. They are laid one after the other, oldest first, with gaps
between them that no window crosses. Units are matched by id; a block may lack some. Labels are made
before, within each block.

A block's weight halves with every `HALF_LIFE_S` that it is older than the newest one: windows are
drawn from it, and statistics in closed form count its seconds, that much less often. Only blocks
that are about as new as the newest judge a decoder (`recent`), because it must fit today's units.
Needs numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from decoder.arrays import Floats, Ints
from decoder.errors import TrainingError
from streaming.sessions.intervals import duration_s, intersect, time_after
from streaming.sessions.session import Block, Session, Trials

HALF_LIFE_S = 86_400.0  # measured: docs/RECALIBRATION.md, "Why these values"
RECENT = 0.5  # weight of the blocks that judge a decoder, at least
VALID_SHARE = 0.2
GAP_S = 60.0  # between blocks; longer than any window, return movement or lag


def joined(blocks: Sequence[Session]) -> Session:
    """One session of all blocks, under the name of the newest; a single block as it is.

    Blocks without a date can't be compared: if there is one, all count the same, in the order
    given. Raises TrainingError if the blocks are of different subjects.
    """
    if len(blocks) == 1:
        return blocks[0]
    _check_subject(blocks)
    blocks, weights = _by_age(blocks)
    newest = blocks[-1]
    unit_ids = tuple(dict.fromkeys(unit for block in reversed(blocks) for unit in block.unit_ids))
    start_s, parts, about = 0.0, [], []
    for block, weight in zip(blocks, weights, strict=True):
        parts.append(_moved(block, start_s, unit_ids))
        has_unit = np.isin(unit_ids, block.unit_ids)
        about.append(Block(start_s=start_s - GAP_S / 2, weight=weight, has_unit=has_unit))
        start_s = max(parts[-1].cursor_times[-1], parts[-1].domain[-1, 1]) + GAP_S

    def all_of(name: str) -> Floats:
        return np.concatenate([getattr(part, name) for part in parts])

    return Session(
        session_id=newest.session_id,
        subject_id=newest.subject_id,
        unit_ids=unit_ids,
        spike_times=all_of("spike_times"),
        spike_units=all_of("spike_units").astype(np.int64),
        cursor_times=all_of("cursor_times"),
        cursor_pos=all_of("cursor_pos"),
        cursor_vel=all_of("cursor_vel"),
        domain=all_of("domain"),
        train_domain=all_of("train_domain"),
        valid_domain=all_of("valid_domain"),
        test_domain=all_of("test_domain"),
        trials=_trials(parts),
        recorded_at=newest.recorded_at,
        source=newest.source,
        notes=tuple(f"{block.session_id}: {note}" for block in blocks for note in block.notes),
        blocks=tuple(about),
    )


def weight_of(age_s: float) -> float:
    """The weight of a block that was recorded this long before the newest."""
    return float(0.5 ** (age_s / HALF_LIFE_S))


def recent(session: Session) -> Floats:
    """The training domain (n, 2) of the blocks that judge a decoder; they are the last ones."""
    domain = session.train_domain
    return domain[session.weight_at(domain[:, 0]) >= RECENT]


def first_seconds(session: Session, seconds: float) -> Session:
    """The session with its training domain cut to the first `seconds`."""
    domain = session.train_domain
    first = intersect(domain, domain[0, 0], time_after(domain, seconds))
    return replace(session, train_domain=first)


def hold_out_last_fifth(session: Session) -> Session:
    """The session with the last fifth of its recent training domain as validation domain."""
    domain, judged = session.train_domain, recent(session)
    cut = time_after(judged, (1 - VALID_SHARE) * duration_s(judged))
    train = intersect(domain, domain[0, 0], cut)
    valid = intersect(domain, cut, domain[-1, 1])
    if len(train) == 0 or len(valid) == 0:
        raise TrainingError(
            f"{session.session_id}: {duration_s(domain):.1f} s of labelled data are too few; "
            "collect 40 s"
        )
    return replace(session, train_domain=train, valid_domain=valid)


def _check_subject(blocks: Sequence[Session]) -> None:
    first = blocks[0]
    for block in blocks[1:]:
        if block.subject_id != first.subject_id:
            raise TrainingError(
                f"{block.session_id} is of subject {block.subject_id!r}, but {first.session_id} of "
                f"{first.subject_id!r}; name blocks of one subject"
            )


def _by_age(blocks: Sequence[Session]) -> tuple[list[Session], list[float]]:
    """The blocks, oldest first, and their weights."""
    dated = [(_utc(block.recorded_at), block) for block in blocks if block.recorded_at is not None]
    if len(dated) < len(blocks):
        return list(blocks), [1.0] * len(blocks)
    dated.sort(key=lambda pair: pair[0])
    newest = dated[-1][0]
    weights = [weight_of((newest - date).total_seconds()) for date, _ in dated]
    return [block for _, block in dated], weights


def _utc(date: datetime) -> datetime:
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date


def _moved(block: Session, start_s: float, unit_ids: Sequence[str]) -> Session:
    """A block with the units of all blocks, and with its time axis starting at `start_s`."""
    first_s = min(block.cursor_times[0], block.domain[0, 0])
    last_s = max(block.cursor_times[-1], block.domain[-1, 1])
    inside, by = block.spikes_between(first_s, last_s), start_s - first_s
    trials = block.trials
    return replace(
        block,
        unit_ids=tuple(unit_ids),
        spike_times=block.spike_times[inside] + by,
        spike_units=_positions(block.unit_ids, unit_ids)[block.spike_units[inside]],
        cursor_times=block.cursor_times + by,
        domain=block.domain + by,
        train_domain=block.train_domain + by,
        valid_domain=block.valid_domain + by,
        test_domain=block.test_domain + by,
        trials=None if trials is None else replace(trials, intervals=trials.intervals + by),
    )


def _positions(some: Sequence[str], all_of_them: Sequence[str]) -> Ints:
    position = {unit_id: index for index, unit_id in enumerate(all_of_them)}
    return np.array([position[unit_id] for unit_id in some], dtype=np.int64)


def _trials(parts: Sequence[Session]) -> Trials | None:
    """The trials of all blocks; NaN for the targets of blocks without targets."""
    trials = [part.trials for part in parts if part.trials is not None]
    if not trials:
        return None
    targets = [
        np.full((len(one.intervals), 2), np.nan) if one.target_pos is None else one.target_pos
        for one in trials
    ]
    has_targets = any(one.target_pos is not None for one in trials)
    return Trials(
        intervals=np.concatenate([one.intervals for one in trials]),
        target_pos=np.concatenate(targets) if has_targets else None,
    )
