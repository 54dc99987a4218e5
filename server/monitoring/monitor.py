"""Gathers the metrics of a server and its daemon, in a thread of its own, and renders them.

The daemon does nothing for it: the thread reads the frames that are published anyway, and the
status that the supervisor has. It looks often, so that little is lost when a daemon is killed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from importlib.metadata import version
from typing import get_args

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from server.calibration.calibrations import Calibrations
from server.monitoring import gauges
from server.monitoring.calibrations import CalibrationCounts
from server.monitoring.events import EventCounts
from server.monitoring.ticks import TickReader
from server.settings import ServerSettings
from server.supervision.connection import is_daemon
from server.supervision.daemon import SupervisedDaemon
from server.unattended.bodies import Doing
from server.unattended.unattended import UnattendedCalibrations

log = logging.getLogger("volition.server")

LOOK_EVERY_S = 0.25
NO_PROCESS = "none"  # as a pid: there is no such folder in /proc


class Monitor(Collector):
    """The metrics of one server, from `start` until `stop`, in a registry of its own."""

    def __init__(
        self,
        settings: ServerSettings,
        supervisor: SupervisedDaemon,
        calibrations: Calibrations,
        unattended: UnattendedCalibrations,
    ) -> None:
        self._supervisor, self._calibrations = supervisor, calibrations
        self._unattended = unattended
        self._ticks, self._events = TickReader(settings.daemon.address), EventCounts()
        self._ended = CalibrationCounts(calibrations.all())
        self._lock = threading.Lock()  # guards the counts and the socket
        self._stopping = threading.Event()
        self._has_failed = False
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(namespace="volition_server", registry=self._registry)
        ProcessCollector(namespace="volition_daemon", pid=self._pid, registry=self._registry)

    def start(self) -> None:
        """Subscribe to the daemon's frames, and begin to count."""
        self._ticks.open()
        self._thread.start()

    def stop(self) -> None:
        """Stop counting."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()
        with self._lock:
            self._ticks.close()

    def render(self, accept: str) -> tuple[bytes, str]:
        """All metrics as text, and its content type. accept: the request's header."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        """The metrics, for `prometheus_client`."""
        status = self._supervisor.status
        with self._lock:
            self._look()
            counted = [*self._ticks.families(), *self._events.families(), *self._ended.families()]
            counted.append(self._ticks.newest_spike_age(status.started if status else None))
        yield from counted
        yield from gauges.of_daemon(status)
        yield CounterMetricFamily(
            "volition_daemon_restarts",
            "Daemons that have died since the server started",
            value=self._supervisor.restarts,
        )
        yield gauges.one_of(
            "volition_unattended", "1 for what unattended recalibration does", "state",
            get_args(Doing), self._unattended.state().state,
        )  # fmt: skip
        yield InfoMetricFamily(
            "volition_build", "The server's version", value={"version": version("volition")}
        )

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            try:
                with self._lock:
                    self._look()
            except Exception:  # metrics must not end the server
                if not self._has_failed:
                    log.exception("metrics could not be counted; this is logged once")
                self._has_failed = True

    def _look(self) -> None:
        self._ticks.drain()
        if (status := self._supervisor.status) is not None:
            self._events.see(status)
        self._ended.see(self._calibrations.all())

    def _pid(self) -> str:
        """The daemon's process, if it is one that this server can see: not in another container."""
        status = self._supervisor.status
        return str(status.pid) if status is not None and is_daemon(status.pid) else NO_PROCESS
