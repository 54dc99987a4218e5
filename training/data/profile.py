"""Profiles of units: what a stretch of a session says about each of them.

A profile holds the tuning and the activity of a unit in some seconds of data, how many seconds
these were, and the mean tuning of the unit's channel on the subject's known days. A network that
is trained with the model turns it into an embedding (`training.models.identifier`), so a new unit
can be identified in closed form.

Without labels, a profile has the activity alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from decoder.arrays import Floats
from streaming.sessions.intervals import duration_s, intersect, time_after
from streaming.sessions.session import Session
from training.data.tuning import N_ACTIVITY, N_FEATURES, activity, binned_counts, tuning

# Tuning, activity, log of the seconds, flag "labelled"; the channel's tuning, flag "known".
N_PROFILE = N_FEATURES - 1 + N_ACTIVITY + 2 + N_FEATURES + 1
SHORTEST_S, LONGEST_S = 5.0, 240.0  # of the stretches in training
LABELLED = 0.7  # share of the profiles in training that have the tuning
USUAL_S = 40.0  # the log of the seconds is zero here


def profiles(
    session: Session, domain: Floats, *, labelled: bool, channels: Floats | None = None
) -> Floats:
    """Profiles (n_units, N_PROFILE) of all units, from a domain, intervals (n, 2) in s.

    labelled: whether the movement in the domain may be used.
    channels: tuning features (n_units, N_FEATURES) of the units' channels on the subject's known
        days; rows of NaN for channels that are not known.
    """
    n, count = session.n_units, binned_counts(session, domain)
    movement = np.zeros((n, N_FEATURES - 1))
    if labelled:
        movement = tuning(session, domain, count=count)[:, :-1]
    seconds = np.log(np.maximum(session.observed_s(domain, weighted=True), 1.0) / USUAL_S)
    of_data = np.column_stack([seconds, np.full(n, float(labelled))])
    today = [movement, activity(session, domain, count), of_data]
    if channels is None:
        return np.hstack([*today, np.zeros((n, N_FEATURES + 1))])
    known = ~np.isnan(channels[:, :1])
    return np.hstack([*today, np.where(known, channels, 0.0), known])


@dataclass(frozen=True, kw_only=True)
class Identity:
    """How the units of a session are known to the model, in the windows of one training batch.

    shared: by the embeddings that the subject's days share.
    own: by the embeddings of the session, or on top of the shared ones by what differs today.
    profiled: by their profiles, in a stretch of the session, intervals (n, 2) in s; None: without.
        A profile without shared embeddings is of an unknown channel.
    labelled: whether the profiles have the tuning.
    """

    shared: bool = False
    own: bool = False
    profiled: Floats | None = None
    labelled: bool = False


OWN = Identity(own=True)


def draw_identity(
    rng: np.random.Generator,
    domain: Floats,
    *,
    lasts: bool,
    shared_share: float,
    profiled_share: float,
) -> Identity:
    """Draw how the units of a session are known.

    lasts: whether the session's units have embeddings that the subject's days share.
    shared_share: probability that the units are those of any day, if they last.
    profiled_share: probability of profiles, of shared and of unknown channels alike.
    """
    any_day = lasts and bool(rng.random() < shared_share)
    if not rng.random() < profiled_share:
        return Identity(shared=lasts, own=not any_day)
    labelled = bool(rng.random() < LABELLED)
    return Identity(shared=any_day, profiled=_random_stretch(domain, rng), labelled=labelled)


def _random_stretch(domain: Floats, rng: np.random.Generator) -> Floats:
    """A stretch of 5 to 240 s of a domain, gaps not counted; shorter ones are as likely."""
    whole_s = duration_s(domain)
    longest = min(LONGEST_S, whole_s)
    shortest = min(SHORTEST_S, longest)
    length_s = float(np.exp(rng.uniform(np.log(shortest), np.log(longest))))
    first_s = float(rng.uniform(0.0, whole_s - length_s))
    return intersect(domain, time_after(domain, first_s), time_after(domain, first_s + length_s))
