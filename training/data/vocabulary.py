"""The words of a run: its units and sessions, and those that the days of a subject share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from decoder.arrays import Floats
from streaming.sessions.session import Session
from training.data.identity import lasting_subjects, shared_words, subject_word
from training.data.tuning import tuning
from training.data.windows import OutputScale, unit_words


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Words of the unit and session embeddings, in order, and an output scale per session word."""

    units: list[str]
    sessions: list[str]
    scales: dict[str, OutputScale]

    @classmethod
    def of(cls, sessions: Sequence[Session], *, shared: bool) -> Vocabulary:
        """The words of sessions; shared: also those of subjects whose units keep their identity."""
        words = cls(
            units=[word for session in sessions for word in unit_words(session)],
            sessions=[session.session_id for session in sessions],
            scales={session.session_id: OutputScale.of(session) for session in sessions},
        )
        for subject in map(subject_word, lasting_subjects(sessions, tuning) if shared else ()):
            days = [day for day in sessions if subject_word(day.subject_id) == subject]
            words.scales[subject] = OutputScale.mean_of([words.scales[d.session_id] for d in days])
            words.sessions.append(subject)
            words.units.extend(
                dict.fromkeys(word for day in days for word in shared_words(day, subject))
            )
        return words


def tuning_of_words(sessions: Sequence[Session], words: Sequence[str]) -> Floats:
    """Tuning features (n_words, F) of `Vocabulary.units`; shared words have the mean of their days.

    sessions: those of the vocabulary, in the same order.
    """
    own = [tuning(session) for session in sessions]
    of_word: dict[str, list[Floats]] = {}
    for session, features in zip(sessions, own, strict=True):
        names = shared_words(session, subject_word(session.subject_id))
        for word, row in zip(names, features, strict=True):
            of_word.setdefault(word, []).append(row)
    n_own = sum(session.n_units for session in sessions)
    shared = [np.mean(of_word[word], axis=0)[None] for word in words[n_own:]]
    return np.concatenate([*own, *shared])
