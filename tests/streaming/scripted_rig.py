"""A ticker on a scripted clock and stream, which checks the promises of every valid frame."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from decoder.bundles.bundle import Bundle
from decoder.runtimes.base import FUTURE_S, Runtime
from streaming.daemon.settings import DaemonSettings
from streaming.daemon.tick import Ticker
from streaming.inlets.spikes import StreamQuery
from streaming.wire import messages as wire
from streaming.wire.states import State

TICK_S = 0.02
STALE_S = 0.25
EPS = 1e-6


class Clock:
    """A clock that the script moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class ScriptedInlet:
    """A `SpikeInlet` for the daemon; the next tick drains `waiting`."""

    unit_ids: list[str]
    regular: bool = False
    name: str = "scripted"
    clock_offset_s: float = 0.0
    n_drained: int = 0
    n_overflows: int = 0
    bin_ends: np.ndarray | None = None
    jumped: bool = False
    breaks: Exception | None = None
    waiting: list[tuple[float, int]] = field(default_factory=list)
    bins: list[float] = field(default_factory=list)

    def drain(self, now: float) -> tuple[np.ndarray, np.ndarray]:
        if self.breaks is not None:
            raise self.breaks
        events, self.waiting = self.waiting, []
        if self.regular:
            self.bin_ends, self.bins = np.array(self.bins), []
        self.n_drained += len(events)
        return (
            np.array([time for time, _ in events], dtype=np.float64),
            np.array([unit for _, unit in events], dtype=np.int64),
        )

    def take_offset_jump(self) -> bool:
        jumped, self.jumped = self.jumped, False
        return jumped


class ScriptedConnector:
    """A connector that finds `next`, once."""

    def __init__(self) -> None:
        self.query = StreamQuery()
        self.bundle_units: tuple[str, ...] = ()
        self.problem: str | None = None
        self.next: ScriptedInlet | None = None

    def tend(self, inlet: ScriptedInlet | None, now: float) -> ScriptedInlet | None:
        found, self.next = self.next, None
        return found

    def leave(self, inlet: ScriptedInlet) -> None:
        pass


class Rig:
    """A ticker with its script, and the signs of life that may make a frame valid."""

    def __init__(self, bundle: Bundle, *, regular: bool = False) -> None:
        self.clock = Clock()
        self.regular = regular
        self.ticker = Ticker(
            bundle,
            DaemonSettings(
                tick_ms=1e3 * TICK_S, address="tcp://127.0.0.1:*", realtime=False,
                stale_after_ms=1e3 * STALE_S, provider="cpu",
            ),
            clock=self.clock,
        )  # fmt: skip
        self.units = bundle.manifest.unit_ids
        self.connector = ScriptedConnector()
        self.ticker.connector = self.connector  # type: ignore[assignment]
        self.frames: list[wire.CursorFrame] = []
        self.ticker.publisher.send = self.frames.append  # type: ignore[method-assign]
        self.signs: list[tuple[float, int]] = []  # time and unit of each sign of life
        self.broken_at = -math.inf
        self.slow_s = 0.0
        self.output: object = None  # replaces the decoder's velocity
        self.rng = np.random.default_rng(0)
        self._wrap(self.ticker.runtime)
        self.connect()

    def _wrap(self, runtime: Runtime) -> None:
        decode = runtime.decode

        def scripted(window_end: float) -> np.ndarray:
            velocity = decode(window_end)
            self.clock.now += self.slow_s
            if isinstance(self.output, Exception):
                raise self.output
            return velocity if self.output is None else np.array([self.output, 0.0])

        runtime.decode = scripted  # type: ignore[method-assign]

    def connect(self) -> None:
        if self.ticker.inlet is None:
            bins = np.empty(0) if self.regular else None
            self.connector.next = ScriptedInlet(
                [*self.units, "stranger"], regular=self.regular, bin_ends=bins
            )
            self.broken_at = self.clock.now

    @property
    def inlet(self) -> ScriptedInlet | None:
        return self.ticker.inlet or self.connector.next  # type: ignore[return-value]

    def knows(self, unit: int) -> bool:
        return [*self.units, "stranger"][unit] in self.ticker.bundle.manifest.unit_ids

    def send(self, *times: float, unit: int | None = None) -> None:
        """Add spikes, and the ends of bins of counts, that arrive before the next tick."""
        if self.inlet is None:
            return
        for time in times:
            chosen = int(self.rng.integers(len(self.units))) if unit is None else unit
            self.inlet.waiting.append((time, chosen))
            if self.regular:
                self.inlet.bins.append(time)

    def tick(self, n_ticks: int = 1) -> wire.CursorFrame:
        for _ in range(n_ticks):
            self.clock.now = window_end = self.clock.now + TICK_S
            self._note(window_end)
            before = self.ticker.fault
            self.ticker.tick(window_end)
            if self.ticker.fault is not None and before is not self.ticker.fault:
                self.broken_at = max(self.broken_at, window_end)
            self._check(self.frames[-1])
        return self.frames[-1]

    def live(self, seconds: float) -> wire.CursorFrame:
        """Send two spikes per tick, in time."""
        for _ in range(math.ceil(seconds / TICK_S)):
            self.send(self.clock.now + 0.012, self.clock.now + 0.015)
            self.tick()
        return self.frames[-1]

    def _note(self, window_end: float) -> None:
        """Record the signs of life that this tick will admit."""
        if self.inlet is None or self.inlet.breaks is not None:
            return
        if self.inlet.jumped:
            self.broken_at = window_end
        oldest = window_end - self.ticker.runtime.window_s
        came = [(time, 0) for time in self.inlet.bins] if self.regular else self.inlet.waiting
        self.signs = [sign for sign in self.signs if sign[0] > oldest - 1.0] + [
            (time, unit)
            for time, unit in came
            if math.isfinite(time) and time != 0 and oldest <= time <= window_end + FUTURE_S
        ]

    def _check(self, frame: wire.CursorFrame) -> None:
        assert frame.valid == (frame.state == State.DECODING)
        assert all(map(math.isfinite, frame.velocity))
        speed = math.hypot(*frame.velocity)
        if not frame.valid:
            assert speed == 0.0
            return
        given = self.ticker.filters.settings
        assert speed <= min(5.0, given.speed_limit or math.inf) + EPS
        assert self.ticker.paused is None
        published = frame.published
        assert published - frame.window_end <= STALE_S + EPS
        signs = sorted(
            time
            for time, unit in self.signs
            if self.broken_at - EPS <= time <= frame.window_end
            if self.regular or self.knows(unit)
        )
        start = frame.window_end - self.ticker.runtime.window_s
        assert signs, "no admitted spike since the last break"
        assert signs[0] <= start + EPS, "the window is not full"
        assert published - signs[-1] <= STALE_S + EPS, "the newest spike is old"
        gaps = np.diff([time for time in signs if time >= start - STALE_S])
        assert len(gaps) == 0 or gaps.max() <= STALE_S + EPS, "a gap in the window"
        if given.acceleration_limit is not None and len(self.frames) > 1:
            before = self.frames[-2]
            rested = frame.window_end - before.window_end > STALE_S + TICK_S
            (x0, y0), (x, y) = (0.0, 0.0) if rested else before.velocity, frame.velocity
            step = math.hypot(x - x0, y - y0)
            assert step <= given.acceleration_limit * TICK_S + EPS, "a jump"

    def close(self) -> None:
        self.ticker.publisher.close()
