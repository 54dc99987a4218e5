"""Gauges from the daemon's last status. One whose value is unknown or off has no sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric

from streaming.wire import messages as wire
from streaming.wire.states import State

Value = Callable[[wire.Status], float | None]
SINGLE: tuple[tuple[str, str, Value], ...] = (
    ("volition_paused", "1 if decoding is paused", lambda s: s.paused is not None),
    ("volition_uptime_seconds", "Time since the daemon's start", lambda s: s.uptime_s),
    ("volition_stream_open", "1 if a stream is open", lambda s: s.stream is not None),
    ("volition_window_seconds", "Unbroken spikes that a decode needs", lambda s: s.window_s),
    (
        "volition_backlog_seconds",
        "Age of the oldest event drained in the last tick that had any",
        lambda s: s.backlog_s,
    ),
    (
        "volition_distance_nats",
        "Distance of the population from the decoder's known days",
        lambda s: s.distance,
    ),
    (
        "volition_distance_limit_nats",
        "Beyond it, the population counts as changed",
        lambda s: s.distance_limit,
    ),
    (
        "volition_artifacts_hertz",
        "Artifacts, in which many units fire within a millisecond, per second",
        lambda s: None if s.unit_faults is None else s.unit_faults.artifacts_per_min / 60.0,
    ),
    ("volition_filter_gain_ratio", "Factor applied to the velocity", lambda s: s.filters.gain),
    (
        "volition_filter_smoothing_seconds",
        "Time constant of the smoothing",
        lambda s: s.filters.smoothing_s,
    ),
    (
        "volition_filter_dead_zone_meters_per_second",
        "Speed below which the velocity is zero",
        lambda s: s.filters.dead_zone,
    ),
    (
        "volition_filter_speed_limit_meters_per_second",
        "Maximum speed",
        lambda s: s.filters.speed_limit,
    ),
    (
        "volition_filter_acceleration_limit_meters_per_second_squared",
        "Maximum acceleration",
        lambda s: s.filters.acceleration_limit,
    ),
    (
        "volition_filter_bias_seconds",
        "Time constant of the bias correction",
        lambda s: s.filters.bias_s,
    ),
)
FAULTS = ("silent", "noisy", "doubled", "artifact")


def of_daemon(status: wire.Status | None) -> Iterator[Metric]:
    """Whether a daemon answers, and what its status says. status: None if none answers."""
    yield GaugeMetricFamily(
        "volition_up", "1 if the decode daemon answers", value=float(status is not None)
    )
    now = None if status is None else status.state
    yield one_of("volition_state", "1 for the daemon's state", "state", tuple(State), now)
    for name, documentation, value_of in SINGLE:
        value = None if status is None else value_of(status)
        yield GaugeMetricFamily(name, documentation, value=value)
    yield _decoder(status)
    yield from _units(status)


def _decoder(status: wire.Status | None) -> Metric:
    family = InfoMetricFamily("volition_decoder", "The decoder in use")
    if status is not None:
        family.add_metric(
            [],
            {
                "decoder": status.decoder,
                "session": status.session,
                "provider": status.provider,
            },
        )
    return family


def _units(status: wire.Status | None) -> Iterator[Metric]:
    units = GaugeMetricFamily(
        "volition_units",
        "Units of the stream that the decoder knows, those that it doesn't, units of the decoder "
        "that the stream lacks, and units that are excluded",
        labels=["match"],
    )
    faulty = GaugeMetricFamily(
        "volition_faulty_units", "Faulty units of the stream, by kind of fault", labels=["fault"]
    )
    if status is not None:
        for match in ("known", "unknown", "missing", "excluded"):
            units.add_metric([match], getattr(status, f"{match}_units"))
        for fault in FAULTS if status.unit_faults is not None else ():
            faulty.add_metric([fault], len(getattr(status.unit_faults, fault)))
    yield units
    yield faulty


def one_of(
    name: str, documentation: str, label: str, values: tuple[str, ...], now: str | None
) -> Metric:
    """A gauge for each possible value of a label: 1 for the present one, 0 for the others."""
    family = GaugeMetricFamily(name, documentation, labels=[label])
    for value in values:
        family.add_metric([str(value)], float(value == now))
    return family
