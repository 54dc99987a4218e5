"""Leaves out units that a calibration should not learn from: copies, and units of artifacts.

They are found from the spikes alone (`streaming.faults`), in the training domain. A bundle without
a unit ignores its spikes. Noisy units are kept: without them, real data decode worse
(docs/RECALIBRATION.md). Needs numpy only.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from decoder.arrays import Bools
from streaming.faults import judged_whole, listed
from streaming.sessions.intervals import within
from streaming.sessions.session import Session

MOST = 0.5  # share of the units; if more look faulty, none is left out


class Excluded(NamedTuple):
    """A session without its faulty units, and a note for each kind that was left out."""

    session: Session
    notes: list[str]


def without_faulty(session: Session) -> Excluded:
    """The session without units that double another, or fire mainly in artifacts."""
    inside = within(session.spike_times, session.train_domain)
    found = judged_whole(session.spike_times[inside], session.spike_units[inside], session.n_units)
    doubled = found.doubles >= 0
    faulty = doubled | found.artifact
    if not faulty.any():
        return Excluded(session, [])
    named = found.named(session.unit_ids)
    if faulty.mean() > MOST:
        note = f"{faulty.sum()} of {len(faulty)} units are copies or fire mainly in artifacts; "
        return Excluded(session, [note + "too many to leave out: check the ground and the cables"])
    copies = [f"{copy} of {original}" for copy, original in named.doubled]
    notes = [
        f"{len(units)} {what} left out: {listed(units)}"
        for units, what in ((copies, "copies"), (named.artifact, "units of artifacts"))
        if units
    ]
    return Excluded(with_units(session, ~faulty), notes)


def with_units(session: Session, kept: Bools) -> Session:
    """The session with some of its units: a mask (n_units,)."""
    index = np.where(kept, np.cumsum(kept) - 1, -1)[session.spike_units]
    return replace(
        session,
        unit_ids=tuple(np.array(session.unit_ids, dtype=object)[kept]),
        spike_times=session.spike_times[index >= 0],
        spike_units=index[index >= 0],
    )
