"""The asyncio client of the REST interface; `clients/control.py` is generated from it.

python -m tests.twin    # after a change here
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from types import NoneType, TracebackType
from typing import Self, TypeVar

import httpx
from httpx_sse import aconnect_sse
from pydantic import BaseModel

from clients.rest import (
    DEFAULT_URL,
    RENEW_EVERY_S,
    RENEW_S,
    UnreachableError,
    body_json,
    http_options,
    idempotency,
    part_of,
    read_answer,
    unreachable,
)
from server.api.bodies import Decoder, DecoderDetail, DecoderPatch, NewDecoder
from server.calibration.traces import HeldOutTraces
from server.notes import NewNote
from server.schemas import (
    RUNNING,
    Calibration,
    CalibrationRequest,
    Change,
    FiltersPatch,
    FiltersView,
    Input,
    Pause,
    ServerStatus,
    Stream,
)
from server.unattended.bodies import Unattended, UnattendedState
from server.units import Units, UnitsPatch

T = TypeVar("T")


class AsyncControlClient:
    """A client for asyncio; one request at a time.

    url: of the server. token: the server's bearer token, if it has one. operator: a name for its
    journal.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, token: str | None = None, operator: str | None = None
    ) -> None:
        self._http = httpx.AsyncClient(**http_options(url, token, operator))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _ask(
        self,
        method: str,
        path: str,
        answer: type[T],
        body: BaseModel | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        try:
            response = await self._http.request(method, path, json=body_json(body), headers=headers)
        except httpx.TransportError as error:
            raise unreachable(self._http.base_url, error) from error
        return read_answer(response, answer)

    async def status(self) -> ServerStatus:
        """The state of server and daemon."""
        return await self._ask("GET", "/v1/status", ServerStatus)

    async def streams(self) -> list[Stream]:
        """The LSL streams on the network."""
        return await self._ask("GET", "/v1/streams", list[Stream])

    async def input(self) -> Input:
        """The spike stream that the daemon reads."""
        return await self._ask("GET", "/v1/input", Input)

    async def set_input(self, body: Input) -> Input:
        """Make the daemon read another spike stream."""
        return await self._ask("PUT", "/v1/input", Input, body)

    async def decoders(self) -> list[Decoder]:
        """The bundles in the registry, newest first."""
        return await self._ask("GET", "/v1/decoders", list[Decoder])

    async def decoder(self, identity: str) -> DecoderDetail:
        """One bundle in detail, after verifying it."""
        return await self._ask("GET", f"/v1/decoders/{part_of(identity)}", DecoderDetail)

    async def add_decoder(self, path: str) -> Decoder:
        """Register a bundle by its path on the server's host."""
        return await self._ask("POST", "/v1/decoders", Decoder, NewDecoder(path=path))

    async def mark_decoder(
        self, identity: str, *, label: str | None = None, pinned: bool | None = None
    ) -> Decoder:
        """Label a bundle, or pin it so that it can't be deleted; None changes nothing."""
        given = {n: v for n, v in (("label", label), ("pinned", pinned)) if v is not None}
        path = f"/v1/decoders/{part_of(identity)}"
        return await self._ask("PATCH", path, Decoder, DecoderPatch.model_validate(given))

    async def delete_decoder(self, identity: str) -> None:
        """Delete a bundle that is not pinned and that nothing needs."""
        return await self._ask("DELETE", f"/v1/decoders/{part_of(identity)}", NoneType)

    async def activate(self, identity: str) -> ServerStatus:
        """Switch to another decoder."""
        return await self._ask("POST", f"/v1/decoders/{part_of(identity)}/activate", ServerStatus)

    async def rollback(self) -> ServerStatus:
        """Switch back to the previous decoder."""
        return await self._ask("POST", "/v1/decoders/rollback", ServerStatus)

    async def pause(self, why: str = "") -> ServerStatus:
        """Hold velocity at zero, not valid, until `resume`."""
        return await self._ask("POST", "/v1/decoding/pause", ServerStatus, Pause(why=why))

    async def resume(self) -> ServerStatus:
        """End a pause."""
        return await self._ask("POST", "/v1/decoding/resume", ServerStatus)

    async def arm(self) -> ServerStatus:
        """End a pause if spikes, decoder and a listener are all present."""
        return await self._ask("POST", "/v1/decoding/arm", ServerStatus)

    async def filters(self) -> FiltersView:
        """The output filters in use."""
        return await self._ask("GET", "/v1/filters", FiltersView)

    async def set_filters(self, body: FiltersPatch) -> FiltersView:
        """Change the output filters that are given."""
        return await self._ask("PATCH", "/v1/filters", FiltersView, body)

    async def units(self) -> Units:
        """The open stream's units: known, excluded, faulty."""
        return await self._ask("GET", "/v1/units", Units)

    async def exclude_units(self, *unit_ids: str) -> Units:
        """Leave the spikes of these units out from the next tick on."""
        return await self.change_units(UnitsPatch(exclude=list(unit_ids)))

    async def include_units(self, *unit_ids: str) -> Units:
        """Decode the spikes of these units again."""
        return await self.change_units(UnitsPatch(include=list(unit_ids)))

    async def change_units(self, body: UnitsPatch) -> Units:
        """Exclude some units and include others again, in one order."""
        return await self._ask("PATCH", "/v1/units", Units, body)

    async def note(self, text: str) -> Change:
        """Write down what happens: in the journal, and as an LSL marker for recorders."""
        return await self._ask("POST", "/v1/notes", Change, NewNote(text=text))

    async def journal(self, limit: int = 100) -> list[Change]:
        """The latest changes, newest first."""
        return await self._ask("GET", f"/v1/journal?limit={limit}", list[Change])

    async def calibrations(self) -> list[Calibration]:
        """Every calibration, newest first."""
        return await self._ask("GET", "/v1/calibrations", list[Calibration])

    async def calibration(self, identity: str) -> Calibration:
        """One calibration with its current state."""
        return await self._ask("GET", f"/v1/calibrations/{part_of(identity)}", Calibration)

    async def start_calibration(
        self, body: CalibrationRequest, key: str | None = None
    ) -> Calibration:
        """Start a calibration. A repeated `key` starts only one."""
        return await self._ask("POST", "/v1/calibrations", Calibration, body, idempotency(key))

    async def finish_calibration(self, identity: str) -> Calibration:
        """Stop collecting and start learning."""
        return await self._ask("POST", f"/v1/calibrations/{part_of(identity)}/finish", Calibration)

    async def resume_calibration(self, identity: str) -> Calibration:
        """Continue an interrupted calibration."""
        return await self._ask("POST", f"/v1/calibrations/{part_of(identity)}/resume", Calibration)

    async def cancel_calibration(self, identity: str) -> Calibration:
        """Cancel a running calibration and keep its data."""
        return await self._ask("POST", f"/v1/calibrations/{part_of(identity)}/cancel", Calibration)

    async def promote_calibration(self, identity: str) -> Calibration:
        """Activate the candidate of an ended calibration, whatever the gate's answer."""
        return await self._ask("POST", f"/v1/calibrations/{part_of(identity)}/promote", Calibration)

    async def reject_calibration(self, identity: str) -> Calibration:
        """Reject the candidate of a calibration that is ready or undecided."""
        return await self._ask("POST", f"/v1/calibrations/{part_of(identity)}/reject", Calibration)

    async def traces(self, identity: str) -> HeldOutTraces:
        """The velocities that a calibration's held-out scores come from."""
        return await self._ask("GET", f"/v1/calibrations/{part_of(identity)}/traces", HeldOutTraces)

    async def delete_calibration(self, identity: str) -> None:
        """Cancel a running calibration, or delete an ended one."""
        return await self._ask("DELETE", f"/v1/calibrations/{part_of(identity)}", NoneType)

    async def unattended(self) -> UnattendedState:
        """When the server recalibrates by itself, and what it waits for."""
        return await self._ask("GET", "/v1/unattended", UnattendedState)

    async def set_unattended(self, body: Unattended) -> UnattendedState:
        """Change when the server recalibrates by itself; ends a freeze."""
        return await self._ask("PUT", "/v1/unattended", UnattendedState, body)

    async def freeze_unattended(self) -> UnattendedState:
        """Stop unattended recalibration until it is set again; cancels a running one."""
        return await self._ask("POST", "/v1/unattended/freeze", UnattendedState)

    async def follow(self, identity: str) -> AsyncIterator[Calibration]:
        """Yield a calibration each time it changes, until it ends.

        A lost connection, or a restarted server, is retried for `RENEW_S` seconds.
        """
        calibration: Calibration | None = None
        lost_at = float("inf")
        while True:
            try:
                calibration = await self.calibration(identity)
                lost_at = float("inf")
                yield calibration
                if calibration.state not in RUNNING:
                    return
                async with aconnect_sse(
                    self._http, "GET", f"/v1/calibrations/{part_of(identity)}/events"
                ) as source:
                    async for event in source.aiter_sse():
                        if not event.data:  # a sign of life without news
                            continue
                        calibration = Calibration.model_validate_json(event.data, extra="ignore")
                        yield calibration
            except (UnreachableError, httpx.TransportError):
                lost_at = min(lost_at, time.monotonic())
                if time.monotonic() - lost_at > RENEW_S:
                    raise
            if calibration is not None and calibration.state not in RUNNING:
                return
            await asyncio.sleep(RENEW_EVERY_S)

    async def calibrate(
        self, body: CalibrationRequest, key: str | None = None
    ) -> AsyncIterator[Calibration]:
        """Start a calibration and follow it until it ends."""
        begun = await self.start_calibration(body, key)
        async for calibration in self.follow(begun.id):
            yield calibration
