"""Republishes cursor frames as an LSL stream of velocity, for a rig that reads LSL.

    volition relay --name rig-velocity --rate 50

Samples are sent at a regular rate. Each is the mean velocity of the frames since the last sample.
If none arrived, it is the newest frame's velocity. It is zero if the newest frame isn't `valid`
or is older than `stale_s`.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Self

import pylsl

from clients.subscriber import CursorSubscriber
from decoder.errors import SettingsError
from streaming.clock import Metronome
from streaming.signals import stop_on_signal
from streaming.wire.messages import DEFAULT_ADDRESS

TYPE = "CursorVelocity"  # not `Kinematics`, or a decoder could be calibrated on its own output
LABELS = ("vel_x", "vel_y")
STILL = (0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class RelaySettings:
    """Settings of a relay.

    address: ZeroMQ address of the daemon. name: name of the LSL stream (float32, m/s).
    rate_hz: samples per second. stale_s: older frames count as zero velocity.
    """

    name: str
    address: str = DEFAULT_ADDRESS
    rate_hz: float = 50.0
    stale_s: float = 0.1

    def __post_init__(self) -> None:
        for name in ("rate_hz", "stale_s"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} {getattr(self, name)}; expected more than 0")


class Relay:
    """A context manager with an open subscriber and outlet; `serve` relays."""

    def __init__(self, settings: RelaySettings) -> None:
        self.settings = settings
        self.should_stop = False
        self._velocity = STILL

    def __enter__(self) -> Self:
        self._cursor = CursorSubscriber(self.settings.address, max_age_s=self.settings.stale_s)
        self._outlet = pylsl.StreamOutlet(_info(self.settings))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._cursor.close()
        del self._outlet

    def serve(self) -> None:
        """Relay until SIGINT or SIGTERM."""
        metronome = Metronome(1.0 / self.settings.rate_hz)
        with stop_on_signal(self):
            while not self.should_stop:
                now = metronome.wait()
                self._outlet.push_sample(self.velocity(), now)

    def velocity(self) -> tuple[float, float]:
        """The velocity of the next sample, m/s."""
        arrived = []
        while (frame := self._cursor.receive(timeout_s=0.0)) is not None:
            arrived.append(frame)
        if arrived:
            x, y = (
                sum(frame.velocity[axis] for frame in arrived) / len(arrived) for axis in (0, 1)
            )
            self._velocity = (x, y) if arrived[-1].valid else STILL
        return STILL if self._cursor.is_stale(self.settings.stale_s) else self._velocity


def _info(settings: RelaySettings) -> pylsl.StreamInfo:
    source_id = f"volition-relay-{settings.name}"
    info = pylsl.StreamInfo(settings.name, TYPE, 2, settings.rate_hz, pylsl.cf_float32, source_id)
    info.set_channel_labels(list(LABELS))
    info.set_channel_units(["m/s"] * 2)
    return info
