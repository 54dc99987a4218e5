"""liblsl's estimates of a sender's clock: outliers, jumps, choice of the best."""

from __future__ import annotations

import ctypes
import select
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pylsl
import pytest
from pylsl.lib import lib

from streaming.inlets.inlet import Inlet
from streaming.inlets.kinematics import KinematicsInlet, MarkerInlet
from streaming.inlets.offset import ClockOffset, Estimate
from streaming.inlets.spikes import SpikeInlet
from tests.rig import wait_for

QUICK_S = 0.0004


def estimates(*offsets: tuple[float, float]) -> list[Estimate]:
    """Measurements two seconds apart, with the given offsets and uncertainties."""
    return [
        Estimate(offset_s=offset, uncertainty_s=uncertainty, at=100.0 + 2.0 * index)
        for index, (offset, uncertainty) in enumerate(offsets)
    ]


def jumps(*offsets: tuple[float, float]) -> tuple[list[int], float]:
    """Indices of the estimates that confirm a jump, and the final offset."""
    first, *rest = estimates(*offsets)
    clock = ClockOffset(first)
    return [index for index, e in enumerate(rest, 1) if clock.add(e)], clock.offset_s


def test_a_single_outlier_is_not_a_jump_however_certain() -> None:
    good = (0.1, QUICK_S)
    assert jumps(good, (0.13, QUICK_S), good, good) == ([], 0.1)
    assert jumps(good, (0.13, 0.06), good, good) == ([], 0.1)


def test_consecutive_slow_answers_do_not_change_the_offset() -> None:
    """Each can be wrong by half of its round trip."""
    assert jumps((0.1, QUICK_S), *[(0.12, 0.05)] * 20) == ([], 0.1)


def test_a_jump_needs_confirmation_by_the_next_measurement() -> None:
    found, offset = jumps((0.1, QUICK_S), (0.1, QUICK_S), (0.13, QUICK_S), (0.1301, QUICK_S))
    assert found == [3]
    assert offset == pytest.approx(0.13, abs=1e-3)


def test_two_different_outliers_do_not_confirm_a_jump() -> None:
    assert jumps((0.1, QUICK_S), (0.13, QUICK_S), (-0.2, QUICK_S), (0.1, QUICK_S)) == ([], 0.1)


def test_the_most_certain_recent_estimate_is_used_and_drift_is_followed() -> None:
    assert jumps((0.1, 0.003), (0.1005, QUICK_S), (0.102, 0.004))[1] == 0.1005
    drifting = [(0.1 + 1e-4 * index, QUICK_S) for index in range(200)]
    found, offset = jumps(*drifting)
    assert found == []
    assert offset == pytest.approx(drifting[-1][0], abs=1e-3)


def test_a_bad_first_measurement_is_corrected() -> None:
    found, offset = jumps((0.2, 0.2), (0.1, QUICK_S), (0.1, QUICK_S))
    assert found in ([], [2])
    assert offset == pytest.approx(0.1, abs=1e-3) or found == []


class TimeService:
    """A proxy for a sender's clock, which liblsl asks over UDP.

    ahead_s: added to the sender's clock. hold_s: delay of its answers.
    """

    def __init__(self, port: int) -> None:
        self.ahead_s = self.hold_s = 0.0
        self.n_waves = 0
        self._wave = ""
        self._front, self._back = (socket.socket(type=socket.SOCK_DGRAM) for _ in range(2))
        self._front.bind(("0.0.0.0", 0))
        self._sender = ("127.0.0.1", port)
        self.port = self._front.getsockname()[1]
        self.running = True
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asker = None
        held: list[tuple[float, bytes]] = []
        while self.running:
            ready, _, _ = select.select([self._front, self._back], [], [], 0.002)
            if self._front in ready:
                request, asker = self._front.recvfrom(2048)
                self._note_wave(request)
                self._back.sendto(request, self._sender)
            if self._back in ready:
                held.append((time.monotonic() + self.hold_s, self._shifted(self._back.recv(2048))))
            while held and asker and held[0][0] <= time.monotonic():
                self._front.sendto(held.pop(0)[1], asker)

    def _note_wave(self, request: bytes) -> None:
        wave = request.decode().split("\r\n")[1].split()[0]
        self.n_waves += wave != self._wave
        self._wave = wave

    def _shifted(self, reply: bytes) -> bytes:
        wave, sent, received, answered = reply.decode().split()
        times = (float(received) + self.ahead_s, float(answered) + self.ahead_s)
        return f" {wave} {sent} {times[0]:.9f} {times[1]:.9f}".encode()

    def close(self) -> None:
        self.running = False
        self._thread.join()
        self._front.close()
        self._back.close()


