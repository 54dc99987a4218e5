"""One tick: drain the stream, decode, publish a frame.

A frame leaves at every tick, and its `state` and `valid` tell whether its velocity may be trusted.
Inside a tick there is no logging, no lock, no file and no event loop.
"""

from __future__ import annotations

from math import hypot

from pylsl import local_clock

from decoder.arrays import Floats, Ints
from decoder.bundles.bundle import Bundle
from decoder.errors import StreamError, brief
from decoder.filters import OutputFilters, Velocity
from decoder.runtimes.base import Runtime, RuntimeSettings, open_runtime
from streaming.clock import Clock
from streaming.daemon.health import TickHealth
from streaming.daemon.recent import RecentSpikes
from streaming.daemon.settings import DaemonSettings
from streaming.daemon.swap import Loader, check_tick
from streaming.inlets.admission import Admission
from streaming.inlets.spikes import SpikeConnector, SpikeInlet, StreamQuery
from streaming.priority import before_others
from streaming.units import UnitMatch
from streaming.wire import messages as wire
from streaming.wire.publish import Publisher
from streaming.wire.states import NEVER, State, StreamWatch

ZERO = (0.0, 0.0)
BROKEN_M_S = 1000.0  # a decoder that gives more is broken, whatever limits its output has


class Ticker:
    """A decoder, the stream it reads, the socket it publishes on: everything that a tick uses.

    Raises ProviderError, BundleError or SettingsError at construction, never later: a lost stream
    is a state, not an error.
    """

    def __init__(
        self, bundle: Bundle, settings: DaemonSettings, *, clock: Clock = local_clock
    ) -> None:
        self.settings = settings
        self._clock = clock
        self.runtime = open_runtime(
            bundle,
            epoch=self._clock(),
            settings=RuntimeSettings(
                provider=settings.provider,
                require_provider=settings.require_provider,
                threads=settings.threads,
            ),
        )
        check_tick(self.runtime, settings.tick_ms / 1e3)
        self.loader = Loader(tick_s=settings.tick_ms / 1e3)
        self.previous: Runtime | None = None
        self.filters = OutputFilters(settings.filters, tick_s=settings.tick_ms / 1e3)
        with before_others(settings.realtime):
            self.publisher = Publisher(settings.address, tick_s=settings.tick_ms / 1e3)
        self.state = State.WARMING
        self.admission = Admission(self.runtime.window_s)
        self.watch = StreamWatch(
            unbroken_s=self.runtime.window_s, stale_after_s=settings.stale_after_ms / 1000.0
        )
        self.health = TickHealth()
        self.connector = SpikeConnector(
            StreamQuery(kind=settings.stream_type, name=settings.stream_name),
            bundle.manifest.unit_ids,
            min_known_share=settings.min_known_share,
        )
        self.inlet: SpikeInlet | None = None
        self.match = UnitMatch((), bundle.manifest.unit_ids)
        self.recent = RecentSpikes()
        self.should_stop = False
        self.n_frames = 0
        self._n_drained_before = 0
        self._n_inlet_overflows_before = 0
        self.n_offset_jumps = 0
        self.started = self._clock()
        self.detail = ""
        self.fault: str | None = None  # what is wrong; None once a decode is a velocity again
        self._overfull = NEVER  # when spikes of the window were last left out
        self._last_tick = NEVER
        self.paused = settings.paused

    @property
    def bundle(self) -> Bundle:
        """Of the decoder in use."""
        return self.runtime.bundle

    @property
    def n_drained(self) -> int:
        """Events taken off the stream since the start."""
        return self._n_drained_before + (self.inlet.n_drained if self.inlet else 0)

    @property
    def n_inlet_overflows(self) -> int:
        """Times that LSL's own buffer was full when it was drained."""
        return self._n_inlet_overflows_before + (self.inlet.n_overflows if self.inlet else 0)

    @property
    def is_overfull(self) -> bool:
        """Whether spikes of the last tick's window were left out because the ring was full."""
        return self._last_tick - self._overfull <= self.runtime.window_s

    def tick(self, window_end: float) -> None:
        """Drain the stream, decode at `window_end` (LSL clock, s), publish one frame."""
        if window_end - self._last_tick > self.watch.stale_after_s + self.settings.tick_ms / 1e3:
            self.filters.interrupt()  # no frame came for so long: whoever moves has stopped
        self._last_tick = window_end
        self._drain(window_end)
        self.state = self.watch.judge(window_end)
        decode_from = self._clock()
        velocity = ZERO
        if self.state is State.DECODING and (self.paused is None or self.fault is not None):
            velocity = self._decode(window_end)
        if self.fault is not None and self.state in (State.WARMING, State.DECODING):
            self.state = State.FAULT  # until a decode is a velocity again, in a pause too
        if self.paused is not None:
            self.state = State.PAUSED
        published = self._clock()
        if self.state is State.DECODING and self._is_late(window_end, published):
            self.state = State.STALE
        if self.state is not State.DECODING:
            velocity = ZERO
            self.filters.interrupt()
        self.publisher.send(self.frame(window_end, velocity, decode_from, published))
        self.publisher.see_subscribers()
        self.n_frames += 1
        self.health.tick((published - window_end) * 1e3)

    def _is_late(self, window_end: float, published: float) -> bool:
        """Whether the tick stalled so long that what it decoded is old when it leaves."""
        oldest = max(published - window_end, self.watch.age_s(published))
        return oldest > self.watch.stale_after_s

    def _decode(self, window_end: float) -> Velocity:
        """Velocity in m/s; what can't be one is a fault, and zero."""
        try:
            x, y = (float(value) for value in self.runtime.decode(window_end))
        except Exception as error:  # ONNX Runtime's have no base class
            return self._fail(f"the decoder failed ({named(error)})", window_end)
        if not hypot(x, y) <= BROKEN_M_S:  # so that NaN is caught
            problem = f"the decoder gave {x:g}, {y:g} m/s, which is no velocity; check the bundle"
            return self._fail(problem, window_end)
        bias = self.filters.bias
        velocity = self.filters((x, y))
        speed, limit = hypot(*velocity), self.settings.fault_speed
        if not speed <= limit:
            self.filters.bias = bias  # nothing is learned from it
            problem = f"{speed:g} m/s after the filters, plausible are at most {limit:g}"
            return self._fail(f"{problem} (--fault-speed); check the bundle and gain", window_end)
        self.fault = None
        return velocity

    def _fail(self, problem: str, window_end: float) -> Velocity:
        """Stand still and begin anew: a state that is no number would never be one again."""
        self.fault = problem
        self.runtime.reset()
        self.watch.refill(window_end)
        return ZERO

    def _drain(self, window_end: float) -> None:
        """Move what waits on the stream into the decoder's ring."""
        self._connect(window_end)
        if self.inlet is None:
            return
        try:
            before = self.inlet.n_drained
            times, stream_units = self.inlet.drain(window_end)
        except StreamError as error:
            self._lose_stream(str(error), window_end)
            return
        except Exception as error:  # liblsl's RuntimeError, or whatever else comes out of it
            self._lose_stream(f"{self.inlet.name!r} can't be read: {named(error)}", window_end)
            return
        if self.inlet.take_offset_jump():  # old spikes' times are on another clock
            self.n_offset_jumps += 1
            self._begin_anew()
            self.watch.refill(window_end)
        if n_events := self.inlet.n_drained - before:
            self.health.drained(n_events, times, window_end)
        try:
            self._take(times, stream_units, window_end)
        except Exception as error:  # nothing that arrives may end the daemon
            self._fail(f"spikes can't be taken in ({named(error)})", window_end)

    def _take(self, times: Floats, stream_units: Ints, window_end: float) -> None:
        """Give the decoder what it may see, and the watch its signs of life."""
        assert self.inlet is not None
        if len(self.inlet.unit_ids) != self.match.n_stream:
            self.match = UnitMatch(self.inlet.unit_ids, self.bundle.manifest.unit_ids)
        self.recent.append(times, stream_units, now=window_end)
        now = self._clock()
        times, unit_index = self.admission.admit(
            times, self.match(stream_units), window_end=window_end, now=now
        )
        n_overflowed = self.runtime.n_overflowed
        self.runtime.append(times, unit_index)
        if self.runtime.n_overflowed > n_overflowed:  # the window has holes now
            self._overfull = window_end
            self.watch.refill(window_end)
        bins = self.inlet.bin_ends
        if bins is None:  # silence of spikes is no sign of life, an empty bin is one
            self.watch.see(times, now)
        else:
            self.watch.see(self.admission.admit_bins(bins, window_end=window_end, now=now), now)

    def _connect(self, window_end: float) -> None:
        """Take an inlet that was opened: the first, or one in place of an inlet that is silent."""
        opened = self.connector.tend(self.inlet, window_end)
        if opened is None:
            return
        if self.inlet is not None:
            self._lose_stream("", window_end)
        self.inlet = opened
        self.match = UnitMatch(opened.unit_ids, self.bundle.manifest.unit_ids)
        self.watch.forget(window_end)
        self.detail = ""

    def _begin_anew(self) -> None:
        """Spikes that came don't belong with those that come."""
        self.runtime.reset()
        self.recent.clear()
        self.admission.forget()

    def _lose_stream(self, why: str, window_end: float) -> None:
        """The stream's sender went away: forget it and look again.

        A sender that comes back may bring other units, so it is opened and read anew.
        """
        assert self.inlet is not None
        self._n_drained_before += self.inlet.n_drained
        self._n_inlet_overflows_before += self.inlet.n_overflows
        self.connector.leave(self.inlet)
        self.inlet = None
        self.detail = why
        self._begin_anew()
        self.watch.forget(window_end)

    def read_from(self, query: StreamQuery, window_end: float) -> None:
        """Leave the stream that is read, if any, and look for another; the same one is kept."""
        if query == self.connector.query:
            return
        self.connector.query = query
        if self.inlet is not None:
            self._lose_stream("", window_end)

    def frame(
        self,
        window_end: float,
        velocity: tuple[float, float],
        decode_from: float,
        published: float,
    ) -> wire.CursorFrame:
        """The frame of a tick, numbered with the frames sent so far."""
        inlet, manifest = self.inlet, self.bundle.manifest
        return wire.CursorFrame(
            schema=wire.SCHEMA_VERSION,
            started=self.started,
            seq=self.n_frames,
            session=manifest.session_id,
            decoder=manifest.decoder_id,
            state=self.state.value,
            valid=self.state is State.DECODING,
            window_end=window_end,
            newest_spike=self.admission.newest,
            decode_ms=(published - decode_from) * 1e3,
            published=published,
            velocity=velocity,
            n_spikes=self.runtime.n_spikes if self.state is State.DECODING else 0,
            n_drained=self.n_drained,
            clock_offset=inlet.clock_offset_s if inlet else 0.0,
            latency_ms=(published - window_end) * 1e3,
        )


def named(error: Exception) -> str:
    """One line of an error that Volition doesn't raise itself."""
    return brief(f"{type(error).__name__}: {error}", 200)
