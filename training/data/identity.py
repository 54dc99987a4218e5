"""Units that keep their identity over the days of a subject.

An implanted array records at the same electrodes every day, so units of the same name on two days
are often the same neurons, or their neighbours. The model then has a second embedding of each such
unit, which all days share, and a new day starts from the shared embeddings before any labels.

Names alone prove nothing, because sorted units are renumbered every day. So the tuning decides: a
subject's units keep their identity if a unit's namesake on another day is nearer in tuning than
most other units there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from decoder.arrays import Floats
from streaming.sessions.session import Session

MAX_PAIRS = 8  # of days that are compared, for each subject
MIN_COMMON = 8  # units with the same names on two days; fewer show nothing
# Mean rank of namesakes, at most. The days of an array had 0.08 (two days apart) to 0.34 (six weeks
# apart); units that are renumbered every day had 0.48 to 0.50.
MAX_RANK = 0.4
UNKNOWN_SUBJECT = "unknown"  # of a recording whose subject was not given

Day = tuple[Session, Floats]  # with the tuning features (n_units, F) of its units


def subject_word(subject_id: str) -> str:
    """The word of a subject in the session vocabulary. No session id begins with a slash."""
    return f"/{subject_id}"


def is_subject(word: str) -> bool:
    """Whether a word of the session vocabulary is a subject's."""
    return word.startswith("/")


def shared_words(session: Session, subject: str) -> list[str]:
    """The words of a session's units that all sessions of a subject share.

    subject: the subject's word.
    """
    return [f"{subject}/{unit_id}" for unit_id in session.unit_ids]


def namesake_rank(here: Day, there: Day) -> float | None:
    """Mean rank (0 nearest, 1 farthest) of each unit's namesake among the units of another day.

    Returns None if too few units have namesakes.
    """
    (one, own), (another, other) = here, there
    position = {unit_id: index for index, unit_id in enumerate(another.unit_ids)}
    common = [(i, position[u]) for i, u in enumerate(one.unit_ids) if u in position]
    if len(common) < MIN_COMMON:
        return None
    ours, theirs = np.array(common).T
    distance = np.linalg.norm(own[ours, None] - other, axis=2)
    to_namesake = distance[np.arange(len(ours)), theirs]
    nearer = (distance < to_namesake[:, None]).sum(axis=1)
    return float(nearer.mean() / (another.n_units - 1))


def lasting_subjects(sessions: Sequence[Session], tuning: Callable[[Session], Floats]) -> list[str]:
    """The ids of the subjects whose units keep their identity from session to session.

    tuning: gives the features of a session's units; called for a few sessions of each subject.
    """
    of_subject: dict[str, list[Session]] = {}
    for session in sessions:
        if session.subject_id != UNKNOWN_SUBJECT:
            of_subject.setdefault(session.subject_id, []).append(session)
    found = []
    for subject, days in of_subject.items():
        known = [(day, tuning(day)) for day in days[: MAX_PAIRS + 1]] if len(days) > 1 else []
        ranks = [namesake_rank(here, there) for here, there in pairwise(known)]
        if (compared := [rank for rank in ranks if rank is not None]) and (
            np.mean(compared) < MAX_RANK
        ):
            found.append(subject)
    return found


def home(session: Session, words: Sequence[str], unit_words: Sequence[str]) -> str | None:
    """The word of the subject whose shared units a new session starts from; None if there is none.

    words: the model's session vocabulary. unit_words: its unit vocabulary. A session of an unknown
    subject belongs to the only subject that shares at least half of its units' names.
    """
    subject = subject_word(session.subject_id)
    if subject in words:
        return subject
    if session.subject_id != UNKNOWN_SUBJECT:
        return None
    known = set(unit_words)
    fitting = [
        word
        for word in words
        if is_subject(word)
        and sum(w in known for w in shared_words(session, word)) * 2 >= session.n_units
    ]
    return fitting[0] if len(fitting) == 1 else None
