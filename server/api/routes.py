"""The REST routes: documentation and types; the work is done elsewhere. Guide: docs/REST.md.

Those of decoders and calibrations are in the modules of these names.
"""

from __future__ import annotations

import dataclasses
import threading
from functools import cache
from typing import Annotated

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Path, Query, Request

from server.access.gate import Operator
from server.api.streams import streams
from server.calibration.calibrations import Calibrations
from server.notes import NotesOutlet
from server.problems import documented
from server.schemas import (
    Change,
    FiltersPatch,
    FiltersView,
    Health,
    Input,
    Pause,
    ServerStatus,
    Stream,
    filters_view,
    view,
)
from server.settings import ServerSettings
from server.store.journal import Journal
from server.store.registry import Registry
from server.supervision.daemon import SupervisedDaemon
from server.unattended.bodies import Unattended, UnattendedState
from server.unattended.unattended import UnattendedCalibrations
from streaming.inlets.spikes import StreamQuery
from streaming.wire import control

MOST_PAUSES = 20  # at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of the server that the routes act on."""

    settings: ServerSettings
    journal: Journal
    registry: Registry
    supervisor: SupervisedDaemon
    calibrations: Calibrations
    unattended: UnattendedCalibrations
    notes: NotesOutlet
    stopping: threading.Event = dataclasses.field(default_factory=threading.Event)


async def parts(request: Request) -> Parts:
    """The parts behind the app that received the request."""
    found: Parts = request.app.state.parts
    return found


On = Annotated[Parts, Depends(parts)]
Id = Annotated[str, Path(min_length=1, max_length=200)]
health = APIRouter(prefix="/health", tags=["health"])
v1 = APIRouter(prefix="/v1")


@health.get("/live")
def live() -> Health:
    """The server is up."""
    return Health()


@health.get("/ready", responses=documented(503))
def ready(on: On) -> Health:
    """A daemon is running and answers. Whether its velocity is valid is in every frame."""
    if on.supervisor.status is None:
        raise control.NoAnswerError("no daemon answers; see GET /v1/status")
    return Health()


@v1.get("/status", tags=["decoding"])
def status(on: On) -> ServerStatus:
    """The daemon's state, decoder, latency, streams, units and filters."""
    running = on.calibrations.running
    return ServerStatus(
        answered=on.supervisor.status is not None,
        restarting=on.supervisor.restarting,
        restarts=on.supervisor.restarts,
        daemon=view(on.supervisor.status),
        calibration=running.id if running else None,
        unattended=on.unattended.summary(),
    )


@v1.get("/streams", tags=["decoding"])
def seen_streams(on: On) -> list[Stream]:
    """List the LSL streams on the network and what each would be used for. Takes a second."""
    return streams(on.supervisor.status)


@v1.get("/input", tags=["decoding"])
def get_input(on: On) -> Input:
    """The spike stream that the daemon reads or waits for."""
    return Input(**dataclasses.asdict(on.supervisor.wanted.input))


@v1.put("/input", tags=["decoding"], responses=documented(409, 503))
def put_input(body: Input, on: On, who: Operator) -> Input:
    """Read another spike stream. Frames are not valid until its spikes fill the window."""
    on.supervisor.read_from(StreamQuery(kind=body.kind, name=body.name), who=who)
    return body


@v1.post("/decoding/pause", tags=["decoding"], responses=documented(409, 503))
async def pause(on: On, who: Operator, body: Pause | None = None) -> ServerStatus:
    """Publish zero velocity and `valid` false from the next tick until decoding is resumed.

    The pause also holds for daemons that start in the meantime, even if this request fails.
    """
    why = body.why if body else ""
    # In its own threads: all the others may be waiting for a decoder or the disk.
    await to_thread.run_sync(lambda: on.supervisor.pause(why, who=who), limiter=_pausing())
    return status(on)


@cache
def _pausing() -> CapacityLimiter:
    return CapacityLimiter(MOST_PAUSES)


@v1.post("/decoding/resume", tags=["decoding"], responses=documented(409, 503))
def resume(on: On, who: Operator) -> ServerStatus:
    """Resume decoding."""
    on.supervisor.resume(who=who)
    return status(on)


@v1.post("/decoding/arm", tags=["decoding"], responses=documented(409, 503))
def arm(on: On, who: Operator) -> ServerStatus:
    """Resume decoding if a client listens, spikes fill the window and the decoder is warm."""
    on.supervisor.resume(who=who, command=control.Arm())
    return status(on)


@v1.get("/filters", tags=["decoding"])
def get_filters(on: On) -> FiltersView:
    """The output filters in use."""
    return filters_view(on.supervisor.wanted.filters)


@v1.patch("/filters", tags=["decoding"], responses=documented(409, 503))
def patch_filters(body: FiltersPatch, on: On, who: Operator) -> FiltersView:
    """Change some settings of the output filters from the next tick on."""
    return filters_view(on.supervisor.filter(body.model_dump(exclude_unset=True), who=who))


@v1.get("/unattended", tags=["calibrations"])
def get_unattended(on: On) -> UnattendedState:
    """When the server recalibrates by itself, what it waits for, and whether it is frozen."""
    return on.unattended.state()


@v1.put("/unattended", tags=["calibrations"], responses=documented(409))
def put_unattended(body: Unattended, on: On, who: Operator) -> UnattendedState:
    """Change when the server recalibrates by itself. Ends a freeze and the present rest."""
    return on.unattended.set(body, who=who)


@v1.post("/unattended/freeze", tags=["calibrations"], responses=documented(409))
def freeze_unattended(on: On, who: Operator) -> UnattendedState:
    """Start nothing more until the settings are put again; cancel a running unattended calibration.

    It stays frozen when the server restarts. A repeated request changes nothing.
    """
    return on.unattended.freeze(who=who)


@v1.get("/journal", tags=["decoding"])
def journal(on: On, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[Change]:
    """The journal: what was changed, by whom and when, newest first."""
    return [Change(**change) for change in on.journal.changes(limit)]
