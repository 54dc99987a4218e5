"""Decodes a live stream with two decoders side by side and compares both with the kinematics.

    python -m server.calibration.shadow    takes one line of JSON, see `Order`

Neither decoder moves anything; the daemon goes on decoding. Both get the same spikes at the same
ticks, through the daemon's own runtime, and are compared where there are kinematics. The comparison
ends once the gate can decide, and takes up to four times the requested seconds.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Set
from pathlib import Path

import msgspec
import numpy as np
from pylsl import local_clock

from decoder.arrays import Bools, Floats, Ints
from decoder.bundles.bundle import open_bundle
from decoder.errors import StreamError, VolitionError
from decoder.gate import Evidence, decide
from decoder.runtimes.onnx import RuntimeSettings
from decoder.runtimes.opening import open_runtime
from server.calibration.driven import FRAME, DaemonFrames, Driving
from streaming.clock import Metronome
from streaming.columns import POSITION, VELOCITY
from streaming.inlets.admission import Admission
from streaming.inlets.inlet import Inlet
from streaming.inlets.kinematics import KinematicsInlet, find_kinematics
from streaming.inlets.spikes import SPIKES, SpikeInlet, StreamKind, StreamQuery, find_spikes
from streaming.sessions.intervals import continuous_domain, within
from streaming.sessions.kinematics import velocity_of
from streaming.units import NONE, UnitMatch
from streaming.wire.lines import parent_messages_or_exit, send, send_problem

TICK_S = 0.02
RESOLVE_S, OPEN_S = 2.0, 20.0
SENDS_WITHIN_S = 2.0  # after a stream was opened; a silent one is searched for again
REPORT_EVERY_S = 1.0
LONGEST_STEP_S = 0.25  # longest step between compared ticks, on a machine that skips some
LOOKS = (1.0, 2.0, 4.0)  # multiples of the requested seconds at which it may end
SLOWEST = 8.0  # time limit in multiples of the requested seconds: busy machine, gaps in labels
START_S = 60.0  # added to the time limit for starting up
SILENT_S = 30.0  # gives up after this long without new data to compare


class Order(msgspec.Struct, kw_only=True):
    """Two bundles, a spike stream, a stream of labels, and the number of seconds.

    frames: address of the daemon's frames, to detect whether the daemon moves the cursor.
    held_out: `Evidence.as_lists` of the cross-validation, which counts in the decision.
    excluded: ids of units that neither decodes.
    """

    active: str
    candidate: str
    seconds: float
    spikes: str
    spikes_kind: StreamKind = SPIKES
    kinematics: str | None
    frames: str | None = None
    held_out: dict[str, list[float] | None] | None = None
    excluded: list[str] = []


class Shadow:
    """One decoder on the live stream."""

    def __init__(self, path: str, inlet: SpikeInlet, excluded: Set[str] = NONE) -> None:
        self.runtime = open_runtime(
            open_bundle(Path(path)), epoch=local_clock(), settings=RuntimeSettings(provider="cpu")
        )
        self.runtime.warm_up()
        self._admission = Admission(self.runtime.window_s)
        self._inlet, self._excluded = inlet, excluded
        self._match = self._matched()
        self._began: float | None = None
        self.decoded: list[tuple[float, float, float]] = []  # time, x, y

    @property
    def window_s(self) -> float:
        return self.runtime.window_s

    @property
    def knows_units(self) -> bool:
        return self._match.n_used > 0

    def _matched(self) -> UnitMatch:
        bundle_units = self.runtime.bundle.manifest.unit_ids
        return UnitMatch(self._inlet.unit_ids, bundle_units, self._excluded)

    def tick(self, window_end: float, times: Floats, units: Ints) -> None:
        """Append the tick's spikes, and decode once the window is full."""
        if len(self._inlet.unit_ids) != self._match.n_stream:
            self._match = self._matched()
        self._began = window_end if self._began is None else self._began
        self.runtime.append(
            *self._admission.admit(
                times, self._match(units), window_end=window_end, now=local_clock()
            )
        )
        if window_end - self._began >= self.runtime.window_s:
            x, y = self.runtime.decode(window_end)
            self.decoded.append((window_end, float(x), float(y)))


class Labels:
    """The kinematics and the daemon's frames, as they arrive."""

    def __init__(self, inlet: KinematicsInlet, frames: str | None) -> None:
        self._inlet, self._daemon = inlet, DaemonFrames(frames)
        self._times, self._values = inlet.drain()
        self._frames = np.empty(0, dtype=FRAME)

    def poll(self) -> None:
        """Take everything that has arrived."""
        times, values = self._inlet.drain()
        self._times = np.append(self._times, times)
        self._values = np.append(self._values, values, axis=0)
        frames, _ = self._daemon.drain()
        self._frames = np.append(self._frames, frames)

    def velocity_at(self, ticks: Floats) -> tuple[Floats, Bools]:
        """Velocity (n, 2) in m/s at each tick, and a mask (n,) of the ticks that can be scored.

        Ticks outside the kinematics or in a gap can't be scored. Nor can ticks at which the daemon
        moves the cursor: that velocity is the active decoder's own.
        """
        times, first = np.unique(self._times, return_index=True)
        if len(times) < 2:
            return np.zeros((len(ticks), 2)), np.zeros(len(ticks), dtype=bool)
        velocity = _velocity(times, self._values[first])
        at = np.column_stack([np.interp(ticks, times, axis) for axis in velocity.T])
        after = np.searchsorted(times, ticks).clip(1, len(times) - 1)
        driving = Driving(
            times=self._frames["time"], velocity=self._frames["velocity"],
            gain_times=np.empty(0), gains=np.empty(0),
        )  # fmt: skip
        usable = within(ticks, continuous_domain(times)) & np.isfinite(at).all(axis=1)
        return at, usable & ~driving.drove(times, velocity)[after]


