"""Checks the data of a calibration, which can be wrong even if its scores are good.

A constant shift between spikes and labels, or units that are silent only today, can be learned
well. The decoder fails once the clock is corrected or the units return. The active decoder was
trained on other data and reveals both: its velocity is earlier or later than the labels, or it
relies on units that are silent. Each doubt is a sentence for the operator, who decides. Needs numpy
only, except for the records of bundles.
"""

from __future__ import annotations

import numpy as np

from decoder.arrays import Floats, Ints
from decoder.bundles.bundle import Bundle
from decoder.bundles.families import KalmanTables, RidgeTables
from decoder.errors import TrainingError
from streaming.sessions.session import Session
from training.calibration.blocks import recent
from training.calibration.crossval import Compared, folds
from training.data.tuning import LOG_RATE_SCALE
from training.pretraining import runs

FURTHEST_S, LAG_STEP_S = 0.6, 0.02  # range and step of the lag search
APART_S = 0.12  # two decoders of one movement differ by less (a Kalman filter by 0.1)
FOLLOWS = 0.4  # correlation; below, the active decoder doesn't follow the movement
OWN = 0.975  # correlation; above, the labels are the decoder's own output
EXPECTED = 10.0  # expected spikes above which no spike at all counts as silence
MOST_SILENT = 0.2  # share of the units that the active decoder relies on


def doubts(session: Session, compared: Compared | None, active: Bundle | None) -> list[str]:
    """Warnings that the operator should check before the candidate is promoted."""
    found = [_silence(session, active)]
    if compared is not None:
        found += [_clock(session, compared), _own(session, compared)]
    return [doubt for doubt in found if doubt is not None]


def _clock(session: Session, compared: Compared) -> str | None:
    """A warning if the active decoder follows the labels at another lag than the candidate."""
    if compared.active is None:
        return None
    after_s, alike = lag(session, compared.times, compared.active)
    own_s, _ = lag(session, compared.times, compared.candidate)
    if alike < FOLLOWS or abs(after_s - own_s) <= APART_S:
        return None
    apart_ms = 1e3 * (after_s - own_s)
    return (
        f"the active decoder's velocity fits the labels best if they are shifted by "
        f"{apart_ms:.0f} ms: the clocks of spikes and kinematics may differ; check the senders' "
        "timestamps"
    )


def _own(session: Session, compared: Compared) -> str | None:
    """A warning if the labels are the active decoder's own velocity."""
    if compared.active is None:
        return None
    _, alike = lag(session, compared.times, compared.active)
    if alike < OWN:
        return None
    return (
        f"the labels are the active decoder's own velocity (correlation {alike:.3f}), so no "
        "candidate can score better; in closed loop, label by intention"
    )


def lag(session: Session, times: Floats, velocity: Floats) -> tuple[float, float]:
    """Lag of the labels behind a decoded velocity (n, 2) in s, and the correlation at that lag."""
    decoded = velocity - velocity.mean(axis=0)
    lags = np.arange(-FURTHEST_S, FURTHEST_S + LAG_STEP_S / 2, LAG_STEP_S)
    alike = np.empty(len(lags))
    for index, lag_s in enumerate(lags):
        true = session.velocity_at(times + lag_s)
        true = true - true.mean(axis=0)
        power = float(np.square(decoded).sum() * np.square(true).sum())
        alike[index] = float((decoded * true).sum()) / max(np.sqrt(power), 1e-12)
    best = int(np.argmax(alike))
    return float(lags[best]), float(alike[best])


def _silence(session: Session, active: Bundle | None) -> str | None:
    """A warning if units that the active decoder relies on were silent, always or temporarily."""
    if active is None:
        return None
    before = rates_before(active)
    expected_hz = np.array([before.get(unit_id, 0.0) for unit_id in session.unit_ids])
    judged = recent(session)
    total, seconds = counts_in(session, judged), session.observed_s(judged)
    relied_on = (expected_hz > 0) & (seconds > 0)  # a unit that no recent stream had isn't silent
    if not relied_on.any():
        return None
    silent = (total == 0) & (expected_hz >= EXPECTED / np.maximum(seconds, 1e-9))
    for fold in folds(session):
        part_s = session.observed_s(fold.test_domain)
        here = counts_in(session, fold.test_domain)
        elsewhere_hz = (total - here) / np.maximum(seconds - part_s, 1e-9)
        silent |= (here == 0) & (elsewhere_hz * part_s >= EXPECTED)
    n_silent, n_known = int((silent & relied_on).sum()), int(relied_on.sum())
    if n_silent <= MOST_SILENT * n_known:
        return None
    return (
        f"{n_silent} of the {n_known} units that the active decoder relies on were silent, always "
        "or temporarily; check the spike stream and its thresholds"
    )


def counts_in(session: Session, intervals: Floats) -> Ints:
    """Number of spikes (n_units,) of each unit in some intervals."""
    counts = np.zeros(session.n_units, dtype=np.int64)
    for start, end in intervals:
        inside = session.spikes_between(start, end)
        counts += np.bincount(session.spike_units[inside], minlength=session.n_units)
    return counts


def rates_before(bundle: Bundle) -> dict[str, float]:
    """Rates in Hz of the units that a decoder relies on, at its training; infinite if unknown.

    Units that were silent at its training are left out.
    """
    unit_ids, session_id = bundle.manifest.unit_ids, bundle.manifest.session_id
    if isinstance(bundle.tables, RidgeTables | KalmanTables):  # a silent unit's weights are zero
        rows = np.abs(bundle.tables.tokens).reshape(len(unit_ids), -1).sum(axis=1)
        return {u: np.inf for u, row in zip(unit_ids, rows, strict=True) if row > 0}
    try:
        record = runs.record_of(bundle)
    except TrainingError:
        return {}
    rates = {
        word: float(np.exp(features[-1] / LOG_RATE_SCALE))
        for word, features in zip(record.unit_words, record.unit_tuning, strict=False)
    }
    prefix = f"{session_id}/" if session_id in record.session_words else f"/{session_id}/"
    named = {unit_id: rates.get(f"{prefix}{unit_id}", 0.0) for unit_id in unit_ids}
    return {unit_id: rate for unit_id, rate in named.items() if rate > 0}
