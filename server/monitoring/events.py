"""Counters from the daemon's status; they go on when another daemon takes over."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, Metric

from server.monitoring.accumulators import Total
from streaming.inlets.admission import Counters
from streaming.wire import messages as wire

ODD = ("late", "out_of_order", "duplicate")
LEFT_OUT = tuple(
    field.name
    for field in dataclasses.fields(Counters)
    if field.name not in ("taken", "backward_steps", *ODD)
)
SINGLE = {  # field of the status, or of its events -> metric and documentation
    "ticks": ("volition_ticks", "Ticks, each of which published a frame"),
    "skipped_ticks": ("volition_ticks_skipped", "Deadlines that were past by a whole tick"),
    "taken": ("volition_spikes_admitted", "Spikes that the decoder was given"),
    "backward_steps": (
        "volition_stamp_backward_steps",
        "Stamps more than 0.1 s before the one before them",
    ),
    "overflowed": ("volition_spikes_overflowed", "Spikes dropped because the ring was full"),
    "inlet_overflows": ("volition_inlet_overflows", "How often liblsl's buffer was full"),
    "offset_jumps": (
        "volition_clock_offset_jumps",
        "Jumps of the sender's clock; each emptied the window",
    ),
}


class EventCounts:
    """Counts over all runs of the daemon. Not thread-safe: hold a lock."""

    def __init__(self) -> None:
        self._totals = {name: Total() for name in (*SINGLE, *LEFT_OUT, *ODD)}

    def see(self, status: wire.Status) -> None:
        """Take the counts of a status."""
        for name, total in self._totals.items():
            count = status.events[name] if name in status.events else getattr(status, name, 0)
            # Every decoder has a ring of its own, which counts its overflows.
            total.see(count, run=status.started, of=status.decoder if name == "overflowed" else "")

    def families(self) -> Iterator[Metric]:
        """The metrics."""
        for name, (metric, documentation) in SINGLE.items():
            yield CounterMetricFamily(metric, documentation, value=self._totals[name].value)
        yield self._labelled(
            "volition_spikes_left_out", "Events that can't be used, by reason", "reason", LEFT_OUT
        )
        yield self._labelled(
            "volition_spikes_odd", "Admitted spikes with an odd time stamp", "kind", ODD
        )

    def _labelled(
        self, metric: str, documentation: str, label: str, names: tuple[str, ...]
    ) -> Metric:
        family = CounterMetricFamily(metric, documentation, labels=[label])
        for name in names:
            family.add_metric([name], self._totals[name].value)
        return family
