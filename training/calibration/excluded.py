"""Leaves out units that a calibration should not learn from.

These are the units that the operator has excluded from decoding, and copies of other units. Copies
are found from the spikes alone (`streaming.faults`), in the training domain. A bundle without
a unit ignores its spikes. Noisy units, and those that fire mainly in artifacts, are kept: without
them, real data decode no better (docs/RECALIBRATION.md). Needs numpy only.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from decoder.arrays import Bools
from decoder.errors import TrainingError
from streaming.faults import judged_whole, listed
from streaming.sessions.intervals import within
from streaming.sessions.session import Session

MOST = 0.5  # share of the units; if more are copies, none is left out


class Excluded(NamedTuple):
    """A session without some units, and notes on what was left out, if anything."""

    session: Session
    notes: list[str]


def without_excluded(session: Session, excluded: Collection[str]) -> Excluded:
    """The session without the units that the operator has excluded, by id.

    Raises TrainingError if none is left.
    """
    kept = ~np.isin(session.unit_ids, list(excluded))
    if kept.all():
        return Excluded(session, [])
    if not kept.any():
        raise TrainingError(
            f"all {len(kept)} units of {session.session_id} are excluded; include some "
            "(PATCH /v1/units)"
        )
    names = [unit for unit, is_kept in zip(session.unit_ids, kept, strict=True) if not is_kept]
    note = f"units that the operator has excluded were left out: {listed(names)}"
    return Excluded(with_units(session, kept), [note])


def without_copies(session: Session) -> Excluded:
    """The session without units that double another one."""
    inside = within(session.spike_times, session.train_domain)
    found = judged_whole(session.spike_times[inside], session.spike_units[inside], session.n_units)
    is_copy = found.doubles >= 0
    if not is_copy.any():
        return Excluded(session, [])
    if is_copy.mean() > MOST:
        note = f"{is_copy.sum()} of {len(is_copy)} units are copies of others, too many to leave "
        return Excluded(session, [note + "out: check the cables and the sender"])
    names = [f"{copy} of {other}" for copy, other in found.named(session.unit_ids).doubled]
    note = f"copies of other units were left out: {listed(names)}"
    return Excluded(with_units(session, ~is_copy), [note])


def with_units(session: Session, kept: Bools) -> Session:
    """The session with some of its units: a mask (n_units,)."""
    index = np.where(kept, np.cumsum(kept) - 1, -1)[session.spike_units]
    return replace(
        session,
        unit_ids=tuple(np.array(session.unit_ids, dtype=object)[kept]),
        spike_times=session.spike_times[index >= 0],
        spike_units=index[index >= 0],
        blocks=tuple(replace(one, has_unit=one.has_unit[kept]) for one in session.blocks),
    )
