"""Checks the server's token: as a bearer token, or in the cookie that the login page sets.

A cookie holds a keyed hash of the token, so that it ends when the token is changed and is valid
across restarts of the server. Browsers send cookies with requests that other pages cause. So a
cookie is accepted only together with the checks of Host and Origin (`server/access/gate.py`), and
changes need an Origin.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections import OrderedDict

from starlette.datastructures import Headers
from starlette.requests import cookie_parser

from server.problems import plain
from server.schemas import Problem
from server.settings import ServerSettings

log = logging.getLogger("volition.server")

MOST_FAILURES, WITHIN_S = 10, 60.0  # wrong tokens from one address
MOST_ADDRESSES = 1000
READING = ("GET", "HEAD")


class Tokens:
    """Accepts callers. `cookie` has the name and the value of the cookie.

    needed: whether callers must send a token.
    """

    def __init__(self, settings: ServerSettings) -> None:
        token = settings.token
        self._token = b"" if token is None else token.get_secret_value().encode()
        self.needed = token is not None
        self._failures: OrderedDict[str, tuple[float, int]] = OrderedDict()  # start, count
        # Cookies do not tell ports apart: two servers of one host need two names.
        name = f"volition-{settings.port}"
        self.cookie = name, hmac.new(self._token, b"volition dashboard", "sha256").hexdigest()

    def is_token(self, given: str) -> bool:
        """Whether this is the token."""
        return self.needed and hmac.compare_digest(given.strip().encode(), self._token)

    def accepts(self, headers: Headers, method: str) -> bool:
        """Whether a request has the token or the cookie, or needs none."""
        if not self.needed:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(given):
            return True
        name, value = self.cookie
        sent = cookie_parser(headers.get("cookie", "")).get(name, "")
        has_cookie = hmac.compare_digest(sent.encode(), value.encode())
        return has_cookie and (method in READING or "origin" in headers)

    def are_too_many(self, address: str) -> bool:
        """Count a wrong token; returns whether this address has sent too many lately."""
        since, count = self._failures.pop(address, (time.monotonic(), 0))
        if time.monotonic() - since > WITHIN_S:
            since, count = time.monotonic(), 0
        self._failures[address] = since, count + 1
        if len(self._failures) > MOST_ADDRESSES:
            self._failures.popitem(last=False)
        if count == MOST_FAILURES:
            log.warning("%s has sent %d wrong tokens", address, count)
        return count >= MOST_FAILURES


def too_many(path: str) -> Problem:
    """The problem for an address that has sent too many wrong tokens."""
    detail = f"more than {MOST_FAILURES} wrong tokens within {WITHIN_S:.0f} s; send the right one"
    return plain(429, "too-many", "Too many wrong tokens", detail, path)
