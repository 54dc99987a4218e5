"""The control plane: a REST server alongside the decode daemon, which goes on without it.

    volition serve --bundle monkey.bundle

Lifecycle: `serve` builds the app and runs it under uvicorn. When the app starts, it adopts or
starts the daemon. When it ends, it stops a running calibration and, unless `keep_daemon` is set,
the daemon.
"""

from __future__ import annotations

import fcntl
import logging
import re
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware.cors import CORSMiddleware

from decoder.errors import SettingsError
from server import problems
from server.access.connections import ImpatientProtocol, most_waiting
from server.access.gate import Gate, documented_token
from server.access.tokens import Tokens
from server.api import notes, units
from server.api.calibrations import calibrations
from server.api.decoders import decoders
from server.api.routes import Parts, health, status, v1
from server.calibration.calibrations import Calibrations
from server.dashboard import routes as dashboard
from server.dashboard.feed import Feed
from server.monitoring.inference import v2, v2_health
from server.monitoring.monitor import Monitor
from server.monitoring.routes import metrics
from server.notes import NotesOutlet
from server.problems import documented
from server.schemas import Problem
from server.settings import ServerSettings
from server.store.journal import Journal
from server.store.registry import Registry
from server.supervision.daemon import SupervisedDaemon, known_bundle
from server.unattended.unattended import UnattendedCalibrations

log = logging.getLogger("volition.server")

GRACE_S = 2  # for open event streams when the server stops
MOST_FROM_PAGE = 4096  # bytes; pages send nothing over their WebSocket


def serve(settings: ServerSettings, *, bundle: Path | None = None) -> None:
    """Run the server until SIGINT or SIGTERM.

    bundle: a bundle to register; it is activated unless an earlier start was given the same one.
    Raises SettingsError if another server uses the same home, BundleError if the bundle is bad.
    """
    with only_server(settings), bound(settings) as listener:
        parts = assemble(settings)
        given = None if bundle is None else known_bundle(parts.registry, parts.journal, bundle)
        config = uvicorn.Config(
            build_app(parts, given),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
            http=ImpatientProtocol,
            ws="websockets-sansio",
            ws_max_size=MOST_FROM_PAGE,
            ws_per_message_deflate=False,  # numbers hardly shrink, and it takes time
            backlog=most_waiting(),
        )
        _Server(config, parts).run(sockets=[listener])


def assemble(settings: ServerSettings) -> Parts:
    """The parts of a server. Nothing runs before the app starts."""
    journal, registry = Journal(settings.home / "journal.sqlite"), Registry(settings.decoders)
    supervisor = SupervisedDaemon(settings, journal, registry)
    calibrations = Calibrations(settings, journal, supervisor, registry)
    return Parts(
        settings=settings,
        journal=journal,
        registry=registry,
        supervisor=supervisor,
        calibrations=calibrations,
        unattended=UnattendedCalibrations(settings, journal, supervisor, registry, calibrations),
        notes=NotesOutlet(settings.port),
    )


class _Server(uvicorn.Server):
    """Ends event streams before the shutdown, which would print a traceback for each of them."""

    def __init__(self, config: uvicorn.Config, parts: Parts) -> None:
        super().__init__(config)
        self._parts = parts

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._parts.stopping.set()
        await super().shutdown(sockets)


@contextmanager
def only_server(settings: ServerSettings) -> Iterator[None]:
    """Lock the home folder and the daemon's control address for this process."""
    address = re.sub(r"[^A-Za-z0-9]+", "-", settings.control)
    with ExitStack() as held:
        for path, what in (
            (settings.home / "server.lock", f"uses {settings.home}; choose another home"),
            (Path(tempfile.gettempdir()) / f"volition-{address}.lock",
             f"keeps the daemon on {settings.control}; choose another control address"),
        ):  # fmt: skip
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                lock = held.enter_context(path.open("w"))
            except OSError as error:
                raise SettingsError(
                    f"{path} can't be written ({error}); make it writable"
                ) from error
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise SettingsError(f"another server {what}") from error
        yield


@contextmanager
def bound(settings: ServerSettings) -> Iterator[socket.socket]:
    """The listening socket, opened before anything else is touched. Raises SettingsError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise SettingsError(
            f"can't listen on {settings.host}:{settings.port} ({error.strerror}); choose another "
            "host or port"
        ) from error
    with listener:
        # Connections inherit this. With Nagle's algorithm, which asyncio leaves on for a socket it
        # did not create, a response of two writes waits 40 ms for the client's delayed ACK.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield listener


def build_app(parts: Parts, given: str | None = None) -> FastAPI:
    """The FastAPI app over these parts. given: see `SupervisedDaemon.start`."""
    monitor = Monitor(parts.settings, parts.supervisor, parts.calibrations, parts.unattended)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        parts.supervisor.start(given)
        log.info(
            "http://%s:%d, home %s, daemon on %s",
            parts.settings.host, parts.settings.port, parts.settings.home, parts.settings.control,
        )  # fmt: skip
        with ExitStack() as ends:  # each runs even if another one fails
            ends.callback(parts.journal.close)
            ends.callback(parts.notes.close)
            ends.callback(parts.supervisor.stop)
            ends.callback(parts.calibrations.stop)
            ends.callback(parts.unattended.stop)
            ends.callback(monitor.stop)
            parts.unattended.start()
            parts.notes.start()
            monitor.start()
            yield

    app = FastAPI(
        title="Volition",
        version=version("volition"),
        description="The control plane of a real-time neural decoder. For research use.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=documented(400, 403, 413),
    )
    app.state.parts, app.state.monitor = parts, monitor
    problems.install(app)
    app.include_router(health)
    app.include_router(v2_health)
    needs_token = documented_token(parts.settings)
    refused = documented(401, 429) if needs_token else None
    for routes in (v1, decoders, calibrations, units.router, notes.router, v2, metrics):
        app.include_router(routes, dependencies=needs_token, responses=refused)
    dashboard.install(app)
    app.state.tokens = Tokens(parts.settings)
    app.state.feed = Feed(
        parts.settings.daemon.address, lambda: status(parts).model_dump_json().encode()
    )
    app.add_middleware(Gate, settings=parts.settings, tokens=app.state.tokens)
    if parts.settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=parts.settings.allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["Location"],
        )
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's OpenAPI document, with problem documents for invalid requests."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        schemas = document["components"]["schemas"]
        schemas["Problem"] = Problem.model_json_schema()
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        for path in document["paths"].values():
            for operation in path.values():
                if "422" in operation["responses"]:
                    operation["responses"] |= {"422": documented(422)[422]}
        app.openapi_schema = document
    return app.openapi_schema
