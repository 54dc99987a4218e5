"""The control plane: a REST interface beside the decode daemon, which goes on without it.

    volition serve --bundle monkey.bundle

Lifecycle: `serve` builds the app and runs it under uvicorn; the app's start adopts or starts the
daemon, its end stops what runs.
"""

from __future__ import annotations

import fcntl
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from decoder.errors import SettingsError
from server import problems
from server.access import OnlyOurHosts, bearer
from server.calibration import Calibrations
from server.daemon import Supervisor, known_bundle
from server.journal import Journal
from server.problems import documented
from server.registry import Registry
from server.routes import Parts, health, v1
from server.schemas import Problem
from server.settings import ServerSettings

log = logging.getLogger("volition.server")

GRACE_S = 2  # for open event streams, when the server stops


def serve(settings: ServerSettings, *, bundle: Path | None = None) -> None:
    """Run until SIGINT or SIGTERM.

    bundle: registered, and decoded with unless it was given before.
    Raises SettingsError where another server uses the same home, BundleError for a bad bundle.
    """
    with only_server(settings.home):
        journal, registry = Journal(settings.home / "journal.sqlite"), Registry(settings.decoders)
        if bundle is not None:
            known_bundle(registry, journal, bundle)
        supervisor = Supervisor(settings, journal, registry)
        parts = Parts(
            settings=settings,
            journal=journal,
            registry=registry,
            supervisor=supervisor,
            calibrations=Calibrations(settings, journal, supervisor, registry),
        )
        uvicorn.run(
            build_app(parts),
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_S,
        )


@contextmanager
def only_server(home: Path) -> Iterator[None]:
    """Hold the home folder for this process."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / "server.lock").open("w")
    except OSError as error:
        raise SettingsError(f"home {home} can't be written ({error}); choose another") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SettingsError(f"another server uses {home}; choose another home") from error
        yield


def build_app(parts: Parts) -> FastAPI:
    """The app over these parts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        parts.supervisor.start()
        log.info(
            "http://%s:%d, home %s, daemon on %s",
            parts.settings.host, parts.settings.port, parts.settings.home, parts.settings.control,
        )  # fmt: skip
        yield
        parts.calibrations.stop()
        parts.supervisor.stop()
        parts.journal.close()

    app = FastAPI(
        title="Volition",
        version=version("volition"),
        description="Real-time neural decoding: the control plane. For research.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=documented(400, 403),
    )
    app.state.parts = parts
    problems.install(app)
    app.include_router(health)
    needs_token = bearer(parts.settings)
    app.include_router(
        v1, dependencies=needs_token, responses=documented(401) if needs_token else None
    )
    app.add_middleware(OnlyOurHosts, settings=parts.settings)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document, with problems as the answer to requests that are not as documented."""
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
