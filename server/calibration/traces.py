"""The velocities behind a calibration's held-out scores, thinned out for a plot."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from decoder.arrays import Floats, Ints
from decoder.traces import Traces
from server.schemas import Answer

MOST_POINTS = 3000
SECONDS_DIGITS, VELOCITY_DIGITS = 4, 6


class Velocity(Answer):
    """A velocity, m/s, at each of the seconds; null in gaps."""

    x: list[float | None]
    y: list[float | None]


class HeldOutTraces(Answer):
    """Velocities of two decoders on data that the models which decoded them had not seen."""

    seconds: list[float] = Field(
        description="since the start of the data, ascending; in each gap, such as between two "
        "trials, one instant at which all velocities are null"
    )
    true: Velocity | None = Field(description="null without labels")
    candidate: Velocity | None
    active: Velocity | None = Field(
        description="null if there was no active decoder, or it knows none of today's units"
    )
    held_out: bool = Field(
        default=True, description="decoded by cross-validation, as the scores in `held_out` are"
    )


def to_plot(traces: Traces, most: int = MOST_POINTS) -> HeldOutTraces:
    """At most `most` points, in order of time. All of them if they are fewer, with the gaps."""
    points = _chosen(traces.times, traces.tick_s, most)
    is_gap = points < 0
    seconds = traces.times[points]
    after = np.flatnonzero(is_gap)  # never the first or the last point
    seconds[after] = (seconds[after - 1] + seconds[after + 1]) / 2

    def axes(velocity: Floats | None) -> Velocity | None:
        if velocity is None:
            return None
        shown = np.where(is_gap[:, None], np.nan, velocity[points]).T
        x, y = ([_known(value, VELOCITY_DIGITS) for value in axis.tolist()] for axis in shown)
        return Velocity(x=x, y=y)

    return HeldOutTraces(
        seconds=seconds.round(SECONDS_DIGITS).tolist(),
        true=axes(traces.true),
        candidate=axes(traces.candidate),
        active=axes(traces.active),
    )


def _chosen(times: Floats, tick_s: float, most: int) -> Ints:
    """Indices of the points to show, with -1 for each gap.

    Of too many points, every second, third, … of each stretch is shown, and of too many stretches
    every second, third, ….
    """
    stretches = np.split(np.arange(len(times)), np.flatnonzero(np.diff(times) > 1.5 * tick_s) + 1)
    stretches = stretches[:: -(-len(stretches) // (most // 3))]
    every = max(1, -(-sum(map(len, stretches)) // most))
    while sum(-(-len(one) // every) + 1 for one in stretches) - 1 > most:
        every += 1
    parts = [part for one in stretches for part in (one[::every], [-1])]
    return np.concatenate(parts[:-1]).astype(np.int64)


def _known(value: float, digits: int) -> float | None:
    """A rounded number, or None: JSON has neither NaN nor infinity."""
    return round(value, digits) if np.isfinite(value) else None
