"""The pages, the login, and the WebSocket that pages read pictures from (docs/DASHBOARD.md)."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import fastapi_offline
from fastapi import APIRouter, FastAPI, Request, Response, WebSocket
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse
from pydantic import Field
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocketDisconnect

from decoder.errors import VolitionError
from server.access.tokens import Tokens, too_many
from server.dashboard.feed import Feed
from server.problems import plain, response
from server.schemas import Body

STATIC = Path(__file__).parent / "static"
SWAGGER = Path(fastapi_offline.__file__).parent / "static"
NO_STORE = {"Cache-Control": "no-cache"}  # pages of an older server are not shown
OWN_ONLY = NO_STORE | {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

pages = APIRouter(include_in_schema=False)


class Login(Body):
    """The server's token, in exchange for a cookie."""

    token: str = Field(min_length=1, max_length=1000)


def install(app: FastAPI) -> None:
    """Add the pages and their files to the app."""
    app.include_router(pages)
    app.mount("/static/swagger", StaticFiles(directory=SWAGGER))
    app.mount("/static", _Revalidated(directory=STATIC))


class _Revalidated(StaticFiles):
    """Files that a browser asks about each time, so that it never mixes two versions."""

    def file_response(self, *arguments: object, **more: object) -> Response:
        """The file, with headers."""
        answer = super().file_response(*arguments, **more)  # type: ignore[arg-type]
        answer.headers.update(NO_STORE)
        return answer


@pages.get("/")
def dashboard() -> FileResponse:
    """The operator's screen."""
    return FileResponse(STATIC / "index.html", headers=OWN_ONLY)


@pages.get("/login")
def login_page() -> FileResponse:
    """Asks for the token."""
    return FileResponse(STATIC / "login.html", headers=OWN_ONLY)


@pages.post("/login", status_code=204)
def login(body: Login, request: Request) -> Response:
    """Exchange the token for a cookie that ends with the browser."""
    tokens: Tokens = request.app.state.tokens
    if not tokens.is_token(body.token):
        address = request.client.host if request.client else "unknown"
        if tokens.are_too_many(address):
            return response(too_many("/login"))
        wrong = "this is not the server's token (VOLITION_TOKEN)"
        return response(plain(401, "http", "A wrong token", wrong, "/login"))
    answer = Response(status_code=204)
    name, value = tokens.cookie
    answer.set_cookie(
        name, value, httponly=True, samesite="strict", secure=request.url.scheme == "https"
    )
    return answer


@pages.post("/logout", status_code=204)
def logout(request: Request) -> Response:
    """Remove the cookie."""
    answer = Response(status_code=204)
    answer.delete_cookie(request.app.state.tokens.cookie[0])
    return answer


@pages.get("/docs")
def docs() -> HTMLResponse:
    """The REST interface, to read and to try."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Volition: REST",
        swagger_js_url="/static/swagger/swagger-ui-bundle.js",
        swagger_css_url="/static/swagger/swagger-ui.css",
        swagger_favicon_url="/static/icon.svg",
    )


@pages.websocket("/v1/feed")
async def feed(socket: WebSocket) -> None:
    """Pictures of the daemon's output, 30 per second (`server/dashboard/picture.py`)."""
    await socket.accept()
    source: Feed = socket.app.state.feed
    try:
        with source.viewer() as viewer:
            closed = asyncio.create_task(_closed(socket))
            try:
                while not closed.done():
                    picture = asyncio.create_task(viewer.next())
                    await asyncio.wait((picture, closed), return_when=asyncio.FIRST_COMPLETED)
                    if closed.done():
                        picture.cancel()
                        break
                    await socket.send_bytes(picture.result())
            finally:
                closed.cancel()
    except VolitionError as error:
        await socket.close(code=1013, reason=str(error))
    except (WebSocketDisconnect, RuntimeError):  # it closed while a picture was sent
        return


async def _closed(socket: WebSocket) -> None:
    """Return when the page has closed the connection; what it sends is ignored."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        while (await socket.receive())["type"] != "websocket.disconnect":
            pass
