"""Requests, answers and errors of the REST interface, for the blocking and the asyncio client."""

from __future__ import annotations

from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from decoder.errors import VolitionError
from server.schemas import (
    Problem,
)

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"
RENEW_S, RENEW_EVERY_S = 30.0, 0.25
TIMEOUT_S = 70.0  # activating a large decoder may take a minute


class ProblemError(VolitionError):
    """The server refused the request. problem: its problem document."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.title}: {problem.detail}")
        self.problem = problem


class UnreachableError(VolitionError):
    """No server answers at the URL."""


def http_options(url: str, token: str | None, operator: str | None) -> dict[str, Any]:
    headers = {}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    if operator is not None:
        headers["X-Operator"] = operator
    return {"base_url": url, "headers": headers, "timeout": TIMEOUT_S, "trust_env": False}


def body_json(body: BaseModel | None) -> Any:
    return None if body is None else body.model_dump(mode="json", exclude_unset=True)


def part_of(identity: str) -> str:
    return quote(identity, safe="")


def idempotency(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Idempotency-Key": key}


def read_answer(response: httpx.Response, answer: type[T]) -> T:
    if response.is_error:
        raise ProblemError(problem_of(response))
    return TypeAdapter(answer).validate_json(response.content or b"null", extra="ignore")


def problem_of(response: httpx.Response) -> Problem:
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:  # a proxy's
        return Problem(
            type="about:blank",
            title=response.reason_phrase,
            status=response.status_code,
            detail=response.text[:500],
        )


def unreachable(url: httpx.URL, error: httpx.TransportError) -> UnreachableError:
    return UnreachableError(
        f"no server on {url} ({error or type(error).__name__}); start one with `volition serve`, "
        "or give its --url"
    )
