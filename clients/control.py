"""A typed client of the REST interface, blocking and asyncio.

    with ControlClient() as volition:
        volition.pause("between blocks")
        for calibration in volition.calibrate(CalibrationRequest(seconds=40)):
            print(calibration.state, calibration.collected_s)
        print(calibration.held_out)

Bodies and answers are the server's own models (`server.schemas`). What the server refuses is raised
as ProblemError with its problem document; a server that isn't there as UnreachableError.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from types import NoneType, TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from httpx_sse import aconnect_sse, connect_sse
from pydantic import BaseModel, TypeAdapter, ValidationError

from decoder.errors import VolitionError
from server.schemas import (
    RUNNING,
    Calibration,
    CalibrationRequest,
    Change,
    Decoder,
    DecoderDetail,
    FiltersPatch,
    FiltersView,
    Input,
    NewDecoder,
    Pause,
    Problem,
    ServerStatus,
    Stream,
)

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"
RENEW_S, RENEW_EVERY_S = 30.0, 0.25
TIMEOUT_S = 70.0  # activating a large decoder may take a minute


class ProblemError(VolitionError):
    """The server refused. problem: its document."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.title}: {problem.detail}")
        self.problem = problem


class UnreachableError(VolitionError):
    """No server answers there."""


def _options(url: str, token: str | None, operator: str | None) -> dict[str, Any]:
    headers = {}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    if operator is not None:
        headers["X-Operator"] = operator
    return {"base_url": url, "headers": headers, "timeout": TIMEOUT_S, "trust_env": False}


def _body(body: BaseModel | None) -> Any:
    return None if body is None else body.model_dump(mode="json", exclude_unset=True)


def _part(identity: str) -> str:
    return quote(identity, safe="")


