"""Scores a bundle on a recorded session, optionally next to baselines.

    volition evaluate BUNDLE SESSION --baselines --report report.html

All decoders are causal and are scored at the same instants: every 50 ms of the split, if the
model's window and the baselines' lags fit into the split. Baselines are fitted on the training
domain and choose their hyper-parameters on the validation domain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from decoder.arrays import Floats
from decoder.bundles.bundle import Bundle
from streaming.sessions.intervals import within
from streaming.sessions.session import Session, Split
from training.baselines.kalman import Kalman
from training.baselines.ridge import BIN_S, LONGEST_S, Ridge, Score, r2
from training.evaluation.offline import Decoded, decode_split, index_in_bundle

N_UNIT_COUNTS = 6
UNIT_COUNT_TICK_S = 0.1  # a coarser grid for R² over unit counts


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The result of one decoder."""

    name: str
    score: Score
    decoded: Floats  # (n, 2) m/s at the evaluation's times
    chosen: str = ""  # hyper-parameters, chosen on the validation domain


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All results on one split.

    times: (n,) seconds of the recording. true: (n, 2) m/s.
    all_ticks: the bundle's score over all ticks, as in live decoding.
    tick_ms: (n_ticks,) computing time of each tick. tick_s: the tick interval in seconds.
    unit_counts: pairs of a number of units and R² with only those units.
    """

    session: str
    split: Split
    bundle: Bundle
    times: Floats
    true: Floats
    entries: list[Entry]
    all_ticks: Score
    tick_ms: Floats
    tick_s: float
    unit_counts: list[tuple[int, float]] = field(default_factory=list)

    @property
    def normalized_latency(self) -> float:
        """Computing time / recorded time, as defined by FALCON; below 1 keeps up in real time."""
        return float(self.tick_ms.mean() / 1e3 / self.tick_s)

    def as_dict(self) -> dict[str, Any]:
        """The results as JSON-serialisable values."""
        p50, p95, p99, p999 = np.percentile(self.tick_ms, (50, 95, 99, 99.9))
        return {
            "session": self.session,
            "split": self.split,
            "decoder": self.bundle.manifest.decoder_id,
            "seconds": float(len(self.times) * BIN_S),
            "decoders": [
                {
                    "name": entry.name,
                    "chosen": entry.chosen,
                    **asdict(entry.score),
                    "r2_mean": entry.score.r2_mean,
                    "correlation_mean": entry.score.correlation_mean,
                }
                for entry in self.entries
            ],
            "r2_mean_every_tick": self.all_ticks.r2_mean,
            "normalized_latency": self.normalized_latency,
            "tick_ms": {"p50": p50, "p95": p95, "p99": p99, "p99.9": p999},
            "r2_by_unit_count": {str(n): score for n, score in self.unit_counts},
        }


def evaluate(
    bundle: Bundle,
    session: Session,
    *,
    split: Split = "test",
    baselines: bool = False,
    unit_counts: bool = False,
    tick_s: float = 0.01,
    say: Callable[[str], None] = lambda what: None,
) -> Evaluation:
    """Decode and score a split. `say` is called with each step. Raises TrainingError."""
    say("decoding")
    decoded = decode_split(bundle, session, split, tick_s=tick_s)
    true_ticks = session.velocity_at(decoded.times)
    stride = max(1, round(BIN_S / tick_s))
    times, velocity = _every(decoded, stride, session.intervals(split))
    whole = within(times, session.intervals(split), margin_s=LONGEST_S)
    times, velocity = times[whole], velocity[whole]
    true = session.velocity_at(times)
    name = f"{bundle.manifest.family} {bundle.manifest.preset}"
    entries = [Entry(name=name, score=r2(true, velocity), decoded=velocity)]
    if baselines:
        entries += _baselines(session, split, times, true, say)
    counts = []
    if unit_counts:
        say("fewer units")
        counts = _by_unit_count(bundle, session, split)
    return Evaluation(
        session=session.session_id,
        split=split,
        bundle=bundle,
        times=times,
        true=true,
        entries=entries,
        all_ticks=r2(true_ticks, decoded.velocity),
        tick_ms=decoded.tick_ms,
        tick_s=tick_s,
        unit_counts=counts,
    )


def _every(decoded: Decoded, stride: int, intervals: Floats) -> tuple[Floats, Floats]:
    """Every `stride`-th tick of each interval, on the grid of the baselines' bins."""
    which = np.searchsorted(intervals[:, 0], decoded.times, side="right")
    keep = np.concatenate(
        [np.flatnonzero(which == number)[::stride] for number in np.unique(which)]
    )
    return decoded.times[keep], decoded.velocity[keep]


def _baselines(
    session: Session, split: Split, times: Floats, true: Floats, say: Callable[[str], None]
) -> list[Entry]:
    from training.baselines.gru import Gru

    entries = []
    say("fitting " + Ridge.name)
    ridge = Ridge(session)
    entries.append(_entry(ridge.name, ridge.chosen, true, ridge.decode(times)))
    say("fitting " + Kalman.name)
    kalman = Kalman(session)
    entries.append(_entry(kalman.name, kalman.chosen, true, kalman.decode(times, split)))
    say("fitting " + Gru.name)
    gru = Gru(session)
    entries.append(_entry(gru.name, gru.chosen, true, gru.decode(times)))
    return entries


def _entry(name: str, chosen: str, true: Floats, decoded: Floats) -> Entry:
    return Entry(name=name, chosen=chosen, score=r2(true, decoded), decoded=decoded)


def _by_unit_count(bundle: Bundle, session: Session, split: Split) -> list[tuple[int, float]]:
    """Mean R² with random subsets of the known units, on a coarser grid."""
    known = np.flatnonzero(index_in_bundle(bundle, session) >= 0)
    order = np.random.default_rng(0).permutation(known)
    sizes = np.unique(np.geomspace(max(1, len(known) / 16), len(known), N_UNIT_COUNTS).round())
    scores = []
    for size in sizes.astype(int):
        part = decode_split(
            bundle, session, split, tick_s=UNIT_COUNT_TICK_S, only_units=order[:size]
        )
        scores.append((int(size), r2(session.velocity_at(part.times), part.velocity).r2_mean))
    return scores
