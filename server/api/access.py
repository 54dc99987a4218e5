"""Who may call, judged before a byte of the body is read: the right Host, no foreign page, a token.

A page from anywhere may send requests to 127.0.0.1 from the operator's browser; so the Host must be
one of ours (DNS rebinding) and an Origin, where a browser sends one, too.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections import OrderedDict
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Header, Request
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.problems import plain, response
from server.schemas import Problem
from server.settings import LOOPBACK, ServerSettings

log = logging.getLogger("volition.server")

OPEN_TO_ALL = ("/health/live", "/health/ready", "/openapi.json")
MOST_BODY = 65_536  # bytes; the longest body that is documented has a few thousand
MOST_FAILURES, WITHIN_S = 10, 60.0  # wrong tokens of one address
MOST_ADDRESSES = 1000


class Gate:
    """Answers requests that may not come in with a problem; all others go on to `app`."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._hosts = {name.lower() for name in (*LOOPBACK, settings.host, *settings.allowed_hosts)}
        self._origins = set(settings.allowed_origins)
        token = settings.token
        self._token = None if token is None else token.get_secret_value().encode()
        self._failures = Failures()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope["path"]
        refused = self._page(headers, path) or self._caller(headers, path, scope.get("client"))
        if refused is None:
            body = await _body(headers, receive)
            if body is not None:
                await self._app(scope, _again(body, receive), send)
                return
            detail = f"the body has more than {MOST_BODY:,} bytes; see GET /openapi.json"
            refused = plain(413, "too-large", "The body is too long", detail, path)
        more = {"Connection": "close"}  # the body, if any, is not read
        if refused.status == 401:
            more["WWW-Authenticate"] = "Bearer"
        elif refused.status == 429:
            more["Retry-After"] = f"{WITHIN_S:.0f}"
        await response(refused, more)(scope, receive, send)

    def _page(self, headers: Headers, path: str) -> Problem | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is None and headers.get("sec-fetch-site") == "cross-site":
            origin = "another site"  # an image or a form of a foreign page
        if _name(f"//{host}") not in self._hosts:
            detail = f"Host {host!r} is not this server's; add it to VOLITION_ALLOWED_HOSTS"
            return plain(400, "host", "The Host is not ours", detail, path)
        if origin is not None and origin not in self._origins and origin != f"http://{host}":
            detail = f"pages of {origin!r} may not call; add it to VOLITION_ALLOWED_ORIGINS"
            return plain(403, "origin", "The Origin may not call", detail, path)
        return None

    def _caller(
        self, headers: Headers, path: str, client: tuple[str, int] | None
    ) -> Problem | None:
        """The right token opens always, so that nobody's guesses keep an operator from a pause.

        With 128 bits and more, guessing is hopeless at any rate; the limit keeps it from being a
        load, and lets it be noticed.
        """
        if self._token is None or path in OPEN_TO_ALL:
            return None
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token):
            return None
        detail = "send the server's token as a bearer token"
        if given and self._failures.are_too_many(client[0] if client else "unknown"):
            detail = f"more than {MOST_FAILURES} wrong tokens within {WITHIN_S:.0f} s; {detail}"
            return plain(429, "too-many", "Too many wrong tokens", detail, path)
        return plain(401, "http", "A bearer token is needed", detail, path)


class Failures:
    """Wrong tokens, by address."""

    def __init__(self) -> None:
        self._counted: OrderedDict[str, tuple[float, int]] = OrderedDict()  # since when, how many

    def are_too_many(self, address: str) -> bool:
        """Count one more; whether this address has sent too many lately."""
        since, count = self._counted.pop(address, (time.monotonic(), 0))
        if time.monotonic() - since > WITHIN_S:
            since, count = time.monotonic(), 0
        self._counted[address] = since, count + 1
        if len(self._counted) > MOST_ADDRESSES:
            self._counted.popitem(last=False)
        if count == MOST_FAILURES:
            log.warning("%s has sent %d wrong tokens", address, count)
        return count >= MOST_FAILURES


async def _body(headers: Headers, receive: Receive) -> bytes | None:
    """The whole body; None if it is too long."""
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > MOST_BODY:
        return None
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body)
        body += message.get("body", b"")
        if len(body) > MOST_BODY:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """Receives a body that was read, then what comes after it."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay


def _name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def documented_token(settings: ServerSettings) -> list[Any]:
    """Dependencies that describe the token in the document; `Gate` asks for it."""
    if settings.token is None:
        return []
    scheme = HTTPBearer(auto_error=False, description="the server's token (VOLITION_TOKEN)")
    return [Depends(scheme)]


async def operator(
    request: Request,
    name: Annotated[
        str | None,
        Header(
            alias="X-Operator",
            description="who does this, for the journal",
            max_length=100,
            pattern=r"^[A-Za-z0-9 ._@+\-]*$",
        ),
    ] = None,
) -> str:
    """Who asks: the name that the caller gives, or its address."""
    return name or (request.client.host if request.client else "unknown")


Operator = Annotated[str, Depends(operator)]