def compare(active: Shadow, candidate: Shadow, labels: Labels) -> Evidence:
    """The errors of both decoders at the labelled ticks that both have decoded."""
    both = [np.array(shadow.decoded).reshape(-1, 3) for shadow in (active, candidate)]
    ticks = np.intersect1d(both[0][:, 0], both[1][:, 0])
    true, usable = labels.velocity_at(ticks)
    ticks, true = ticks[usable], true[usable]
    if len(ticks) < 2:
        return Evidence.none()
    first, second = (decoded[np.isin(decoded[:, 0], ticks), 1:] for decoded in both)
    steps = np.diff(ticks)  # a busy machine skips ticks; the time between counts all the same
    covered_s = float(steps[steps <= LONGEST_STEP_S].sum())
    return Evidence.of(
        true, second, first if active.knows_units else None, tick_s=covered_s / len(ticks)
    )


def opened(order: Order) -> tuple[SpikeInlet, KinematicsInlet]:
    """Open both streams, with retries for `OPEN_S`: on a busy machine senders answer slowly."""
    give_up_at = time.monotonic() + OPEN_S
    while True:
        try:
            return _opened_once(order)
        except StreamError:
            if time.monotonic() > give_up_at:
                raise
            send(phase="opening streams and decoders")


def _opened_once(order: Order) -> tuple[SpikeInlet, KinematicsInlet]:
    spikes = find_spikes(StreamQuery(kind=order.spikes_kind, name=order.spikes), RESOLVE_S)
    if spikes is None:
        raise _missing(order.spikes)
    kinematics: KinematicsInlet | None = None
    try:
        kinematics = find_kinematics(order.kinematics, RESOLVE_S)
        if kinematics is None:
            raise _missing(order.kinematics or "of type 'Kinematics'")
        for inlet in (spikes, kinematics):
            _check_sends(inlet)
    except StreamError:
        spikes.close()
        if kinematics is not None:
            kinematics.close()
        raise
    return spikes, kinematics


def _check_sends(inlet: Inlet) -> None:
    """Raise StreamError if a stream is silent: on a busy machine, one that a crashed sender left
    may answer before the one that sends."""
    deadline = time.monotonic() + SENDS_WITHIN_S
    while not inlet.has_samples:
        if time.monotonic() > deadline:
            raise StreamError(f"stream {inlet.name!r} is open, but sends nothing; is it paused?")
        time.sleep(TICK_S)


def _missing(stream: str) -> StreamError:
    return StreamError(f"no stream {stream} to compare the decoders on; start it, then try again")


def run(order: Order) -> Evidence:
    """Compare for `order.seconds`, and longer while the gate is undecided.

    Sends its evidence every second and returns the last. Raises StreamError if nothing could be
    compared.
    """
    send(phase="opening streams and decoders")
    inlet, kinematics = opened(order)
    excluded = frozenset(order.excluded)
    active, candidate = (Shadow(p, inlet, excluded) for p in (order.active, order.candidate))
    labels, metronome = Labels(kinematics, order.frames), Metronome(TICK_S)
    held_out = Evidence.from_lists(order.held_out) if order.held_out else Evidence.none()
    looks = [order.seconds * factor for factor in LOOKS]
    evidence, reported_at = Evidence.none(), time.monotonic()
    progressed_at, end_at = reported_at, reported_at + SLOWEST * order.seconds + START_S
    while time.monotonic() < end_at:
        window_end = metronome.wait()
        spike_times, units = inlet.drain(window_end)
        for shadow in (active, candidate):
            shadow.tick(window_end, spike_times, units)
        labels.poll()
        if (now := time.monotonic()) - reported_at <= REPORT_EVERY_S:
            continue
        reported_at, before_s = now, evidence.compared_s
        evidence = compare(active, candidate, labels)
        send(evidence=evidence.as_lists())
        progressed_at = now if evidence.compared_s > before_s else progressed_at
        if now - progressed_at > SILENT_S:
            break
        while looks and evidence.compared_s >= looks[0]:
            looks.pop(0)
            if not looks or decide(held_out, evidence).answer != "undecided":
                return evidence
    if not len(evidence.seconds):
        raise StreamError(
            f"none of {order.seconds:g} s could be compared; check that spikes and kinematics "
            "still arrive, and that something other than the daemon moves the cursor"
        )
    return evidence


def _velocity(times: Floats, values: Floats) -> Floats:
    """Velocity (n, 2) in m/s, derived from the positions if the stream has none."""
    velocity = values[:, VELOCITY]
    return velocity if np.isfinite(velocity).all() else velocity_of(values[:, POSITION], times)


def main() -> None:
    """Read one order and carry it out."""
    with contextlib.suppress(OSError):
        os.nice(5)
    first = next(parent_messages_or_exit())
    try:
        done = run(msgspec.convert(first, Order))
    except VolitionError as error:
        send_problem(error)
    else:
        send(done=done.as_lists())


if __name__ == "__main__":
    main()
