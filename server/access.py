"""Who may call: the right Host, no foreign page, a token where there is one.

A page from anywhere may send requests to 127.0.0.1 from the operator's browser; so the Host must be
one of ours (DNS rebinding) and an Origin, where a browser sends one, too.
"""

from __future__ import annotations

import hmac
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Header, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from server.problems import plain, response
from server.schemas import Problem
from server.settings import LOOPBACK, ServerSettings


class OnlyOurHosts:
    """Answers 400 to other hosts' names and 403 to other origins; all else goes on to `app`."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._hosts = {name.lower() for name in (*LOOPBACK, settings.host, *settings.allowed_hosts)}
        self._origins = set(settings.allowed_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            if origin is None and headers.get("sec-fetch-site") == "cross-site":
                origin = "another site"  # an image or a form of a foreign page
            refused = self._refusal(headers.get("host", ""), origin, scope["path"])
            if refused is not None:
                await response(refused)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, host: str, origin: str | None, path: str) -> Problem | None:
        if _name(f"//{host}") not in self._hosts:
            detail = f"Host {host!r} is not this server's; add it to VOLITION_ALLOWED_HOSTS"
            return plain(400, "host", "The Host is not ours", detail, path)
        if origin is not None and origin not in self._origins and origin != f"http://{host}":
            detail = f"pages of {origin!r} may not call; add it to VOLITION_ALLOWED_ORIGINS"
            return plain(403, "origin", "The Origin may not call", detail, path)
        return None


def _name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def bearer(settings: ServerSettings) -> list[Any]:
    """Dependencies that refuse callers without the token; none where there is no token."""
    if settings.token is None:
        return []
    expected = settings.token.get_secret_value()
    scheme = HTTPBearer(auto_error=False, description="the server's token (VOLITION_TOKEN)")

    def check(given: HTTPAuthorizationCredentials | None = Depends(scheme)) -> None:  # noqa: B008
        if given is None or not hmac.compare_digest(given.credentials.encode(), expected.encode()):
            raise HTTPException(
                401, "send the server's token as a bearer token", {"WWW-Authenticate": "Bearer"}
            )

    return [Depends(check)]


def operator(
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
