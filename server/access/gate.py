"""Access control: Host, Origin and bearer token are checked before any of the body is read.

A web page from anywhere can make the operator's browser send requests to 127.0.0.1. So the Host
must be one of the server's names, against DNS rebinding, and so must the Origin, if there is one.
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Header, Request
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.access.tokens import WITHIN_S, Tokens, too_many
from server.problems import plain, response
from server.schemas import Problem
from server.settings import LOOPBACK, ServerSettings

PAGES = ("/", "/login", "/docs")  # they hold no data; what they show needs the token
HEALTH = ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready")
OPEN_TO_ALL = (*HEALTH, "/openapi.json", *PAGES)
STATIC = "/static/"
MOST_BODY = 65_536  # bytes; the longest documented body has a few thousand


class Gate:
    """Middleware that answers refused requests with a problem and passes the others to `app`."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, tokens: Tokens) -> None:
        self._app = app
        self._hosts = {name.lower() for name in (*LOOPBACK, settings.host, *settings.allowed_hosts)}
        self._origins = set(settings.allowed_origins)
        self._tokens = tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers, path = Headers(scope=scope), scope["path"]
        refused = self._page(headers, path) or self._caller(scope, headers, path)
        if scope["type"] == "websocket":
            if refused is None:
                await self._app(scope, receive, send)
            else:  # before it is accepted: the browser's request is answered with 403
                await send({"type": "websocket.close", "code": 1008, "reason": refused.detail})
            return
        if refused is None:
            body = await _body(headers, receive)
            if body is not None:
                await self._app(scope, _again(body, receive), send)
                return
            detail = f"the body has more than {MOST_BODY:,} bytes; see GET /openapi.json"
            refused = plain(413, "too-large", "The body is too large", detail, path)
        more = {"Connection": "close"}  # the body is not read
        if refused.status == 401:
            more["WWW-Authenticate"] = "Bearer"
        elif refused.status == 429:
            more["Retry-After"] = f"{WITHIN_S:.0f}"
        await response(refused, more)(scope, receive, send)

    def _page(self, headers: Headers, path: str) -> Problem | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        is_link = path in PAGES and headers.get("sec-fetch-dest") == "document"
        if origin is None and headers.get("sec-fetch-site") == "cross-site" and not is_link:
            origin = "another site"  # an image or a form on a foreign page
        if _name(f"//{host}") not in self._hosts:
            detail = f"Host {host!r} is not this server's; add it to VOLITION_ALLOWED_HOSTS"
            return plain(400, "host", "The Host is not allowed", detail, path)
        if origin is not None and origin not in self._origins and origin != f"http://{host}":
            detail = f"pages from {origin!r} may not call; add it to VOLITION_ALLOWED_ORIGINS"
            return plain(403, "origin", "The Origin is not allowed", detail, path)
        return None

    def _caller(self, scope: Scope, headers: Headers, path: str) -> Problem | None:
        """Accept the right token even from a limited address: guesses must not delay a pause.

        A token of 128 bits can't be guessed at any rate. The limit keeps the load of guesses low
        and puts them into the log.
        """
        if path in OPEN_TO_ALL or path.startswith(STATIC):
            return None
        if self._tokens.accepts(headers, scope.get("method", "GET")):
            return None
        detail = "send the server's token as a bearer token, or log in at /login"
        client = scope.get("client")
        given = headers.get("authorization", "").partition(" ")[2]
        if given and self._tokens.are_too_many(client[0] if client else "unknown"):
            return too_many(path)
        return plain(401, "http", "A bearer token is required", detail, path)


async def _body(headers: Headers, receive: Receive) -> bytes | None:
    """The whole body; None if it is too large."""
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
    """A `receive` that replays a body that was already read, then goes on with the original."""
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
    """Dependencies that document the token in the OpenAPI schema; `Gate` enforces it."""
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
            description="name of the operator, for the journal",
            max_length=100,
            pattern=r"^[A-Za-z0-9 ._@+\-]*$",
        ),
    ] = None,
) -> str:
    """The caller: the name it gives, or its address."""
    return name or (request.client.host if request.client else "unknown")


Operator = Annotated[str, Depends(operator)]