def _key(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Idempotency-Key": key}


def _read(response: httpx.Response, answer: type[T]) -> T:
    if response.is_error:
        raise ProblemError(_problem(response))
    return TypeAdapter(answer).validate_json(response.content or b"null")


def _problem(response: httpx.Response) -> Problem:
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:  # a proxy's
        return Problem(
            type="about:blank",
            title=response.reason_phrase,
            status=response.status_code,
            detail=response.text[:500],
        )


def _unreachable(url: httpx.URL, error: httpx.TransportError) -> UnreachableError:
    return UnreachableError(
        f"no server on {url} ({error or type(error).__name__}); start one with `volition serve`, "
        "or give its --url"
    )


class ControlClient:
    """One call after the other.

    url: of the server. token: its bearer token, where it has one. operator: who, for its journal.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, token: str | None = None, operator: str | None = None
    ) -> None:
        self._http = httpx.Client(**_options(url, token, operator))

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
            response = self._http.request(method, path, json=_body(body), headers=headers)
        except httpx.TransportError as error:
            raise _unreachable(self._http.base_url, error) from error
        return _read(response, answer)

    def status(self) -> ServerStatus:
        """What the daemon does."""
        return self._ask("GET", "/v1/status", ServerStatus)

    def streams(self) -> list[Stream]:
        """LSL streams on the network."""
        return self._ask("GET", "/v1/streams", list[Stream])

    def input(self) -> Input:
        """The spike stream that is read."""
        return self._ask("GET", "/v1/input", Input)

    def set_input(self, body: Input) -> Input:
        """Read another spike stream."""
        return self._ask("PUT", "/v1/input", Input, body)

    def decoders(self) -> list[Decoder]:
        """Bundles of the registry, newest first."""
        return self._ask("GET", "/v1/decoders", list[Decoder])

    def decoder(self, identity: str) -> DecoderDetail:
        """One bundle, verified."""
        return self._ask("GET", f"/v1/decoders/{_part(identity)}", DecoderDetail)

    def add_decoder(self, path: str) -> Decoder:
        """Register a bundle that lies on the server's host."""
        return self._ask("POST", "/v1/decoders", Decoder, NewDecoder(path=path))

    def activate(self, identity: str) -> ServerStatus:
        """Decode with another decoder."""
        return self._ask("POST", f"/v1/decoders/{_part(identity)}/activate", ServerStatus)

    def rollback(self) -> ServerStatus:
        """Decode with the decoder before again."""
        return self._ask("POST", "/v1/decoders/rollback", ServerStatus)

    def pause(self, why: str = "") -> ServerStatus:
        """Velocity zero and not valid, until resumed."""
        return self._ask("POST", "/v1/decoding/pause", ServerStatus, Pause(why=why))

    def resume(self) -> ServerStatus:
        """Decode again."""
        return self._ask("POST", "/v1/decoding/resume", ServerStatus)

    def arm(self) -> ServerStatus:
        """Decode again, if all that a cursor needs is there."""
        return self._ask("POST", "/v1/decoding/arm", ServerStatus)

    def filters(self) -> FiltersView:
        """The output filters in use."""
        return self._ask("GET", "/v1/filters", FiltersView)

    def set_filters(self, body: FiltersPatch) -> FiltersView:
        """Change some of the output filters."""
        return self._ask("PATCH", "/v1/filters", FiltersView, body)

    def journal(self, limit: int = 100) -> list[Change]:
        """What was changed, newest first."""
        return self._ask("GET", f"/v1/journal?limit={limit}", list[Change])

    def calibrations(self) -> list[Calibration]:
        """Every calibration, newest first."""
        return self._ask("GET", "/v1/calibrations", list[Calibration])

    def calibration(self, identity: str) -> Calibration:
        """One calibration, as it stands."""
        return self._ask("GET", f"/v1/calibrations/{_part(identity)}", Calibration)

    def start_calibration(self, body: CalibrationRequest, key: str | None = None) -> Calibration:
        """Begin a calibration; the same key twice begins one."""
        return self._ask("POST", "/v1/calibrations", Calibration, body, _key(key))

    def finish_calibration(self, identity: str) -> Calibration:
        """Collect no more, learn."""
        return self._ask("POST", f"/v1/calibrations/{_part(identity)}/finish", Calibration)

    def resume_calibration(self, identity: str) -> Calibration:
        """Go on with an interrupted one."""
        return self._ask("POST", f"/v1/calibrations/{_part(identity)}/resume", Calibration)

    def cancel_calibration(self, identity: str) -> Calibration:
        """End one that runs; its data are kept."""
        return self._ask("POST", f"/v1/calibrations/{_part(identity)}/cancel", Calibration)

    def delete_calibration(self, identity: str) -> None:
        """Cancel one that runs; discard one that has ended."""
        return self._ask("DELETE", f"/v1/calibrations/{_part(identity)}", NoneType)

    def follow(self, identity: str) -> Iterator[Calibration]:
        """A calibration whenever it changes, until it has ended.

        A connection that breaks, or a server that is started again, is waited for for `RENEW_S`.
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
                    self._http, "GET", f"/v1/calibrations/{_part(identity)}/events"
                ) as source:
                    for event in source.iter_sse():
                        if not event.data:  # the server has nothing new, and lives
                            continue
                        calibration = Calibration.model_validate_json(event.data)
                        yield calibration
            except (UnreachableError, httpx.TransportError):
                lost_at = min(lost_at, time.monotonic())
                if time.monotonic() - lost_at > RENEW_S:
                    raise
            if calibration is not None and calibration.state not in RUNNING:
                return
            time.sleep(RENEW_EVERY_S)

    def calibrate(self, body: CalibrationRequest, key: str | None = None) -> Iterator[Calibration]:
        """Begin a calibration and follow it to its end."""
        begun = self.start_calibration(body, key)
        yield from self.follow(begun.id)


class AsyncControlClient:
    """The same for asyncio.

    url: of the server. token: its bearer token, where it has one. operator: who, for its journal.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, token: str | None = None, operator: str | None = None
    ) -> None:
        self._http = httpx.AsyncClient(**_options(url, token, operator))

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
            response = await self._http.request(method, path, json=_body(body), headers=headers)
        except httpx.TransportError as error:
            raise _unreachable(self._http.base_url, error) from error
        return _read(response, answer)

    async def status(self) -> ServerStatus:
        """What the daemon does."""
        return await self._ask("GET", "/v1/status", ServerStatus)

    async def streams(self) -> list[Stream]:
        """LSL streams on the network."""
        return await self._ask("GET", "/v1/streams", list[Stream])

    async def input(self) -> Input:
        """The spike stream that is read."""
        return await self._ask("GET", "/v1/input", Input)

    async def set_input(self, body: Input) -> Input:
        """Read another spike stream."""
        return await self._ask("PUT", "/v1/input", Input, body)

    async def decoders(self) -> list[Decoder]:
        """Bundles of the registry, newest first."""
        return await self._ask("GET", "/v1/decoders", list[Decoder])

    async def decoder(self, identity: str) -> DecoderDetail:
        """One bundle, verified."""
        return await self._ask("GET", f"/v1/decoders/{_part(identity)}", DecoderDetail)

    async def add_decoder(self, path: str) -> Decoder:
        """Register a bundle that lies on the server's host."""
        return await self._ask("POST", "/v1/decoders", Decoder, NewDecoder(path=path))

    async def activate(self, identity: str) -> ServerStatus:
        """Decode with another decoder."""
        return await self._ask("POST", f"/v1/decoders/{_part(identity)}/activate", ServerStatus)

    async def rollback(self) -> ServerStatus:
        """Decode with the decoder before again."""
        return await self._ask("POST", "/v1/decoders/rollback", ServerStatus)

    async def pause(self, why: str = "") -> ServerStatus:
        """Velocity zero and not valid, until resumed."""
        return await self._ask("POST", "/v1/decoding/pause", ServerStatus, Pause(why=why))

    async def resume(self) -> ServerStatus:
        """Decode again."""
        return await self._ask("POST", "/v1/decoding/resume", ServerStatus)

    async def arm(self) -> ServerStatus:
        """Decode again, if all that a cursor needs is there."""
        return await self._ask("POST", "/v1/decoding/arm", ServerStatus)

    async def filters(self) -> FiltersView:
        """The output filters in use."""
        return await self._ask("GET", "/v1/filters", FiltersView)

    async def set_filters(self, body: FiltersPatch) -> FiltersView:
        """Change some of the output filters."""
        return await self._ask("PATCH", "/v1/filters", FiltersView, body)

    async def journal(self, limit: int = 100) -> list[Change]:
        """What was changed, newest first."""
        return await self._ask("GET", f"/v1/journal?limit={limit}", list[Change])

    async def calibrations(self) -> list[Calibration]:
        """Every calibration, newest first."""
        return await self._ask("GET", "/v1/calibrations", list[Calibration])

    async def calibration(self, identity: str) -> Calibration:
        """One calibration, as it stands."""
        return await self._ask("GET", f"/v1/calibrations/{_part(identity)}", Calibration)

    async def start_calibration(
        self, body: CalibrationRequest, key: str | None = None
    ) -> Calibration:
        """Begin a calibration; the same key twice begins one."""
        return await self._ask("POST", "/v1/calibrations", Calibration, body, _key(key))

    async def finish_calibration(self, identity: str) -> Calibration:
        """Collect no more, learn."""
        return await self._ask("POST", f"/v1/calibrations/{_part(identity)}/finish", Calibration)

    async def resume_calibration(self, identity: str) -> Calibration:
        """Go on with an interrupted one."""
        return await self._ask("POST", f"/v1/calibrations/{_part(identity)}/resume", Calibration)

    async def cancel_calibration(self, identity: str) -> Calibration:
        """End one that runs; its data are kept."""
        return await self._ask("POST", f"/v1/calibrations/{_part(identity)}/cancel", Calibration)

    async def delete_calibration(self, identity: str) -> None:
        """Cancel one that runs; discard one that has ended."""
        return await self._ask("DELETE", f"/v1/calibrations/{_part(identity)}", NoneType)

    async def follow(self, identity: str) -> AsyncIterator[Calibration]:
        """A calibration whenever it changes, until it has ended.

        A connection that breaks, or a server that is started again, is waited for for `RENEW_S`.
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
                    self._http, "GET", f"/v1/calibrations/{_part(identity)}/events"
                ) as source:
                    async for event in source.aiter_sse():
                        if not event.data:
                            continue
                        calibration = Calibration.model_validate_json(event.data)
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
        """Begin a calibration and follow it to its end."""
        begun = await self.start_calibration(body, key)
        async for calibration in self.follow(begun.id):
            yield calibration
