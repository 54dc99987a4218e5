"""The decode daemon: spikes in, velocity out, one decode per tick.

    volition decode BUNDLE --tick-ms 10

The daemon is one process that only decodes. It needs neither a server nor a stream to start, and
publishes a frame at every tick from the first. `streaming/daemon/tick.py` has the path of a spike.

Lifecycle: `serve` runs `startup`, `main_loop` (one tick per deadline) and `shutdown`.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec.structs import replace
from pylsl import local_clock

from decoder.bundles.bundle import Bundle, open_bundle
from decoder.errors import SettingsError
from decoder.runtimes.proof import prove
from streaming import logs
from streaming.clock import Clock, Metronome
from streaming.daemon.commands import handle, units_of
from streaming.daemon.settings import DaemonSettings
from streaming.daemon.status import provider_warning, status_of
from streaming.daemon.tick import Ticker, named
from streaming.priority import real_time
from streaming.signals import stop_on_signal
from streaming.wire import messages as wire
from streaming.wire.control import ControlSocket, GetUnits, Reply
from streaming.wire.states import State

log = logging.getLogger("volition.decode")

HANGS_S = 10.0  # a tick still running this long after a signal hangs, even on a busy machine
STATUS_EVERY_S = 1.0
SHOW_EVERY_S = 0.05
SHOWING_S = 5e-4  # enough for the spikes of a message and for sending it, on a busy machine


class Daemon:
    """Decodes until it is stopped.

    Raises ProviderError, BundleError or SettingsError at construction, never later.
    """

    def __init__(
        self, bundle: Bundle, settings: DaemonSettings, *, clock: Clock = local_clock
    ) -> None:
        self.ticker = Ticker(bundle, settings, clock=clock)
        self.settings = settings
        self._clock = clock
        try:
            self.control = (
                ControlSocket(settings.control, anyone=settings.control_open)
                if settings.control
                else None
            )
        except SettingsError:
            self.ticker.publisher.close()
            raise
        self._status_due = self._watch_due = self._show_due = 0.0
        self._watching_s = 0.0  # how long the last search for faulty units took
        self._latency: wire.Quantiles | None = None  # of the last period, like the rate
        self._spikes_per_s = 0.0

    def serve(self) -> None:
        """Run until SIGINT, SIGTERM or `should_stop`."""
        with stop_on_signal(self.ticker, within_s=HANGS_S), _no_garbage_collection():
            self.startup()
            try:
                with real_time(self.settings.realtime) as granted:
                    log.info("ticking at %s priority", "real-time" if granted else "ordinary")
                    self.main_loop()
            finally:
                self.shutdown()

    def startup(self) -> None:
        """Warm the decoder and start the search for the stream."""
        took_s = prove(self.ticker.runtime, epoch=self.ticker.started)
        self.ticker.connector.start()
        self.metronome = Metronome(self.settings.tick_ms / 1000.0, clock=self._clock)
        self.ticker.health.start(self._clock())
        log.info(
            "decoder %s on %s (%.2f ms a decode), tick %g ms, publishing on %s, waiting for %s",
            self.ticker.bundle.manifest.decoder_id, self.ticker.runtime.provider, took_s * 1e3,
            self.settings.tick_ms, self.ticker.publisher.bound_to, self.ticker.connector.query,
        )  # fmt: skip
        if warning := provider_warning(self.ticker):
            log.warning("WARNING: %s", warning)  # the log format has no level

    def main_loop(self) -> None:
        """Run a tick at every deadline, then handle a command if one waits.

        Publishes the status once a second and when the state changes; looks for faulty units once
        a second; publishes spikes while somebody subscribes to them.
        """
        while not self.ticker.should_stop:
            before = self.ticker.state
            window_end = self.metronome.wait()
            self.ticker.tick(window_end)
            self._obey(window_end)
            if self.ticker.state is not before or window_end >= self._status_due:
                self._status_due = window_end + STATUS_EVERY_S
                self._latency, self._spikes_per_s = self.ticker.health.read(window_end)
                self.ticker.publisher.send_status(self.status(window_end))
            elif window_end >= self._watch_due:
                self._watch_units(window_end)
            elif window_end >= self._show_due and self.ticker.publisher.shows_spikes:
                self._show_spikes(window_end)

    def _watch_units(self, window_end: float) -> None:
        """Look for faulty units, if this tick leaves enough time for it."""
        began = self._clock()
        if began - window_end + self._watching_s > self.settings.tick_ms / 1e3:
            self._watching_s *= 0.9  # it may have been a stall
            return
        self.ticker.watch_units(window_end)
        self._watch_due = window_end + STATUS_EVERY_S
        self._watching_s = self._clock() - began

    def _show_spikes(self, window_end: float) -> None:
        """Publish the spikes since the last time, if this tick leaves enough time for it."""
        if self._clock() - window_end + SHOWING_S > self.settings.tick_ms / 1e3:
            return
        self._show_due = window_end + SHOW_EVERY_S
        if self.ticker.inlet is not None:
            self.ticker.publisher.send_spikes(
                self.ticker.recent.shown(
                    window_end, started=self.ticker.started, stream=self.ticker.inlet.name
                )
            )

    def _obey(self, window_end: float) -> None:
        """Handle one command, if one waits."""
        if self.control is None or (command := self.control.receive()) is None:
            return
        try:
            problem = (
                command if isinstance(command, str) else handle(self.ticker, command, window_end)
            )
        except Exception as error:  # a failed command is answered and must not end the loop
            problem = f"the command failed: {named(error)}"
        reply = Reply(problem=problem, status=self.status(self._clock()))
        if isinstance(command, GetUnits):
            excluded = sorted(self.ticker.excluded)
            reply = replace(reply, units=units_of(self.ticker), excluded=excluded)
        self.control.answer(reply)

    def status(self, now: float) -> wire.Status:
        """The daemon's health at `now`, seconds on the LSL clock."""
        return status_of(
            self.ticker,
            now,
            n_skipped=self.metronome.n_skipped,
            latency=self._latency,
            spikes_per_s=self._spikes_per_s,
        )

    def shutdown(self) -> None:
        """Publish a last, invalid frame and the status, close the sockets, log the totals."""
        now = self._clock()
        self.ticker.state = State.IDLE
        self.ticker.publisher.send(self.ticker.frame(now, wire.ZERO, now, now))
        last = self.status(now)
        self.ticker.publisher.send_status(last)
        self.ticker.publisher.close()
        if self.control is not None:
            self.control.close()
        self.ticker.connector.stop()
        if self.ticker.inlet is not None:
            self.ticker.inlet.close()
        log.info(
            "stopped after %.1f s: %d frames, %d skipped ticks, %d events drained, %d taken",
            last.uptime_s, last.ticks, last.skipped_ticks,
            self.ticker.n_drained,
            self.ticker.admission.counters.taken,
        )  # fmt: skip


def run(bundle: Path, settings: DaemonSettings) -> None:
    """Decode with the bundle in this folder until SIGINT or SIGTERM; log to standard error."""
    logs.set_up(as_json=settings.log_json)
    Daemon(open_bundle(bundle), settings).serve()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Prevent pauses of the garbage collector; a tick makes no reference cycles."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
