"""One tick: drain the stream, decode, publish a frame.

Every tick publishes a frame. Its `state` and `valid` tell whether the velocity can be trusted.
A tick doesn't log, lock, touch a file or wait for an event loop.
"""

from __future__ import annotations

from collections.abc import Set
from math import hypot

from pylsl import local_clock

from decoder.arrays import Floats, Ints
from decoder.bundles.bundle import Bundle
from decoder.errors import StreamError, brief
from decoder.filters import OutputFilters, Velocity
from decoder.runtimes.base import Runtime
from decoder.runtimes.onnx import RuntimeSettings
from decoder.runtimes.opening import open_runtime
from streaming.clock import Clock
from streaming.daemon.health import TickHealth
from streaming.daemon.recent import KEEP_S, SETTLED_S, RecentSpikes
from streaming.daemon.settings import DaemonSettings
from streaming.daemon.swap import Loader, check_tick
from streaming.inlets.admission import Admission
from streaming.inlets.spikes import SpikeConnector, SpikeInlet, StreamQuery
from streaming.inlets.unit_watch import UnitWatch
from streaming.priority import before_others
from streaming.units import UnitMatch
from streaming.wire import messages as wire
from streaming.wire.messages import ZERO
from streaming.wire.publish import Publisher
from streaming.wire.states import NEVER, State, StreamWatch

BROKEN_M_S = 1000.0  # a faster output is a fault, whatever limits the filters have