def spikes() -> pylsl.StreamInfo:
    name = f"clock-{uuid.uuid4().hex[:8]}"
    return pylsl.StreamInfo(name, "SpikeEvents", 2, 0.0, pylsl.cf_int32, name)


def kinematics() -> pylsl.StreamInfo:
    name = f"clock-{uuid.uuid4().hex[:8]}"
    info = pylsl.StreamInfo(name, "Kinematics", 2, 100.0, pylsl.cf_float32, name)
    info.set_channel_labels(["pos_x", "pos_y"])
    return info


def markers() -> pylsl.StreamInfo:
    name = f"clock-{uuid.uuid4().hex[:8]}"
    return pylsl.StreamInfo(name, "Markers", 1, 0.0, pylsl.cf_string, name)


ROLES = ((spikes, SpikeInlet), (kinematics, KinematicsInlet), (markers, MarkerInlet))


@contextmanager
def behind_a_clock(
    info: pylsl.StreamInfo, opens: type[Inlet]
) -> Iterator[tuple[TimeService, Inlet]]:
    outlet = pylsl.StreamOutlet(info)
    found = wait_for("it", lambda: pylsl.resolve_byprop("name", info.name(), timeout=1.0))[0]
    xml = found.as_xml()
    port = int(xml.split("<v4service_port>")[1].split("<")[0])
    service = TimeService(port)
    xml = xml.replace(f"<v4service_port>{port}<", f"<v4service_port>{service.port}<")
    xml = xml.replace("<v4address />", "<v4address>127.0.0.1</v4address>")
    lib.lsl_streaminfo_from_xml.restype = ctypes.c_void_p
    inlet = opens(pylsl.StreamInfo(handle=lib.lsl_streaminfo_from_xml(xml.encode())))
    try:
        yield service, inlet
    finally:
        inlet.close()
        service.close()
        del outlet


@contextmanager
def every_role() -> Iterator[list[tuple[TimeService, Inlet]]]:
    """One stream of each role, each behind its own clock proxy."""
    with ExitStack() as stack:
        yield [stack.enter_context(behind_a_clock(info(), opens)) for info, opens in ROLES]


def jumped_within_waves(opened: list[tuple[TimeService, Inlet]], n_waves: int) -> list[bool]:
    """Whether each inlet reported a jump during the next `n_waves` measurements."""
    until = [service.n_waves + n_waves for service, _ in opened]
    jumped = [False] * len(opened)

    def done() -> bool:
        for index, (_, inlet) in enumerate(opened):
            inlet.drain(pylsl.local_clock())
            jumped[index] |= inlet.take_offset_jump()
        return all(s.n_waves >= n for (s, _), n in zip(opened, until, strict=True))

    wait_for("measurements", done)
    return jumped


def test_delayed_answers_do_not_change_the_offset() -> None:
    with every_role() as opened:
        before = [inlet.clock_offset_s for _, inlet in opened]
        for service, _ in opened:
            service.hold_s = 0.05
        assert jumped_within_waves(opened, 2) == [False] * 3
        for service, _ in opened:
            service.hold_s = 0.0
        assert jumped_within_waves(opened, 1) == [False] * 3
        after = [inlet.clock_offset_s for _, inlet in opened]
        assert after == pytest.approx(before, abs=0.004)


def test_a_clock_jump_is_reported_once_and_followed() -> None:
    with every_role() as opened:
        before = [inlet.clock_offset_s for _, inlet in opened]
        for service, _ in opened:
            service.ahead_s = 0.03
        assert jumped_within_waves(opened, 4) == [True] * 3
        after = [inlet.clock_offset_s + 0.03 for _, inlet in opened]
        assert after == pytest.approx(before, abs=0.004)
        assert jumped_within_waves(opened, 1) == [False] * 3
