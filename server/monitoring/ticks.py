"""Metrics of every tick, from the frames that the daemon publishes.

The frames wait in ZeroMQ's queue until `drain`, so that nothing in the server runs at every tick.
The subscription doesn't count as a listener, for whom `arm` waits (`wire.OBSERVED_CURSOR`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import zmq
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from decoder.errors import StreamError
from server.monitoring.accumulators import Histogram, Total
from streaming.wire import messages as wire
from streaming.wire.sockets import limited
from streaming.wire.states import State

BOUNDS_S = (
    0.0001, 0.0002, 0.0003, 0.0005, 0.0007, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075,
    0.01, 0.015, 0.02, 0.03, 0.05, 0.1,
)  # fmt: skip
STAGES = ("before_decode", "decode")
QUEUED = 5000  # frames; those of some seconds at the shortest ticks
_CURSOR = wire.TOPICS["cursor"].prefix


class TickReader:
    """Counts the frames that are published on `address`. Not thread-safe: hold a lock."""

    def __init__(self, address: str) -> None:
        self._address = address.replace("*", "127.0.0.1").replace("0.0.0.0", "127.0.0.1")
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._latency = Histogram(BOUNDS_S)
        self._stages = {stage: Histogram(BOUNDS_S) for stage in STAGES}
        self._by_state: Counter[str] = Counter()
        self._n_missed = 0
        self._drained = Total()
        self._last: wire.CursorFrame | None = None
        self._last_at = 0.0  # monotonic, s

    def open(self) -> None:
        """Subscribe."""
        self._context = zmq.Context()
        self._socket = limited(self._context.socket(zmq.SUB))
        self._socket.setsockopt(zmq.RCVHWM, QUEUED)
        self._socket.setsockopt(zmq.SUBSCRIBE, wire.OBSERVED_CURSOR)
        self._socket.connect(self._address)

    def close(self) -> None:
        """Close the socket; the counts stay."""
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None

    def drain(self) -> None:
        """Count the frames that wait, at most `QUEUED`. Never blocks."""
        latencies_s: list[float] = []
        before_s: list[float] = []
        decodes_s: list[float] = []
        for frame in self._waiting():
            self._see(frame)
            latencies_s.append(frame.latency_ms / 1e3)
            if frame.valid:
                before_s.append((frame.latency_ms - frame.decode_ms) / 1e3)
                decodes_s.append(frame.decode_ms / 1e3)
        self._latency.add(latencies_s)
        for stage, durations_s in zip(STAGES, (before_s, decodes_s), strict=True):
            self._stages[stage].add(durations_s)
        if latencies_s and self._last is not None:
            self._drained.see(self._last.n_drained, run=self._last.started)

    def _waiting(self) -> Iterator[wire.CursorFrame]:
        for _ in range(QUEUED if self._context is not None else 0):
            try:
                message = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                yield wire.decode_frame(message[len(_CURSOR) :])
            except StreamError:  # from a daemon of another version
                self._n_missed += 1

    def _see(self, frame: wire.CursorFrame) -> None:
        last = self._last
        if last is not None and last.started == frame.started:
            self._n_missed += max(0, frame.seq - last.seq - 1)
        elif last is not None:
            self._drained.see(last.n_drained, run=last.started)
        self._by_state[frame.state] += 1
        self._last, self._last_at = frame, time.monotonic()

    def families(self) -> Iterator[Metric]:
        """The metrics."""
        yield HistogramMetricFamily(
            "volition_tick_latency_seconds",
            "From the end of a tick's window, its deadline, to the publication of its frame",
            buckets=self._latency.buckets,
            sum_value=self._latency.sum_s,
        )
        stages = HistogramMetricFamily(
            "volition_tick_stage_seconds",
            "The latency of ticks that decoded, in two parts: before the decode (waking up, taking "
            "spikes off the stream) and the decode itself, with the filters",
            labels=["stage"],
        )
        for stage, histogram in self._stages.items():
            stages.add_metric([stage], histogram.buckets, histogram.sum_s)
        yield stages
        frames = CounterMetricFamily(
            "volition_frames", "Frames that were read from the daemon, by state", labels=["state"]
        )
        for state in State:
            frames.add_metric([state.value], self._by_state[state.value])
        yield frames
        yield CounterMetricFamily(
            "volition_frames_missed",
            "Frames of the daemon that are missing from these metrics, or could not be read",
            value=self._n_missed,
        )
        yield CounterMetricFamily(
            "volition_spikes_drained", "Events taken off the stream", value=self._drained.value
        )

    def newest_spike_age(self, run: float | None) -> Metric:
        """The age of the newest admitted spike. run: `started` of the daemon that answers."""
        last, age_s = self._last, None
        if last is not None and last.newest_spike is not None and last.started == run:
            age_s = last.published - last.newest_spike + time.monotonic() - self._last_at
        return GaugeMetricFamily(
            "volition_newest_spike_age_seconds", "Age of the newest admitted spike", value=age_s
        )