class Ticker:
    """The decoder, its input stream and its output socket: everything that a tick uses.

    fault: why the decoder's output can't be trusted, until a decode is plausible again.
    paused: why decoding is paused. detail: why the stream was lost. previous: for a rollback.
    excluded: ids of units that are not decoded; change them with `exclude`.
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
            excluded=frozenset(settings.excluded),
        )
        self.inlet: SpikeInlet | None = None
        self.excluded: Set[str] = frozenset(settings.excluded)
        self.match = self.match_to(bundle)
        self.recent = RecentSpikes()
        self.unit_watch = UnitWatch()
        self.should_stop = False
        self.n_frames = 0
        self._n_drained_before = 0
        self._n_inlet_overflows_before = 0
        self.n_offset_jumps = 0
        self.started = self._clock()
        self.detail = ""
        self.fault: str | None = None
        self._overfull = NEVER  # the last tick that dropped spikes of the window
        self._last_tick = NEVER
        self.paused = settings.paused

    @property
    def bundle(self) -> Bundle:
        """The bundle of the decoder in use."""
        return self.runtime.bundle

    @property
    def n_drained(self) -> int:
        """Events taken off the stream since the start, over all senders."""
        return self._n_drained_before + (self.inlet.n_drained if self.inlet else 0)

    @property
    def n_inlet_overflows(self) -> int:
        """How often liblsl's buffer was full when it was drained."""
        return self._n_inlet_overflows_before + (self.inlet.n_overflows if self.inlet else 0)

    @property
    def is_overfull(self) -> bool:
        """Whether spikes of the current window were dropped because the ring was full."""
        return self._last_tick - self._overfull <= self.runtime.window_s

    def tick(self, window_end: float) -> None:
        """Drain the stream, decode at `window_end` (LSL clock, s), publish one frame."""
        if window_end - self._last_tick > self.watch.stale_after_s + self.settings.tick_ms / 1e3:
            self.filters.interrupt()  # clients have stopped the cursor: start from rest
        self._last_tick = window_end
        self._drain(window_end)
        self.state = self.watch.judge(window_end)
        decode_from = self._clock()
        velocity = ZERO
        # After a fault, decodes are tried even during a pause, until one is plausible.
        if self.state is State.DECODING and (self.paused is None or self.fault is not None):
            velocity = self._decode(window_end)
        if self.fault is not None and self.state in (State.WARMING, State.DECODING):
            self.state = State.FAULT
        if self.paused is not None:
            self.state = State.PAUSED
        published = self._clock()
        if self.state is State.DECODING and self._is_late(window_end, published):
            self.state = State.STALE
        if self.state is not State.DECODING:
            self.filters.interrupt()
        self.publisher.send(self.frame(window_end, velocity, decode_from, published))
        self.publisher.see_subscribers()
        self.n_frames += 1
        self.health.tick((published - window_end) * 1e3)

    def _is_late(self, window_end: float, published: float) -> bool:
        """Whether the tick stalled so long that its velocity is stale at publication."""
        oldest = max(published - window_end, self.watch.age_s(published))
        return oldest > self.watch.stale_after_s

    def _decode(self, window_end: float) -> Velocity:
        """Velocity, m/s. An implausible one is a fault, and zero."""
        try:
            x, y = (float(value) for value in self.runtime.decode(window_end))
        except Exception as error:  # ONNX Runtime's errors have no base class
            return self._fail(f"the decoder failed ({named(error)})", window_end)
        if not hypot(x, y) <= BROKEN_M_S:  # written so that NaN fails too
            problem = f"the decoder's output is {x:g}, {y:g} m/s, not a velocity; check the bundle"
            return self._fail(problem, window_end)
        bias = self.filters.bias
        velocity = self.filters((x, y))
        speed, limit = hypot(*velocity), self.settings.fault_speed
        if not speed <= limit:
            self.filters.bias = bias  # it must not learn from this output
            problem = f"{speed:g} m/s after the filters, expected at most {limit:g}"
            return self._fail(f"{problem} (--fault-speed); check the bundle and gain", window_end)
        self.fault = None
        return velocity

    def _fail(self, problem: str, window_end: float) -> Velocity:
        """Publish zero and reset the decoder: a NaN in its state would stay there."""
        self.fault = problem
        self.runtime.reset()
        self.watch.refill(window_end)
        return ZERO

    def _drain(self, window_end: float) -> None:
        """Move the waiting events of the stream into the decoder's ring."""
        self._take_opened(window_end)
        if self.inlet is None:
            return
        try:
            before = self.inlet.n_drained
            times, stream_units = self.inlet.drain(window_end)
        except StreamError as error:
            self._lose_stream(str(error), window_end)
            return
        except Exception as error:  # liblsl's RuntimeError, or another error from its wrapper
            self._lose_stream(f"{self.inlet.name!r} can't be read: {named(error)}", window_end)
            return
        if self.inlet.take_offset_jump():  # the old spikes are on another clock
            self.n_offset_jumps += 1
            self._forget_spikes()
            self.watch.refill(window_end)
        if n_events := self.inlet.n_drained - before:
            self.health.drained(n_events, times, window_end)
        try:
            self._admit(times, stream_units, window_end)
        except Exception as error:  # no input may end the daemon
            self._fail(f"spikes can't be processed ({named(error)})", window_end)

    def _admit(self, times: Floats, stream_units: Ints, window_end: float) -> None:
        """Pass admitted spikes to the decoder, and signs of life to the watch."""
        assert self.inlet is not None
        if len(self.inlet.unit_ids) != self.match.n_stream:
            self.match = self.match_to(self.bundle)
        self.recent.append(times, stream_units, now=window_end)
        now = self._clock()
        times, unit_index = self.admission.admit(
            times, self.match(stream_units), window_end=window_end, now=now
        )
        n_overflowed = self.runtime.n_overflowed
        self.runtime.append(times, unit_index)
        if self.runtime.n_overflowed > n_overflowed:  # the window has gaps now
            self._overfull = window_end
            self.watch.refill(window_end)
        bins = self.inlet.bin_ends
        if bins is None:  # an empty bin is a sign of life, silence of spikes is not
            self.watch.see(times, now)
        else:
            self.watch.see(self.admission.admit_bins(bins, window_end=window_end, now=now), now)

    def watch_units(self, now: float) -> None:
        """Look for faulty units in the spikes since the last call; takes about a millisecond."""
        if self.inlet is None:
            return
        start = max(self.unit_watch.until_s, now - KEEP_S)
        self.unit_watch.until_s = end = now - SETTLED_S
        times, units = self.recent.between(start, end)
        n_units, fine = len(self.inlet.unit_ids), self.inlet.bin_ends is None
        try:
            self.unit_watch.see(times, units, n_units, seconds=end - start, fine=fine)
        except Exception:  # no input may end the daemon
            self.unit_watch.clear()

    def _take_opened(self, window_end: float) -> None:
        """Take a newly opened inlet: the first one, or a replacement for a silent one."""
        opened = self.connector.tend(self.inlet, window_end)
        if opened is None:
            return
        if self.inlet is not None:
            self._lose_stream("", window_end)
        self.inlet = opened
        self.match = self.match_to(self.bundle)
        self.watch.forget(window_end)
        self.detail = ""

    def _forget_spikes(self) -> None:
        """Forget all spikes: they don't belong in one window with the next ones."""
        self.runtime.reset()
        self.recent.clear()
        self.admission.forget()

    def _lose_stream(self, why: str, window_end: float) -> None:
        """Leave the stream, forget its spikes and search again.

        A sender that returns may have other units, so its description is read again.
        """
        assert self.inlet is not None
        self._n_drained_before += self.inlet.n_drained
        self._n_inlet_overflows_before += self.inlet.n_overflows
        self.connector.leave(self.inlet)
        self.inlet = None
        self.detail = why
        self._forget_spikes()
        self.unit_watch.clear()
        self.watch.forget(window_end)

    def read_from(self, query: StreamQuery, window_end: float) -> None:
        """Leave the open stream and search for another; does nothing if `query` is unchanged."""
        if query == self.connector.query:
            return
        self.connector.query = query
        if self.inlet is not None:
            self._lose_stream("", window_end)

    def match_to(self, bundle: Bundle) -> UnitMatch:
        """The open stream's units among those of a bundle, without the excluded ones."""
        stream_units = self.inlet.unit_ids if self.inlet is not None else ()
        return UnitMatch(stream_units, bundle.manifest.unit_ids, self.excluded)

    def exclude(self, excluded: Set[str]) -> None:
        """Leave out the spikes of these units, and of no others, from the next tick on.

        Those already in the decoder's window leave with it.
        """
        self.excluded = self.connector.excluded = excluded
        self.match = self.match_to(self.bundle)

    def frame(
        self,
        window_end: float,
        velocity: tuple[float, float],
        decode_from: float,
        published: float,
    ) -> wire.CursorFrame:
        """The frame of a tick, in the current state. decode_from: start of the decode."""
        inlet, manifest = self.inlet, self.bundle.manifest
        return wire.cursor_frame(
            self.state,
            started=self.started,
            seq=self.n_frames,
            session=manifest.session_id,
            decoder=manifest.decoder_id,
            window_end=window_end,
            published=published,
            decode_ms=(published - decode_from) * 1e3,
            velocity=velocity,
            n_spikes=self.runtime.n_spikes,
            newest_spike=self.admission.newest,
            n_drained=self.n_drained,
            clock_offset=inlet.clock_offset_s if inlet else 0.0,
        )


def named(error: Exception) -> str:
    """One line that names a foreign error, with its type."""
    return brief(f"{type(error).__name__}: {error}", 200)
