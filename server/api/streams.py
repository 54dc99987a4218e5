"""The LSL streams on the network, and what the server would use each of them for."""

from __future__ import annotations

import threading
import time

import pylsl

from server.schemas import Stream, Use
from streaming.inlets.kinematics import KINEMATICS, MARKERS
from streaming.inlets.spikes import KINDS
from streaming.wire import messages as wire

LOOK_S = 1.0


class _Look:
    """Resolves LSL streams at most once per second, for all callers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: list[pylsl.StreamInfo] = []
        self._at = -float("inf")

    def __call__(self) -> list[pylsl.StreamInfo]:
        with self._lock:
            if time.monotonic() - self._at > LOOK_S:
                self._seen, self._at = pylsl.resolve_streams(wait_time=LOOK_S), time.monotonic()
            return self._seen


_look = _Look()


def streams(status: wire.Status | None) -> list[Stream]:
    """Every LSL stream on the network, sorted by type and name."""
    found = [
        Stream(
            name=info.name(),
            type=info.type(),
            source_id=info.source_id(),
            host=info.hostname(),
            channels=info.channel_count(),
            rate_hz=info.nominal_srate(),
            used_for=_use(info.type()),
            open=status is not None and status.stream == info.name(),
        )
        for info in _look()
    ]
    return sorted(found, key=lambda stream: (stream.type, stream.name))


def _use(kind: str) -> Use:
    if kind in KINDS:
        return "spikes"
    uses: dict[str, Use] = {KINEMATICS: "kinematics", MARKERS: "markers"}
    return uses.get(kind, "nothing")
