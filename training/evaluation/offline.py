"""Decodes a split of a recorded session causally, through the daemon's runtime.

Spikes are appended and decoded tick by tick as in live decoding, but without waiting for the clock.
A window never crosses the edge of an interval.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from decoder.arrays import Floats, Ints
from decoder.bundles.bundle import GRAPH, Bundle
from decoder.errors import TrainingError
from decoder.runtimes.base import Runtime
from decoder.runtimes.onnx import RuntimeSettings
from decoder.runtimes.opening import open_runtime
from streaming.sessions.session import Session, Split


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Output of a bundle on a split.

    times: (n_ticks,) seconds of the recording. velocity: (n_ticks, 2) m/s.
    tick_ms: (n_ticks,) time for appending and decoding.
    distance, limit: nats, of the decoder's states in the longest interval from those of the days
        that it knows (`decoder.usual`); None if they can't be known.
    """

    times: Floats
    velocity: Floats
    tick_ms: Floats
    distance: float | None = None
    limit: float | None = None


def decode_split(
    bundle: Bundle,
    session: Session,
    split: Split,
    *,
    tick_s: float = 0.01,
    after_s: float = 0.0,
    only_units: Ints | None = None,
    threads: int = 1,
    opened: dict[str, Runtime] | None = None,
) -> Decoded:
    """Decode a split every `tick_s`, from the first complete window of each interval.

    after_s: skip at least this much of each interval, so that decoders with different window
        lengths decode the same instants.
    only_units: indices of the session's units to use; spikes of the others are left out.
    opened: warm runtimes by the checksum of their graphs, which are shared; new ones are added.
    Raises TrainingError if the session has none of the bundle's units, or no window fits.
    """
    if tick_s >= bundle.manifest.sizes.window_s:
        raise TrainingError(
            f"a tick of {tick_s:g} s is too long for {bundle.path.name}; expected less than its "
            f"window of {bundle.manifest.sizes.window_s:g} s"
        )
    unit_index = index_in_bundle(bundle, session)
    if only_units is not None:
        unit_index = np.where(np.isin(np.arange(session.n_units), only_units), unit_index, -1)
    parts = []
    opened, graph = {} if opened is None else opened, bundle.manifest.checksums[GRAPH]
    runtime = open_runtime(
        bundle, epoch=float(session.domain[0, 0]), settings=RuntimeSettings(threads=threads),
        graph_from=opened.get(graph),
    )  # fmt: skip
    if graph not in opened:
        runtime.warm_up()
        opened[graph] = runtime
    for start, end in session.intervals(split):
        runtime.reset()
        parts.append(_decode_interval(runtime, session, unit_index, (start, end), tick_s, after_s))
    times = np.concatenate([part.times for part in parts]) if parts else np.empty(0)
    if len(times) == 0:
        raise TrainingError(
            f"{session.session_id}: no window of {runtime.window_s:g} s fits the {split} domain"
        )
    longest = max(parts, key=lambda part: len(part.times))
    return Decoded(
        times=times,
        velocity=np.concatenate([part.velocity for part in parts]),
        tick_ms=np.concatenate([part.tick_ms for part in parts]),
        distance=longest.distance,
        limit=longest.limit,
    )


def index_in_bundle(bundle: Bundle, session: Session) -> Ints:
    """The index in the bundle of each of the session's units; -1 for unknown units.

    Raises TrainingError if all are unknown.
    """
    position = {unit_id: index for index, unit_id in enumerate(bundle.manifest.unit_ids)}
    found = np.array([position.get(unit_id, -1) for unit_id in session.unit_ids], dtype=np.int64)
    if (found < 0).all():
        raise TrainingError(
            f"none of {session.session_id}'s {session.n_units} units is among the bundle's "
            f"{len(position)}; this bundle decodes {bundle.manifest.session_id}. Adapt it to the "
            "session first"
        )
    return found


def _decode_interval(
    runtime: Runtime,
    session: Session,
    unit_index: Ints,
    interval: tuple[float, float],
    tick_s: float,
    after_s: float,
) -> Decoded:
    start, end = interval
    first = start + max(runtime.window_s, after_s)
    n_ticks = max(0, int(np.floor((end - first) / tick_s + 1e-9)) + 1)
    times = first + tick_s * np.arange(n_ticks, dtype=np.float64)
    velocity, cost = np.empty((n_ticks, 2)), np.empty(n_ticks)
    inside = session.spikes_between(start, end)
    spike_times = session.spike_times[inside]
    spike_units = unit_index[session.spike_units[inside]]
    spike_times, spike_units = spike_times[spike_units >= 0], spike_units[spike_units >= 0]
    stops = np.searchsorted(spike_times, times, side="left")
    done = 0
    for tick, (window_end, stop) in enumerate(zip(times, stops, strict=True)):
        began = time.perf_counter()
        runtime.append(spike_times[done:stop], spike_units[done:stop])
        velocity[tick] = runtime.decode(float(window_end))
        cost[tick] = (time.perf_counter() - began) * 1e3
        done = int(stop)
        if tick == 0 and runtime.drift is not None:
            runtime.drift.forget()  # the first states remember that they began from nothing
    if (drift := runtime.drift) is None:
        return Decoded(times=times, velocity=velocity, tick_ms=cost)
    return Decoded(
        times=times, velocity=velocity, tick_ms=cost, distance=drift.of_few, limit=drift.limit
    )
