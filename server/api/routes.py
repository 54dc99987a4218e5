"""The REST routes: documentation and types; the work is done elsewhere. Guide: docs/REST.md."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator
from functools import cache
from typing import Annotated, Any
from urllib.parse import quote

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from decoder.bundles.bundle import open_bundle
from decoder.errors import BundleError
from server.api.access import Operator
from server.api.streams import streams
from server.calibration.calibrations import Calibrations
from server.notes import NotesOutlet
from server.problems import documented
from server.schemas import (
    RUNNING,
    Calibration,
    CalibrationRequest,
    Change,
    Decoder,
    DecoderDetail,
    FiltersPatch,
    FiltersView,
    Health,
    Input,
    NewDecoder,
    Pause,
    ServerStatus,
    Stream,
    filters_view,
    view,
)
from server.settings import ServerSettings
from server.store.journal import Journal
from server.store.registry import Entry, Registry
from server.supervision.daemon import SupervisedDaemon
from server.unattended.bodies import Unattended, UnattendedState
from server.unattended.unattended import UnattendedCalibrations
from streaming.inlets.spikes import StreamQuery
from streaming.wire import control
from streaming.wire import messages as wire

EVENTS_EVERY_S = 0.1
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


@v1.get("/decoders", tags=["decoders"])
def list_decoders(on: On) -> list[Decoder]:
    """List the decoders in the registry, newest first."""
    active = _active(on)
    return [Decoder(**_summary(entry, active)) for entry in on.registry.all()]


@v1.post("/decoders", tags=["decoders"], status_code=201, responses=documented(409))
def add_decoder(body: NewDecoder, on: On, who: Operator, response: Response) -> Decoder:
    """Verify a bundle on the server's host and copy it into the registry."""
    from pathlib import Path as FilePath

    entry = on.registry.add(FilePath(body.path))
    on.journal.note(who, "register", decoder=entry.manifest.decoder_id, path=body.path)
    response.headers["Location"] = f"/v1/decoders/{quote(entry.manifest.decoder_id, safe='')}"
    return Decoder(**_summary(entry, _active(on)))


@v1.post("/decoders/rollback", tags=["decoders"], responses=documented(404, 409, 503))
def rollback(on: On, who: Operator) -> ServerStatus:
    """Go back to the previous decoder from the next tick on."""
    on.supervisor.rollback(who=who)
    return status(on)


@v1.get("/decoders/{id}", tags=["decoders"], responses=documented(404))
def get_decoder(id: Id, on: On) -> DecoderDetail:
    """One decoder with its unit ids; the checksums of its files are verified."""
    entry = on.registry.get(id)
    problem = None
    try:
        open_bundle(entry.path)
    except BundleError as error:
        problem = str(error)
    return DecoderDetail(
        **_summary(entry, _active(on)),
        unit_ids=list(entry.manifest.unit_ids),
        path=str(entry.path.absolute()),
        problem=problem,
    )


@v1.post("/decoders/{id}/activate", tags=["decoders"], responses=documented(404, 409, 503))
def activate(id: Id, on: On, who: Operator) -> ServerStatus:
    """Warm up a decoder while the active one decodes, then swap between two ticks."""
    on.supervisor.activate(id, who=who)
    return status(on)


def _active(on: Parts) -> str | None:
    answered: wire.Status | None = on.supervisor.status
    return answered.decoder if answered else None


def _summary(entry: Entry, active: str | None) -> dict[str, Any]:
    manifest = entry.manifest
    return {
        "id": manifest.decoder_id,
        "family": manifest.family,
        "preset": manifest.preset,
        "session": manifest.session_id,
        "units": len(manifest.unit_ids),
        "added": entry.added,
        "active": manifest.decoder_id == active,
        "metrics": manifest.metrics,
        "provenance": manifest.provenance,
    }


@v1.post("/calibrations", tags=["calibrations"], status_code=202, responses=documented(404, 409))
def start_calibration(
    body: CalibrationRequest,
    on: On,
    who: Operator,
    response: Response,
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="a repeated key returns the calibration that the first request started",
            min_length=1,
            max_length=200,
            pattern=r"^[A-Za-z0-9._:\-]+$",
        ),
    ] = None,
) -> Calibration:
    """Collect labelled data, train on today's units, score the result, and swap if it is better."""
    calibration = on.calibrations.start(body, key=key, who=who)
    response.headers["Location"] = f"/v1/calibrations/{calibration.id}"
    return calibration


@v1.get("/calibrations", tags=["calibrations"])
def list_calibrations(on: On) -> list[Calibration]:
    """List all calibrations, newest first."""
    return on.calibrations.all()


@v1.get("/calibrations/{id}", tags=["calibrations"], responses=documented(404))
def get_calibration(id: Id, on: On) -> Calibration:
    """The current state of one calibration."""
    return on.calibrations.get(id)


def _known(id: Id, on: On) -> str:
    on.calibrations.get(id)
    return id


@v1.get(
    "/calibrations/{id}/events",
    tags=["calibrations"],
    response_class=EventSourceResponse,
    responses=documented(404),
)
async def calibration_events(
    id: Annotated[str, Depends(_known)], on: On
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: the calibration each time it changes, until it has ended."""
    sent, number = "", 0
    while not on.stopping.is_set():
        try:
            calibration = on.calibrations.get(id)
        except Exception:  # it was discarded
            return
        document = calibration.model_dump_json()
        if document != sent:
            sent, number = document, number + 1
            yield ServerSentEvent(raw_data=document, event=calibration.state, id=str(number))
        if calibration.state not in RUNNING:
            return
        await asyncio.sleep(EVENTS_EVERY_S)


@v1.post("/calibrations/{id}/finish", tags=["calibrations"], responses=documented(404, 409))
def finish_calibration(id: Id, on: On, who: Operator) -> Calibration:
    """Stop collecting and train on the data collected so far."""
    return on.calibrations.finish(id, who=who)


@v1.post(
    "/calibrations/{id}/resume",
    tags=["calibrations"],
    status_code=202,
    responses=documented(404, 409),
)
def resume_calibration(id: Id, on: On, who: Operator) -> Calibration:
    """Continue a calibration that was cut short: collect the missing data, then train."""
    return on.calibrations.resume(id, who=who)


@v1.post("/calibrations/{id}/cancel", tags=["calibrations"], responses=documented(404, 409))
def cancel_calibration(id: Id, on: On, who: Operator) -> Calibration:
    """Cancel a running calibration; its data are kept. 409 if it has already ended."""
    return on.calibrations.cancel(id, who=who)


@v1.delete("/calibrations/{id}", tags=["calibrations"], status_code=204, responses=documented(404))
def delete_calibration(id: Id, on: On, who: Operator) -> None:
    """Cancel a running calibration, or discard one that has ended, with its data."""
    on.calibrations.remove(id, who=who)


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
