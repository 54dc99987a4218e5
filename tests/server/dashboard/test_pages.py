"""Pages, login and cookies, over real HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from clients.harness.server import Server
from server.dashboard.routes import STATIC
from tests.rig import DEADLINE_S
from tests.server.conftest import POSSM
from tests.server.dashboard.test_feed import TOKEN, decoded, watch


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a token."""
    home = tmp_path_factory.mktemp("guarded") / "home"
    with Server(POSSM, home, "nobody", VOLITION_TOKEN=TOKEN) as server:
        yield server


@pytest.fixture
def browser(guarded: Server) -> Iterator[httpx.Client]:
    """What a browser sends from a page of the server."""
    with httpx.Client(
        base_url=guarded.url, headers={"Origin": guarded.url}, trust_env=False
    ) as client:
        yield client


def test_the_pages_and_their_files_need_no_token(browser: httpx.Client) -> None:
    seen, pages = set(), ["/", "/login", "/docs"]
    while pages:
        answer = browser.get(pages.pop())
        assert answer.status_code == 200, answer.url
        if "javascript" in answer.headers["content-type"]:
            links = re.findall(r"""from\s+"\./([\w.]+)\"""", answer.text)
            links = [f"/static/js/{name}" for name in links]
        else:
            links = re.findall(r"""(?:src|href)=["'](/[^"']+)""", answer.text)
        new = set(links) - seen
        seen |= new
        pages += new
    files = {f"/static/{path.relative_to(STATIC)}" for path in STATIC.rglob("*") if path.is_file()}
    pages_and_licence = {"/static/index.html", "/static/login.html", "/static/vendor/uPlot.LICENSE"}
    assert files - seen == pages_and_licence


def test_a_cookie_is_given_for_the_token_only(browser: httpx.Client) -> None:
    assert browser.get("/v1/status").status_code == 401
    wrong = browser.post("/login", json={"token": "wrong"})
    assert wrong.status_code == 401
    assert "VOLITION_TOKEN" in wrong.json()["detail"]
    given = browser.post("/login", json={"token": TOKEN})
    assert given.status_code == 204
    cookie = given.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie
    assert browser.get("/v1/status").status_code == 200
    assert browser.post("/v1/decoding/pause").status_code == 200
    assert browser.post("/logout").status_code == 204
    assert browser.get("/v1/status").status_code == 401


def test_a_cookie_opens_the_feed(guarded: Server, browser: httpx.Client) -> None:
    browser.post("/login", json={"token": TOKEN})
    ((name, value),) = browser.cookies.items()
    cookie = {"Cookie": f"{name}={value}"}
    with watch(guarded, additional_headers=cookie, origin=guarded.url) as socket:
        assert decoded(socket.recv(timeout=DEADLINE_S))  # type: ignore[arg-type]


def test_a_cookie_changes_nothing_for_a_foreign_page(guarded: Server) -> None:
    with httpx.Client(base_url=guarded.url, trust_env=False) as client:
        client.post("/login", json={"token": TOKEN}, headers={"Origin": guarded.url})
        assert client.get("/v1/status").status_code == 200
        assert client.post("/v1/decoding/pause").status_code == 401  # a browser names the origin
        for foreign in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            assert client.post("/v1/decoding/pause", headers=foreign).status_code == 403
            assert client.get("/v1/status", headers=foreign).status_code == 403


def test_wrong_logins_are_limited(tmp_path: Path) -> None:
    with Server(POSSM, tmp_path / "home", "nobody", VOLITION_TOKEN=TOKEN) as server:
        statuses = [
            httpx.post(f"{server.url}/login", json={"token": f"guess {n}"}).status_code
            for n in range(12)
        ]
        assert statuses == [401] * 10 + [429] * 2
        assert httpx.post(f"{server.url}/login", json={"token": TOKEN}).status_code == 204


def test_a_link_opens_the_dashboard_but_a_frame_does_not(browser: httpx.Client) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"}
    with httpx.Client(base_url=browser.base_url, trust_env=False) as stranger:
        answer = stranger.get("/", headers=link)
        assert answer.status_code == 200
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        framed = stranger.get("/", headers=link | {"Sec-Fetch-Dest": "iframe"})
        assert framed.status_code == 403
        assert stranger.get("/v1/status", headers=link).status_code == 403
