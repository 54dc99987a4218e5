"""Counts the calibrations that end while this server runs: outcomes, durations and phases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import get_args

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)

from server.monitoring.accumulators import Histogram
from server.schemas import RUNNING, Calibration, State

OUTCOMES = tuple(state for state in get_args(State) if state not in RUNNING)
BOUNDS_S = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
MOST_PHASES = 40  # names; phases beyond them count as `other`


class CalibrationCounts:
    """Outcomes and durations. Not thread-safe: hold a lock.

    ended_before: calibrations that an earlier server has counted.
    """

    def __init__(self, ended_before: Iterable[Calibration]) -> None:
        self._states = {one.id: one.state for one in ended_before}
        self._outcomes: Counter[str] = Counter()
        self._durations = Histogram(BOUNDS_S)
        self._phases_n: Counter[str] = Counter()
        self._phases_s: dict[str, float] = {}
        self._is_running = False

    def see(self, calibrations: Iterable[Calibration]) -> None:
        """Look at all calibrations, and count those that have ended since the last look."""
        before, self._states = self._states, {}
        self._is_running = False
        for one in calibrations:
            state = self._states[one.id] = one.state
            self._is_running |= state in RUNNING
            if state in OUTCOMES and before.get(one.id) != state:
                self._count(one, state)

    def _count(self, one: Calibration, state: State) -> None:
        self._outcomes[state] += 1
        if one.took_s is None:
            return
        self._durations.add([one.took_s])
        for phase, seconds in one.phases_s.items():
            is_known = phase in self._phases_s or len(self._phases_s) < MOST_PHASES
            name = phase if is_known else "other"
            self._phases_n[name] += 1
            self._phases_s[name] = self._phases_s.get(name, 0.0) + seconds

    def families(self) -> Iterator[Metric]:
        """The metrics."""
        yield GaugeMetricFamily(
            "volition_calibration_running", "1 while a calibration runs", value=self._is_running
        )
        ended = CounterMetricFamily(
            "volition_calibrations", "Calibrations that have ended, by outcome", labels=["outcome"]
        )
        for outcome in OUTCOMES:
            ended.add_metric([outcome], self._outcomes[outcome])
        yield ended
        yield HistogramMetricFamily(
            "volition_calibration_duration_seconds",
            "From the last sample to the swap or the verdict",
            buckets=self._durations.buckets,
            sum_value=self._durations.sum_s,
        )
        phases = SummaryMetricFamily(
            "volition_calibration_phase_seconds",
            "Phases after the last sample; those of processes that work at the same time overlap",
            labels=["phase"],
        )
        for phase, seconds in self._phases_s.items():
            phases.add_metric([phase], self._phases_n[phase], seconds)
        yield phases
