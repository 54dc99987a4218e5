"""Problem documents (RFC 9457), one for every error.

A problem's `type` is `/problems/<name>`: the kind of error, for scripts to compare. Its `detail`
has what was seen, what was expected and what to do next.
"""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from decoder import errors
from server.schemas import Problem
from streaming.wire.control import NoAnswerError

log = logging.getLogger("volition.server")

MEDIA_TYPE = "application/problem+json"


class NotFoundError(errors.VolitionError):
    """No such decoder or calibration."""


class ConflictError(errors.VolitionError):
    """The request can't be carried out in the current state."""


class DaemonError(errors.VolitionError):
    """No daemon is running, or it refused a command."""


# The most specific kinds first.
KINDS: tuple[tuple[type[errors.VolitionError], str, int, str], ...] = (
    (NotFoundError, "not-found", 404, "Not found"),
    (ConflictError, "conflict", 409, "Not possible now"),
    (DaemonError, "daemon", 409, "The daemon can't do that now"),
    (NoAnswerError, "no-answer", 503, "The daemon does not answer"),
    (errors.BundleError, "bundle", 409, "The bundle can't be used"),
    (errors.ProviderError, "provider", 409, "ONNX Runtime can't use the requested provider"),
    (errors.StreamError, "stream", 409, "A stream is missing or not as described"),
    (errors.SessionError, "recording", 409, "The recording can't be used"),
    (errors.TrainingError, "training", 409, "The decoder can't be trained on these data"),
    (errors.SettingsError, "settings", 409, "A setting is out of range"),
    (errors.VolitionError, "error", 409, "Not possible"),
)


def problem_of(error: errors.VolitionError, instance: str | None = None) -> Problem:
    """The problem document for one of Volition's own errors."""
    for kind, name, status, title in KINDS:
        if isinstance(error, kind):
            return Problem(
                type=f"/problems/{name}",
                title=title,
                status=status,
                detail=str(error),
                instance=instance,
            )
    raise AssertionError(error)


def response(problem: Problem, headers: dict[str, str] | None = None) -> JSONResponse:
    """A problem document as an HTTP response."""
    return JSONResponse(
        problem.model_dump(), status_code=problem.status, headers=headers, media_type=MEDIA_TYPE
    )


def plain(status: int, name: str, title: str, detail: str, instance: str) -> Problem:
    """A problem document for anything that is not a VolitionError."""
    return Problem(
        type=f"/problems/{name}", title=title, status=status, detail=detail, instance=instance
    )


def install(app: FastAPI) -> None:
    """Make the app answer every error with a problem document."""

    @app.exception_handler(errors.VolitionError)
    def _ours(request: Request, error: errors.VolitionError) -> JSONResponse:
        return response(problem_of(error, request.url.path))

    @app.exception_handler(RequestValidationError)
    def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        wrong = "; ".join(
            f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()
        )
        return response(plain(422, "invalid", "The request is not valid", wrong, request.url.path))

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: HTTPException) -> JSONResponse:
        detail = {404: f"there is no {request.url.path}", 405: "see the Allow header"}.get(
            error.status_code, str(error.detail)
        )
        problem = plain(error.status_code, "http", str(error.detail), detail, request.url.path)
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_methods(app, request.url.path))
        return response(problem, headers)

    @app.exception_handler(Exception)
    def _unknown(request: Request, error: Exception) -> JSONResponse:
        log.exception("%s %s", request.method, request.url.path, exc_info=error)
        detail = f"{type(error).__name__}; see the server's log"
        return response(plain(500, "internal", "Internal error", detail, request.url.path))


def _methods(app: FastAPI, path: str) -> list[str]:
    """The methods that a path accepts; Starlette reports only the first route that matches."""
    documented = app.openapi()["paths"]
    if path in documented:
        return sorted(method.upper() for method in documented[path])
    parts = path.strip("/").split("/")
    methods: set[str] = set()
    for template, operations in documented.items():
        names = template.strip("/").split("/")
        if len(names) == len(parts) and all(
            name == part or name.startswith("{") for name, part in zip(names, parts, strict=True)
        ):
            methods |= {method.upper() for method in operations}
    return sorted(methods)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem documents for these statuses, as a route's `responses`."""
    titles = {
        400: "The Host is not allowed",
        401: "A bearer token is required",
        403: "The Origin is not allowed",
        404: "Not found",
        409: "Not possible now",
        413: "The body is too large",
        422: "The request is not valid",
        429: "Too many wrong tokens",
        503: "The daemon does not answer",
    }
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": titles[status], "content": content} for status in sorted(statuses)
    }
