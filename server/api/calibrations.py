"""The REST routes of calibrations: start, follow, decide, discard, and what to plot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from server.access.gate import Operator
from server.api.routes import Id, On
from server.calibration.traces import HeldOutTraces, to_plot
from server.problems import documented
from server.schemas import RUNNING, Calibration, CalibrationRequest

EVENTS_EVERY_S = 0.1
calibrations = APIRouter(prefix="/v1/calibrations", tags=["calibrations"])


@calibrations.post("", status_code=202, responses=documented(404, 409))
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


@calibrations.get("")
def list_calibrations(on: On) -> list[Calibration]:
    """List all calibrations, newest first."""
    return on.calibrations.all()


@calibrations.get("/{id}", responses=documented(404))
def get_calibration(id: Id, on: On) -> Calibration:
    """The current state of one calibration."""
    return on.calibrations.get(id)


def _known(id: Id, on: On) -> str:
    on.calibrations.get(id)
    return id


@calibrations.get(
    "/{id}/events",
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


@calibrations.post("/{id}/finish", responses=documented(404, 409))
def finish_calibration(id: Id, on: On, who: Operator) -> Calibration:
    """Stop collecting and train on the data collected so far."""
    return on.calibrations.finish(id, who=who)


@calibrations.post(
    "/{id}/resume",
    status_code=202,
    responses=documented(404, 409),
)
def resume_calibration(id: Id, on: On, who: Operator) -> Calibration:
    """Continue a calibration that was cut short: collect the missing data, then train."""
    return on.calibrations.resume(id, who=who)


@calibrations.post("/{id}/cancel", responses=documented(404, 409))
def cancel_calibration(id: Id, on: On, who: Operator) -> Calibration:
    """Cancel a running calibration; its data are kept. 409 if it has already ended."""
    return on.calibrations.cancel(id, who=who)


@calibrations.post("/{id}/promote", responses=documented(404, 409, 503))
def promote_calibration(id: Id, on: On, who: Operator) -> Calibration:
    """Activate the candidate of a calibration that ended as ready, undecided or rejected."""
    return on.calibrations.promote(id, who=who)


@calibrations.post("/{id}/reject", responses=documented(404, 409))
def reject_calibration(id: Id, on: On, who: Operator) -> Calibration:
    """Reject the candidate of a calibration that ended as ready or undecided."""
    return on.calibrations.reject(id, who=who)


@calibrations.get("/{id}/traces", responses=documented(404))
def calibration_traces(id: Id, on: On) -> HeldOutTraces:
    """The velocities that the held-out scores come from, at most 3,000 points.

    404 if the calibration has none: it was not compared, or an older version made it.
    """
    return to_plot(on.calibrations.traces(id))


@calibrations.delete("/{id}", status_code=204, responses=documented(404))
def delete_calibration(id: Id, on: On, who: Operator) -> None:
    """Cancel a running calibration, or discard one that has ended, with its data."""
    on.calibrations.remove(id, who=who)
