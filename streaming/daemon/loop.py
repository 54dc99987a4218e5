"""The decode daemon: spikes in, velocity out, one decode every tick.

    volition decode BUNDLE --tick-ms 10

One process with one job. It starts without a server and without a stream, publishes a frame
at every tick from the first, and says in each whether it may be trusted. Inside a tick there
is no logging, no lock, no file and no event loop.

Lifecycle: `serve` = `startup`, `main_loop` (a `tick` at each deadline), `shutdown`.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import hypot, inf
from pathlib import Path

from pylsl import local_clock

from decoder.bundles.bundle import Bundle
from decoder.errors import SettingsError, StreamError, brief
from decoder.filters import OutputFilters, Velocity
from decoder.runtimes.base import MAX_RATE_HZ, Runtime
from decoder.runtimes.onnx import PROVIDERS, RuntimeSettings
from decoder.runtimes.opening import open_runtime
from decoder.runtimes.proof import prove
from streaming.clock import Clock, Metronome
from streaming.daemon.health import TickHealth
from streaming.daemon.priority import before_others, real_time
from streaming.daemon.recent import KEEP_S, RecentSpikes
from streaming.daemon.settings import DaemonSettings
from streaming.daemon.swap import Loader, StreamSpikes, check_tick
from streaming.inlets.admission import Admission
from streaming.inlets.spikes import Connector, SpikeInlet, StreamQuery
from streaming.signals import stop_on_signal
from streaming.units import UNKNOWN, Floats, Ints, UnitMatch
from streaming.wire import control
from streaming.wire import messages as wire
from streaming.wire.control import Command, ControlSocket, Reply
from streaming.wire.publish import Publisher
from streaming.wire.states import NEVER, State, StreamWatch

log = logging.getLogger("volition.decode")

HANGS_S = 10.0  # a tick that goes on for so long after a signal hangs; a busy machine takes less
STATUS_EVERY_S = 1.0
ZERO = (0.0, 0.0)
BROKEN_M_S = 1000.0  # a decoder that gives more is broken, whatever limits its output has
LEFT_OUT = {  # why events can't be used, in words
    "future": "are stamped ahead of this host's clock",
    "too_old": "are stamped before the decoder's window",
    "no_time": "have no time stamp",
    "unknown_unit": "are of units that the bundle doesn't know",
}


class Daemon:
    """Decodes one bundle until told to stop.

    Raises ProviderError, BundleError or SettingsError at construction, never later: once it
    serves, a lost stream is a state.
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
        try:
            self.control = (
                ControlSocket(settings.control, anyone=settings.control_open)
                if settings.control
                else None
            )
        except SettingsError:
            self.publisher.close()
            raise
        self.state = State.WARMING
        self.admission = Admission(self.runtime.window_s)
        self.watch = StreamWatch(
            window_s=self.runtime.window_s, stale_after_s=settings.stale_after_ms / 1000.0
        )
        self.health = TickHealth()
        self.connector = Connector(
            StreamQuery(kind=settings.stream_type, name=settings.stream_name),
            bundle.manifest.unit_ids,
            min_known_share=settings.min_known_share,
        )
        self.inlet: SpikeInlet | None = None
        self.match = UnitMatch((), bundle.manifest.unit_ids)
        self.recent = RecentSpikes()
        self.should_stop = False
        self._seq = 0
        self._n_drained_before = 0
        self._n_inlet_overflows_before = 0
        self._n_offset_jumps = 0
        self.started = self._clock()
        self._detail = ""
        self._fault: str | None = None  # what is wrong; None once a decode is a velocity again
        self._overfull = NEVER  # when spikes of the window were last left out
        self._last_tick = NEVER
        self._paused = settings.paused
        self._status_due = 0.0
        self._latency: wire.Quantiles | None = None  # of the last period, as is the rate
        self._spikes_per_s = 0.0

    @property
    def bundle(self) -> Bundle:
        """Of the decoder in use."""
        return self.runtime.bundle

    def serve(self) -> None:
        """Run until SIGINT or SIGTERM (or `should_stop`)."""
        with stop_on_signal(self, within_s=HANGS_S), _no_garbage_collection():
            self.startup()
            try:
                with real_time(self.settings.realtime) as granted:
                    log.info("ticking at %s priority", "real-time" if granted else "ordinary")
                    self.main_loop()
            finally:
                self.shutdown()

    def startup(self) -> None:
        """Warm the decoder and begin to look for the stream."""
        took_s = prove(self.runtime, epoch=self.started)
        self.connector.start()
        self.metronome = Metronome(self.settings.tick_ms / 1000.0, clock=self._clock)
        self.health.start(self._clock())
        log.info(
            "decoder %s on %s (%.2f ms a decode), tick %g ms, publishing on %s, waiting for %s",
            self.bundle.manifest.decoder_id, self.runtime.provider, took_s * 1e3,
            self.settings.tick_ms, self.publisher.bound_to, self.connector.query,
        )  # fmt: skip
        if warning := self._provider_warning():
            log.warning("WARNING: %s", warning)  # the log's lines don't name their level

    def main_loop(self) -> None:
        """A tick at every deadline, then a command if one waits.

        Status once a second and when the state changes.
        """
        while not self.should_stop:
            before = self.state
            window_end = self.metronome.wait()
            self.tick(window_end)
            self._obey(window_end)
            if self.state is not before or window_end >= self._status_due:
                self._status_due = window_end + STATUS_EVERY_S
                self._latency, self._spikes_per_s = self.health.read(window_end)
                self.publisher.send_status(self.status(window_end))

    def tick(self, window_end: float) -> None:
        """Drain the stream, decode at `window_end` (LSL clock, s), publish one frame."""
        if window_end - self._last_tick > self.watch.stale_after_s + self.settings.tick_ms / 1e3:
            self.filters.interrupt()  # no frame came for so long: whoever moves has stopped
        self._last_tick = window_end
        self._drain(window_end)
        self.state = self.watch.judge(window_end)
        decode_from = self._clock()
        velocity = ZERO
        if self.state is State.DECODING and (self._paused is None or self._fault is not None):
            velocity = self._decode(window_end)
        if self._fault is not None and self.state in (State.WARMING, State.DECODING):
            self.state = State.FAULT  # until a decode is a velocity again, in a pause too
        if self._paused is not None:
            self.state = State.PAUSED
        published = self._clock()
        if self.state is State.DECODING and self._is_late(window_end, published):
            self.state = State.STALE
        if self.state is not State.DECODING:
            velocity = ZERO
            self.filters.interrupt()
        self.publisher.send(self._frame(window_end, velocity, decode_from, published))
        self.publisher.see_subscribers()
        self._seq += 1
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
            return self._fail(f"the decoder failed ({_named(error)})", window_end)
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
        self._fault = None
        return velocity

    def _fail(self, problem: str, window_end: float) -> Velocity:
        """Stand still and begin anew: a state that is no number would never be one again."""
        self._fault = problem
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
            self._lose_stream(f"{self.inlet.name!r} can't be read: {_named(error)}", window_end)
            return
        if self.inlet.take_offset_jump():  # old spikes' times are on another clock
            self._n_offset_jumps += 1
            self._begin_anew()
            self.watch.refill(window_end)
        if n_events := self.inlet.n_drained - before:
            self.health.drained(n_events, times, window_end)
        try:
            self._take(times, stream_units, window_end)
        except Exception as error:  # nothing that arrives may end the daemon
            self._fail(f"spikes can't be taken in ({_named(error)})", window_end)

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
        self._detail = ""

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
        self._detail = why
        self._begin_anew()
        self.watch.forget(window_end)

    def _read_from(self, query: StreamQuery, window_end: float) -> None:
        """Leave the stream that is read, if any, and look for another; the same one is kept."""
        if query == self.connector.query:
            return
        self.connector.query = query
        if self.inlet is not None:
            self._lose_stream("", window_end)

    def _obey(self, window_end: float) -> None:
        """Handle one command, if one waits."""
        if self.control is None or (command := self.control.receive()) is None:
            return
        try:
            problem = command if isinstance(command, str) else self._handle(command, window_end)
        except Exception as error:  # a command that can't be done is an answer, never an end
            problem = f"that failed: {_named(error)}"
        self.control.answer(Reply(problem=problem, status=self.status(self._clock())))

    def _handle(self, command: Command, window_end: float) -> str | None:
        """Do as told; returns what is wrong with the command, if anything."""
        match command:
            case control.Load(path=path):
                if self.loader.busy:
                    return "another decoder is being loaded; ask again when it is done"
                self.loader.load(
                    Path(path), self.runtime, epoch=self.started, recent=self._recent_spikes()
                )
            case control.Activate(decoder=decoder):
                candidate = self.loader.candidate
                if candidate is None or candidate.bundle.manifest.decoder_id != decoder:
                    return f"decoder {decoder} is not the candidate; load it first"
                return self._swap(candidate, window_end)
            case control.Rollback():
                if self.previous is None:
                    return "there is no decoder before this one"
                return self._swap(self.previous, window_end)
            case control.SetInput(kind=kind, name=name):
                self._read_from(StreamQuery(kind=kind, name=name), window_end)
            case control.Pause(why=why):
                self._paused = why
            case control.Resume(paused_for=why):
                if why is None or why == self._paused:
                    self._paused = None
            case control.Arm():
                return self._arm(window_end)
            case control.SetFilters(filters=filters):
                self.filters.settings = filters
            case control.Stop():
                self.should_stop = True
        return None

    def _recent_spikes(self) -> StreamSpikes | None:
        """All that is kept of the stream that is open."""
        if self.inlet is None:
            return None
        times, stream_units = self.recent.since(-inf)
        return StreamSpikes(
            times=times, stream_units=stream_units, unit_ids=tuple(self.inlet.unit_ids)
        )

    def _arm(self, window_end: float) -> str | None:
        """Resume, but only where all is there that a cursor needs."""
        missing = []
        if not self.publisher.has_listener:
            missing.append("nobody listens to cursor frames")
        if self.watch.judge(window_end) is not State.DECODING:
            missing.append("no unbroken live spikes fill the decoder's window")
        if self._fault is not None:
            missing.append(self._fault)
        if missing:
            return f"not armed: {'; '.join(missing)}"
        self._paused = None
        return None

    def _swap(self, runtime: Runtime, window_end: float) -> str | None:
        """Decode with another runtime from the next tick on, which sees the same spikes."""
        unit_ids = runtime.bundle.manifest.unit_ids
        match = UnitMatch(self.inlet.unit_ids if self.inlet else (), unit_ids)
        least = max(self.settings.min_known_share * len(unit_ids), 1)
        if self.inlet and match.n_known < least:
            return (
                f"the stream has {match.n_known} of the decoder's {len(unit_ids)} units; expected "
                f"at least {self.settings.min_known_share:.0%} (--min-known-share)"
            )
        runtime.reset()
        runtime.continue_from(self.runtime)
        times, stream_units = self.recent.since(window_end - KEEP_S)
        unit_index = match(stream_units)
        times, unit_index = times[unit_index != UNKNOWN], unit_index[unit_index != UNKNOWN]
        seen = times >= window_end - runtime.window_s
        runtime.append(times[seen], unit_index[seen])
        self.runtime, self.previous, self.match = runtime, self.runtime, match
        self.connector.bundle_units = unit_ids  # a stream that is found from now on is checked
        self.admission.window_s = self.watch.window_s = runtime.window_s
        if runtime.window_s > KEEP_S:  # it has not seen a whole window yet
            self.watch.refill(window_end)
        elif self.inlet is not None and self.inlet.bin_ends is None:
            self.watch.recount(times, window_end)  # of units that the other may not know
        self.loader.drop()
        self.filters.forget_bias()  # it was the other decoder's
        self._fault = None
        return None

    def _frame(
        self,
        window_end: float,
        velocity: tuple[float, float],
        decode_from: float,
        published: float,
    ) -> wire.CursorFrame:
        inlet, manifest = self.inlet, self.bundle.manifest
        return wire.CursorFrame(
            schema=wire.SCHEMA_VERSION,
            started=self.started,
            seq=self._seq,
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
            n_drained=self._n_drained_before + (inlet.n_drained if inlet else 0),
            clock_offset=inlet.clock_offset_s if inlet else 0.0,
            latency_ms=(published - window_end) * 1e3,
        )

    def status(self, now: float) -> wire.Status:
        """The daemon's health at `now`, seconds on the LSL clock."""
        inlet = self.inlet
        return wire.Status(
            schema=wire.SCHEMA_VERSION,
            session=self.bundle.manifest.session_id,
            decoder=self.bundle.manifest.decoder_id,
            state=self.state.value,
            detail=_printable("; ".join(filter(None, (self._explain(), self._provider_warning())))),
            provider=self.runtime.provider,
            started=self.started,
            uptime_s=now - self.started,
            ticks=self._seq,
            late_ticks=self.metronome.n_late,
            latency=self._latency,
            spikes_per_s=self._spikes_per_s,
            backlog_s=self.health.backlog_s,
            input_kind=self.connector.query.kind,
            input_name=self.connector.query.name,
            stream=inlet.name if inlet else None,
            known_units=self.match.n_known if inlet else 0,
            unknown_units=self.match.n_unknown if inlet else 0,
            missing_units=self.match.n_missing if inlet else 0,
            window_s=self.runtime.window_s,
            events=self.admission.counters.as_dict(),
            overflowed=self.runtime.n_overflowed,
            inlet_overflows=self._n_inlet_overflows_before + (inlet.n_overflows if inlet else 0),
            offset_jumps=self._n_offset_jumps,
            bundle=_printable(str(self.bundle.path.absolute())),
            previous=_id_of(self.previous),
            candidate=_id_of(self.loader.candidate),
            loading=self.loader.busy,
            load_problem=_printable(self.loader.problem) if self.loader.problem else None,
            paused=self._paused,
            filters=self.filters.settings,
            bias=self.filters.bias,
            pid=os.getpid(),
        )

    def _provider_warning(self) -> str:
        """That decodes don't run where they were asked to: they may take longer than a tick."""
        asked, runs_on = self.settings.provider, self.runtime.provider
        if PROVIDERS.get(asked, runs_on) == runs_on:
            return ""
        return (
            f"{asked} was asked for, but decodes run on {runs_on}: check the GPU, its driver and "
            "volition[cuda], or ask for --require-provider to refuse this"
        )

    def _explain(self) -> str:
        if self._paused is not None:
            return f"paused: {self._paused}" if self._paused else "paused"
        if self.inlet is None:
            return self.connector.problem or self._detail or f"waiting for {self.connector.query}"
        overfull = self._last_tick - self._overfull <= self.runtime.window_s
        if overfull and self.state in (State.STALE, State.WARMING):
            return f"more than {MAX_RATE_HZ:,} spikes/s come, which no window holds; is it noise?"
        if self.connector.problem and self.state in (State.STALE, State.READY):
            return self.connector.problem  # of the sender that would take the silent one's place
        return {
            State.STALE: self._explain_no_spikes("no spikes; waiting for the stream to come back"),
            State.WARMING: "filling the window",
            State.READY: self._explain_no_spikes("connected, no spikes yet"),
            State.FAULT: self._fault or "",
        }.get(self.state, "")

    def _explain_no_spikes(self, otherwise: str) -> str:
        left_out = self.admission.left_out
        if not left_out:
            return otherwise
        reasons = ", ".join(f"{n} {LEFT_OUT[name]}" for name, n in left_out.items())
        clock = "" if left_out.keys() == {"unknown_unit"} else "the sender's clock and "
        return f"events come, but none can be used: {reasons}; check {clock}the bundle's units"

    def shutdown(self) -> None:
        """Publish one last invalid frame, say how it went, close the sockets."""
        now = self._clock()
        self.state = State.IDLE
        self.publisher.send(self._frame(now, ZERO, now, now))
        last = self.status(now)
        self.publisher.send_status(last)
        self.publisher.close()
        if self.control is not None:
            self.control.close()
        self.connector.stop()
        if self.inlet is not None:
            self.inlet.close()
        log.info(
            "stopped after %.1f s: %d frames, %d late ticks, %d events drained, %d taken",
            last.uptime_s, last.ticks, last.late_ticks,
            self._n_drained_before + (self.inlet.n_drained if self.inlet else 0),
            self.admission.counters.taken,
        )  # fmt: skip


def _named(error: Exception) -> str:
    """One line of an error that Volition doesn't raise itself."""
    return brief(f"{type(error).__name__}: {error}", 200)


def _printable(text: str) -> str:
    """Text that can be sent: a path may hold bytes that are no characters."""
    return text.encode(errors="replace").decode()


def _id_of(runtime: Runtime | None) -> str | None:
    return runtime.bundle.manifest.decoder_id if runtime else None


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Without collector pauses: a tick makes no reference cycles."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
