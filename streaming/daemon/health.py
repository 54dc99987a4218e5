"""Tick latencies and event rates, collected in preallocated arrays."""

from __future__ import annotations

import numpy as np

from decoder.arrays import Floats
from streaming.wire import messages as wire

KEPT_TICKS = 8192


class TickHealth:
    """Latencies (window end to publication) and events since the last `read`.

    backlog_s: age of the oldest event drained in the last tick that had any.
    """

    def __init__(self) -> None:
        self._latency_ms = np.empty(KEPT_TICKS)
        self._n_ticks = 0
        self._n_events = 0
        self._since = 0.0
        self.backlog_s: float | None = None

    def start(self, now: float) -> None:
        """Begin a period at `now` (LSL clock, s)."""
        self._n_ticks = self._n_events = 0
        self._since = now

    def tick(self, latency_ms: float) -> None:
        """Add the latency of one tick."""
        self._latency_ms[self._n_ticks % KEPT_TICKS] = latency_ms
        self._n_ticks += 1

    def drained(self, n_events: int, times: Floats, now: float) -> None:
        """Add the events that a tick drained at `now`, and the times (n,) of their spikes."""
        self._n_events += n_events
        times = times[np.isfinite(times)]
        if len(times):
            self.backlog_s = now - float(times.min())

    def read(self, now: float) -> tuple[wire.Quantiles | None, float]:
        """Latency quantiles and events/s since the last read; begins a new period."""
        latencies = self._latency_ms[: min(self._n_ticks, KEPT_TICKS)]
        rate = self._n_events / max(now - self._since, 1e-9)
        summary = quantiles(latencies) if len(latencies) else None
        self.start(now)
        return summary, rate


def quantiles(values_ms: Floats) -> wire.Quantiles:
    """Quantiles p50 to p99.9 and the maximum of values (n,), ms."""
    p50, p95, p99, p999 = np.percentile(values_ms, (50, 95, 99, 99.9))
    return wire.Quantiles(
        p50=float(p50), p95=float(p95), p99=float(p99), p999=float(p999), max=float(values_ms.max())
    )
