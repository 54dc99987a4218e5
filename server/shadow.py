"""Decodes a live stream with two decoders side by side, and scores both by the kinematics.

    python -m server.shadow    told by a line of JSON, see `Order`

Neither moves anything: the daemon goes on. Both see the same spikes at the same ticks, by the
runtime that the daemon uses; velocities are compared where the kinematics have come.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from pylsl import local_clock

from decoder.bundle import open_bundle
from decoder.errors import StreamError, VolitionError
from decoder.runtime import RuntimeSettings, open_runtime
from decoder.score import pooled_r2
from streaming.admission import Admission
from streaming.clock import Metronome
from streaming.labels import POSITION, VELOCITY, find_kinematics
from streaming.lines import say, say_problem, told_while_working
from streaming.lsl import Floats, Ints, SpikeInlet, only_stream
from streaming.sessions import velocity_of
from streaming.units import UnitMatch

TICK_S = 0.02
RESOLVE_S = 2.0
SAY_EVERY_S = 1.0
MIN_SCORED = 50
SLOWEST = 2.0  # so many times as long as asked for, and no more


class Order(msgspec.Struct, kw_only=True):
    """Two bundles, a spike stream, labels, and for how long."""

    active: str
    candidate: str
    seconds: float
    spikes: str
    kinematics: str | None


class Shadow:
    """One decoder at work on the live stream."""

    def __init__(self, path: str, inlet: SpikeInlet) -> None:
        self.runtime = open_runtime(
            open_bundle(Path(path)), epoch=local_clock(), settings=RuntimeSettings(provider="cpu")
        )
        self.runtime.warm_up()
        self._admission = Admission(self.runtime.window_s)
        self._inlet = inlet
        self._match = UnitMatch(inlet.unit_ids, self.runtime.bundle.manifest.unit_ids)
        self._began: float | None = None
        self.decoded: list[tuple[float, float, float]] = []  # time, x, y

    @property
    def window_s(self) -> float:
        return self.runtime.window_s

    @property
    def knows_units(self) -> bool:
        return self._match.n_known > 0

    def tick(self, window_end: float, times: Floats, units: Ints) -> None:
        """Take the tick's spikes, decode once the window is full."""
        if len(self._inlet.unit_ids) != self._match.n_stream:
            self._match = UnitMatch(self._inlet.unit_ids, self.runtime.bundle.manifest.unit_ids)
        self._began = window_end if self._began is None else self._began
        self.runtime.append(
            *self._admission.admit(
                times, self._match(units), window_end=window_end, now=local_clock()
            )
        )
        if window_end - self._began >= self.runtime.window_s:
            x, y = self.runtime.decode(window_end)
            self.decoded.append((window_end, float(x), float(y)))


def scores(active: Shadow, candidate: Shadow, times: Floats, velocity: Floats) -> dict[str, Any]:
    """Both R² where both have decoded and the kinematics have come."""
    both = [np.array(shadow.decoded).reshape(-1, 3) for shadow in (active, candidate)]
    ticks = np.intersect1d(both[0][:, 0], both[1][:, 0])
    ticks = ticks[(ticks >= times[0]) & (ticks <= times[-1])] if len(times) else ticks[:0]
    result: dict[str, Any] = {"candidate": None, "active": None, "seconds": len(ticks) * TICK_S}
    if len(ticks) < MIN_SCORED:
        return result
    true = np.column_stack([np.interp(ticks, times, axis) for axis in velocity.T])
    for name, shadow, decoded in zip(
        ("active", "candidate"), (active, candidate), both, strict=True
    ):
        if shadow.knows_units:
            result[name] = pooled_r2(true, decoded[np.isin(decoded[:, 0], ticks), 1:])
    return result


def run(order: Order) -> dict[str, Any]:
    """Decode for `order.seconds`; says scores every second, returns the last."""
    found = only_stream("Spikes", order.spikes, RESOLVE_S)
    kinematics = find_kinematics(order.kinematics, RESOLVE_S)
    if found is None or kinematics is None:
        missing = order.spikes if found is None else order.kinematics or "of type 'Kinematics'"
        raise StreamError(f"stream {missing} isn't there; both decoders can't be compared")
    inlet = SpikeInlet(found)
    active, candidate = Shadow(order.active, inlet), Shadow(order.candidate, inlet)
    times, values = kinematics.drain()
    metronome = Metronome(TICK_S)
    latest = scores(active, candidate, times, values[:, VELOCITY])
    said_at = time.monotonic()
    give_up_at = said_at + SLOWEST * order.seconds + max(active.window_s, candidate.window_s)
    while latest["seconds"] < order.seconds:
        if time.monotonic() > give_up_at:
            raise StreamError(
                f"{latest['seconds']:.0f} s could be compared of {order.seconds:g}; do spikes and "
                "kinematics still come?"
            )
        window_end = metronome.wait()
        spike_times, units = inlet.drain(window_end)
        for shadow in (active, candidate):
            shadow.tick(window_end, spike_times, units)
        more_times, more_values = kinematics.drain()
        times, values = np.append(times, more_times), np.append(values, more_values, axis=0)
        if time.monotonic() - said_at > SAY_EVERY_S and len(times) > 1:
            said_at = time.monotonic()
            latest = scores(active, candidate, times, _velocity(times, values))
            say(scores=latest)
    return latest


def _velocity(times: Floats, values: Floats) -> Floats:
    """(n, 2) m/s, from the positions where the stream has none."""
    velocity = values[:, VELOCITY]
    return velocity if np.isfinite(velocity).all() else velocity_of(values[:, POSITION], times)


def main() -> None:
    """Take one order, carry it out."""
    with contextlib.suppress(OSError):
        os.nice(5)
    first = next(told_while_working())
    try:
        done = run(msgspec.convert(first, Order))
    except VolitionError as error:
        say_problem(error)
    else:
        say(done=done)


if __name__ == "__main__":
    main()
