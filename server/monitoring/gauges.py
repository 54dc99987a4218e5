"""Gauges from the daemon's last status; without a daemon, most of them are missing."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric

from decoder.filters import Filters
from streaming.faults import Faults
from streaming.wire import messages as wire
from streaming.wire.states import State

FILTERS = {
    "gain": ("volition_filter_gain_ratio", "Factor applied to the velocity"),
    "smoothing_s": ("volition_filter_smoothing_seconds", "Time constant of the smoothing"),
    "dead_zone": (
        "volition_filter_dead_zone_meters_per_second",
        "Speed below which the velocity is zero",
    ),
    "speed_limit": ("volition_filter_speed_limit_meters_per_second", "Maximum speed"),
    "acceleration_limit": (
        "volition_filter_acceleration_limit_meters_per_second_squared",
        "Maximum acceleration",
    ),
    "bias_s": ("volition_filter_bias_seconds", "Time constant of the bias correction"),
}


def of_daemon(status: wire.Status | None) -> Iterator[Metric]:
    """Whether a daemon answers, its state, and the other gauges if it does."""
    yield gauge("volition_up", "1 if the decode daemon answers", status is not None)
    now = status.state if status is not None else None
    yield one_of("volition_state", "1 for the daemon's state", "state", tuple(State), now)
    if status is None:
        return
    yield gauge("volition_paused", "1 if decoding is paused", status.paused is not None)
    yield gauge("volition_uptime_seconds", "Time since the daemon's start", status.uptime_s)
    yield gauge("volition_stream_open", "1 if a stream is open", status.stream is not None)
    yield gauge("volition_window_seconds", "Spikes that a decode needs", status.window_s)
    yield from _if_known(
        "volition_backlog_seconds",
        "Age of the oldest event drained in the last tick that had any",
        status.backlog_s,
    )
    yield from _decoder(status)
    yield from _units(status)
    yield from _filters(status.filters)


def _decoder(status: wire.Status) -> Iterator[Metric]:
    yield InfoMetricFamily(
        "volition_decoder",
        "The decoder in use",
        value={
            "decoder": status.decoder, "session": status.session, "provider": status.provider,
        },
    )  # fmt: skip
    distance = "Distance of the population from the decoder's known days"
    yield from _if_known("volition_distance_nats", distance, status.distance)
    yield from _if_known(
        "volition_distance_limit_nats",
        "Beyond it, the population counts as changed",
        status.distance_limit,
    )


def _units(status: wire.Status) -> Iterator[Metric]:
    units = GaugeMetricFamily(
        "volition_units",
        "Units of the stream that the decoder knows, those that it doesn't, and units of the "
        "decoder that the stream lacks",
        labels=["match"],
    )
    for match in ("known", "unknown", "missing"):
        units.add_metric([match], getattr(status, f"{match}_units"))
    yield units
    faults: Faults | None = status.unit_faults
    if faults is None:
        return
    faulty = GaugeMetricFamily(
        "volition_faulty_units", "Faulty units of the stream, by kind of fault", labels=["fault"]
    )
    for fault in ("silent", "noisy", "doubled", "artifact"):
        faulty.add_metric([fault], len(getattr(faults, fault)))
    yield faulty
    yield gauge(
        "volition_artifacts_hertz",
        "Artifacts, in which many units fire within a millisecond, per second",
        faults.artifacts_per_min / 60.0,
    )


def _filters(filters: Filters) -> Iterator[Metric]:
    """The output filters; those that are off are missing."""
    for name, (metric, documentation) in FILTERS.items():
        yield from _if_known(metric, documentation, getattr(filters, name))


def gauge(name: str, documentation: str, value: float) -> Metric:
    """A gauge of one value."""
    return GaugeMetricFamily(name, documentation, value=float(value))


def one_of(
    name: str, documentation: str, label: str, values: tuple[str, ...], now: str | None
) -> Metric:
    """A gauge for each possible value of a label: 1 for the present one, 0 for the others."""
    family = GaugeMetricFamily(name, documentation, labels=[label])
    for value in values:
        family.add_metric([str(value)], float(value == now))
    return family


def _if_known(name: str, documentation: str, value: float | None) -> Iterator[Metric]:
    if value is not None:
        yield gauge(name, documentation, value)
