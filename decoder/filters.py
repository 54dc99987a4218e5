"""Output filters of the decoded velocity: bias, gain, smoothing, dead zone, limits, in this order.

All are off by default, and a filter that is off keeps no state. The limits come last and are never
exceeded, except that the cursor stops at once when decoding stops.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from decoder.errors import SettingsError

Velocity = tuple[float, float]

FAST_PERCENTILE = 66.0  # of recent speeds; faster velocities estimate the bias
REMEMBER_S = 60.0  # of speeds for the percentile
NOTE_EVERY_S = 0.05
RANK_EVERY_S = 1.0
MIN_REMEMBERED = 200

LIMITS = {  # minimum and maximum of each setting
    "gain": (0.0, 100.0),
    "smoothing_s": (0.0, 10.0),
    "dead_zone": (0.0, 10.0),
    "speed_limit": (0.0, 100.0),
    "acceleration_limit": (0.01, 1000.0),
    "bias_s": (1.0, 3600.0),
}


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Settings of the output filters. Raises SettingsError if one is out of range.

    gain: factor applied to the velocity.
    smoothing_s: time constant of the exponential moving average, s; 0 for no smoothing.
    dead_zone: speed below which the velocity is set to zero, m/s.
    speed_limit: maximum speed, m/s; None for no limit.
    acceleration_limit: maximum change of velocity between ticks, m/s²; None for no limit.
    bias_s: time constant, s, of the running mean of velocities above the 66th percentile of speed,
        which is subtracted as bias (after Jarosiewicz et al. 2015); None for no correction.
    """

    gain: float = 1.0
    smoothing_s: float = 0.0
    dead_zone: float = 0.0
    speed_limit: float | None = None
    acceleration_limit: float | None = None
    bias_s: float | None = None

    def __post_init__(self) -> None:
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:  # NaN is in no range
                raise SettingsError(f"{name} {value}; expected {least:g} to {most:g}")


class OutputFilters:
    """Filters one velocity per tick.

    tick_s: seconds between ticks.
    """

    def __init__(self, settings: Filters, *, tick_s: float) -> None:
        self.settings = settings
        self.bias: Velocity = (0.0, 0.0)
        self._tick_s = tick_s
        self._smoothed: Velocity | None = None
        self._last: Velocity = (0.0, 0.0)  # published
        self._speeds = np.empty(round(REMEMBER_S / NOTE_EVERY_S))
        self._n_speeds = 0
        self._fast = math.inf
        self._note_in = self._rank_in = 0.0

    def __call__(self, velocity: Velocity) -> Velocity:
        """The velocity (x, y) to publish, m/s."""
        given, (x, y) = self.settings, velocity
        if given.bias_s is None:
            self.forget_bias()
        else:
            x, y = x - self.bias[0], y - self.bias[1]
            self._learn_bias(x, y, self._tick_s / given.bias_s)
        x, y = given.gain * x, given.gain * y
        if given.smoothing_s > 0:
            x, y = self._smooth(x, y, math.exp(-self._tick_s / given.smoothing_s))
        else:
            self._smoothed = None
        if math.hypot(x, y) < given.dead_zone:
            x, y = 0.0, 0.0
        x, y = _within(given.speed_limit, x, y)
        if given.acceleration_limit is not None:
            most = given.acceleration_limit * self._tick_s
            dx, dy = _within(most, x - self._last[0], y - self._last[1])
            x, y = self._last[0] + dx, self._last[1] + dy
            x, y = _within(given.speed_limit, x, y)  # the limit may have been lowered
        self._last = x, y
        return x, y

    def interrupt(self) -> None:
        """Decoding stopped: restart from zero velocity. The bias is kept."""
        self._smoothed = None
        self._last = 0.0, 0.0

    def forget_bias(self) -> None:
        """Forget the bias and the speeds, which belong to the previous decoder."""
        self.bias = (0.0, 0.0)
        self._n_speeds, self._fast = 0, math.inf
        self._note_in = self._rank_in = 0.0

    def _smooth(self, x: float, y: float, keep: float) -> Velocity:
        if self._smoothed is not None:
            x = keep * self._smoothed[0] + (1 - keep) * x
            y = keep * self._smoothed[1] + (1 - keep) * y
        self._smoothed = x, y
        return x, y

    def _learn_bias(self, x: float, y: float, rate: float) -> None:
        """Move the bias until the mean of fast velocities, bias subtracted, is zero.

        Raw velocities won't do: those along the bias are fast, so their mean exceeds the bias.
        """
        speed = math.hypot(x, y)
        self._note_in -= self._tick_s
        if self._note_in <= 0:
            self._note_in += NOTE_EVERY_S
            self._speeds[self._n_speeds % len(self._speeds)] = speed
            self._n_speeds += 1
        self._rank_in -= self._tick_s
        if self._rank_in <= 0 and self._n_speeds >= MIN_REMEMBERED:
            self._rank_in += RANK_EVERY_S
            known = self._speeds[: min(self._n_speeds, len(self._speeds))]
            self._fast = float(np.percentile(known, FAST_PERCENTILE))
        if speed > self._fast:
            self.bias = self.bias[0] + rate * x, self.bias[1] + rate * y


def _within(limit: float | None, x: float, y: float) -> Velocity:
    """A vector of the same direction, no longer than `limit`."""
    length = math.hypot(x, y)
    if limit is None or length <= limit:
        return x, y
    return x * limit / length, y * limit / length
