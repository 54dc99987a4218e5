"""A typed client of the REST interface, blocking and asyncio.

    with ControlClient() as volition:
        volition.pause("between blocks")
        for calibration in volition.calibrate(CalibrationRequest(seconds=40)):
            print(calibration.state, calibration.collected_s)
        print(calibration.held_out)

Bodies and answers are the server's own models (`server.schemas`). A refusal by the server raises
ProblemError with its problem document; a server that does not answer raises UnreachableError.

Generated from `clients/control_async.py` by `python -m tests.twin`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from types import NoneType, TracebackType
from typing import Self, TypeVar

import httpx
from httpx_sse import connect_sse
from pydantic import BaseModel

from clients.control_async import AsyncControlClient
from clients.rest import (
    DEFAULT_URL,
    RENEW_EVERY_S,
    RENEW_S,
    ProblemError,
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

__all__ = ["AsyncControlClient", "ControlClient", "ProblemError", "UnreachableError"]


class ControlClient:
    """A blocking client; one request at a time.

    url: of the server. token: the server's bearer token, if it has one. operator: a name for its
    journal.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, token: str | None = None, operator: str | None = None
    ) -> None:
        self._http = httpx.Client(**http_options(url, token, operator))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _ask(
        self,
        method: str,
        path: str,
        answer: type[T],
        body: BaseModel | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        try:
            response = self._http.request(method, path, json=body_json(body), headers=headers)
        except httpx.TransportError as error:
            raise unreachable(self._http.base_url, error) from error
        return read_answer(response, answer)

    def status(self) -> ServerStatus:
        """The state of server and daemon."""
        return self._ask("GET", "/v1/status", ServerStatus)

    def streams(self) -> list[Stream]:
        """The LSL streams on the network."""
        return self._ask("GET", "/v1/streams", list[Stream])

    def input(self) -> Input:
        """The spike stream that the daemon reads."""
        return self._ask("GET", "/v1/input", Input)

    def set_input(self, body: Input) -> Input:
        """Make the daemon read another spike stream."""
        return self._ask("PUT", "/v1/input", Input, body)

    def decoders(self) -> list[Decoder]:
        """The bundles in the registry, newest first."""
        return self._ask("GET", "/v1/decoders", list[Decoder])

    def decoder(self, identity: str) -> DecoderDetail:
        """One bundle in detail, after verifying it."""
        return self._ask("GET", f"/v1/decoders/{part_of(identity)}", DecoderDetail)

    def add_decoder(self, path: str) -> Decoder:
        """Register a bundle by its path on the server's host."""
        return self._ask("POST", "/v1/decoders", Decoder, NewDecoder(path=path))

    def mark_decoder(
        self, identity: str, *, label: str | None = None, pinned: bool | None = None
    ) -> Decoder:
        """Label a bundle, or pin it so that it can't be deleted; None changes nothing."""
        given = {n: v for n, v in (("label", label), ("pinned", pinned)) if v is not None}
        path = f"/v1/decoders/{part_of(identity)}"
        return self._ask("PATCH", path, Decoder, DecoderPatch.model_validate(given))

    def delete_decoder(self, identity: str) -> None:
        """Delete a bundle that is not pinned and that nothing needs."""
        return self._ask("DELETE", f"/v1/decoders/{part_of(identity)}", NoneType)

    def activate(self, identity: str) -> ServerStatus:
        """Switch to another decoder."""
        return self._ask("POST", f"/v1/decoders/{part_of(identity)}/activate", ServerStatus)

    def rollback(self) -> ServerStatus:
        """Switch back to the previous decoder."""
        return self._ask("POST", "/v1/decoders/rollback", ServerStatus)

    def pause(self, why: str = "") -> ServerStatus:
        """Hold velocity at zero, not valid, until `resume`."""
        return self._ask("POST", "/v1/decoding/pause", ServerStatus, Pause(why=why))

    def resume(self) -> ServerStatus:
        """End a pause."""
        return self._ask("POST", "/v1/decoding/resume", ServerStatus)

    def arm(self) -> ServerStatus:
        """End a pause if spikes, decoder and a listener are all present."""
        return self._ask("POST", "/v1/decoding/arm", ServerStatus)

    def filters(self) -> FiltersView:
        """The output filters in use."""
        return self._ask("GET", "/v1/filters", FiltersView)

    def set_filters(self, body: FiltersPatch) -> FiltersView:
        """Change the output filters that are given."""
        return self._ask("PATCH", "/v1/filters", FiltersView, body)

    def units(self) -> Units:
        """The open stream's units: known, excluded, faulty."""
        return self._ask("GET", "/v1/units", Units)

    def exclude_units(self, *unit_ids: str) -> Units:
        """Leave the spikes of these units out from the next tick on."""
        return self.change_units(UnitsPatch(exclude=list(unit_ids)))

    def include_units(self, *unit_ids: str) -> Units:
        """Decode the spikes of these units again."""
        return self.change_units(UnitsPatch(include=list(unit_ids)))

    def change_units(self, body: UnitsPatch) -> Units:
        """Exclude some units and include others again, in one order."""
        return self._ask("PATCH", "/v1/units", Units, body)

    def note(self, text: str) -> Change:
        """Write down what happens: in the journal, and as an LSL marker for recorders."""
        return self._ask("POST", "/v1/notes", Change, NewNote(text=text))

    def journal(self, limit: int = 100) -> list[Change]:
        """The latest changes, newest first."""
        return self._ask("GET", f"/v1/journal?limit={limit}", list[Change])

    def calibrations(self) -> list[Calibration]:
        """Every calibration, newest first."""
        return self._ask("GET", "/v1/calibrations", list[Calibration])

    def calibration(self, identity: str) -> Calibration:
        """One calibration with its current state."""
        return self._ask("GET", f"/v1/calibrations/{part_of(identity)}", Calibration)

    def start_calibration(self, body: CalibrationRequest, key: str | None = None) -> Calibration:
        """Start a calibration. A repeated `key` starts only one."""
        return self._ask("POST", "/v1/calibrations", Calibration, body, idempotency(key))

    def finish_calibration(self, identity: str) -> Calibration:
        """Stop collecting and start learning."""
        return self._ask("POST", f"/v1/calibrations/{part_of(identity)}/finish", Calibration)

    def resume_calibration(self, identity: str) -> Calibration:
        """Continue an interrupted calibration."""
        return self._ask("POST", f"/v1/calibrations/{part_of(identity)}/resume", Calibration)

    def cancel_calibration(self, identity: str) -> Calibration:
        """Cancel a running calibration and keep its data."""
        return self._ask("POST", f"/v1/calibrations/{part_of(identity)}/cancel", Calibration)

    def promote_calibration(self, identity: str) -> Calibration:
        """Activate the candidate of an ended calibration, whatever the gate's answer."""
        return self._ask("POST", f"/v1/calibrations/{part_of(identity)}/promote", Calibration)

    def reject_calibration(self, identity: str) -> Calibration:
        """Reject the candidate of a calibration that is ready or undecided."""
        return self._ask("POST", f"/v1/calibrations/{part_of(identity)}/reject", Calibration)

    def traces(self, identity: str) -> HeldOutTraces:
        """The velocities that a calibration's held-out scores come from."""
        return self._ask("GET", f"/v1/calibrations/{part_of(identity)}/traces", HeldOutTraces)

    def delete_calibration(self, identity: str) -> None:
        """Cancel a running calibration, or delete an ended one."""
        return self._ask("DELETE", f"/v1/calibrations/{part_of(identity)}", NoneType)

    def unattended(self) -> UnattendedState:
        """When the server recalibrates by itself, and what it waits for."""
        return self._ask("GET", "/v1/unattended", UnattendedState)

    def set_unattended(self, body: Unattended) -> UnattendedState:
        """Change when the server recalibrates by itself; ends a freeze."""
        return self._ask("PUT", "/v1/unattended", UnattendedState, body)

    def freeze_unattended(self) -> UnattendedState:
        """Stop unattended recalibration until it is set again; cancels a running one."""
        return self._ask("POST", "/v1/unattended/freeze", UnattendedState)

    def follow(self, identity: str) -> Iterator[Calibration]:
        """Yield a calibration each time it changes, until it ends.

        A lost connection, or a restarted server, is retried for `RENEW_S` seconds.
        """
        calibration: Calibration | None = None
        lost_at = float("inf")
        while True:
            try:
                calibration = self.calibration(identity)
                lost_at = float("inf")
                yield calibration
                if calibration.state not in RUNNING:
                    return
                with connect_sse(
                    self._http, "GET", f"/v1/calibrations/{part_of(identity)}/events"
                ) as source:
                    for event in source.iter_sse():
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
            time.sleep(RENEW_EVERY_S)

    def calibrate(self, body: CalibrationRequest, key: str | None = None) -> Iterator[Calibration]:
        """Start a calibration and follow it until it ends."""
        begun = self.start_calibration(body, key)
        yield from self.follow(begun.id)
