"""The documentation site: it builds strictly, and its pages load nothing from elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Request, sync_playwright

from tests import isolation

ROOT = Path(__file__).parent.parent.parent
# What a page loads by itself; links that a reader follows are not among them.
LOADS = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc=["'](?:https?:)?//[^"']+"""
    r"""|<link\b(?=[^>]*\brel=["'](?:stylesheet|preload|preconnect|icon)["'])[^>]*\bhref=["'](?:https?:)?//"""
)
STYLE_LOADS = re.compile(r"""url\(\s*["']?(?:https?:)?//|@import\s+["'](?:https?:)?//""")
PAGES = [
    "index", "START", "STREAMS", "READERS", "RECALIBRATION", "SAFETY", "TRAINING", "MATHEMATICS",
    "PERFORMANCE", "GLOSSARY", "ARCHITECTURE", "CHANGELOG", "site/rest", "site/python",
]  # fmt: skip


@pytest.fixture(scope="session")
def site(run_folder: Path) -> Path:
    """The built site."""
    return isolation.made_once(run_folder, "site", build)


def build(folder: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, which .ci/run installs."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


def text_of(site: Path, page: str) -> str:
    return (site / f"{page}.html").read_text(encoding="utf-8")


def test_all_pages_are_there_and_load_nothing_from_elsewhere(site: Path) -> None:
    assert [page for page in PAGES if not (site / f"{page}.html").is_file()] == []
    pages, styles = list(site.rglob("*.html")), list(site.rglob("*.css"))
    assert [p.name for p in pages if LOADS.search(p.read_text(encoding="utf-8"))] == []
    assert [p.name for p in styles if STYLE_LOADS.search(p.read_text(encoding="utf-8"))] == []


def test_the_rest_page_has_every_request_and_body(site: Path) -> None:
    page = text_of(site, "site/rest")
    for request in ("PATCH /v1/filters", "POST /v1/calibrations", "GET /health/live"):
        assert f"<code>{request}</code>" in page
    assert 'href="#calibrationrequest"' in page
    assert 'id="calibrationrequest"' in page
    assert "labelled data to collect, s (≥ 5, ≤ 3600)" in page


def test_the_python_page_has_docstrings_with_lists_of_arguments(site: Path) -> None:
    page = text_of(site, "site/python")
    for name in (
        "clients.subscriber.CursorSubscriber.receive", "clients.control.ControlClient.calibrate",
        "decoder.runtimes.opening.open_runtime", "streaming.sessions.session.Session",
    ):  # fmt: skip
        assert f'id="{name}"' in page, name
    assert "<li><code>latest_only</code>: keep only the newest frame" in page


def test_links_to_files_of_the_repository_work_on_the_site(site: Path) -> None:
    assert 'href="repository/examples/readers/reader.cpp"' in text_of(site, "READERS")
    assert (site / "repository/examples/readers/reader.cpp").is_file()
    assert 'href="CONTAINERS.html"' in text_of(site, "REST")


def test_formulas_and_diagrams_are_drawn_without_a_network(site: Path, browser: Browser) -> None:
    asked: list[str] = []
    failed: list[str] = []

    def note(request: Request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            asked.append(request.url)

    context = browser.new_context(offline=True)
    opened = context.new_page()
    opened.on("request", note)
    opened.on("pageerror", lambda error: failed.append(str(error)))
    for page in ("index", "site/python", "site/rest", "MATHEMATICS"):
        opened.goto((site / f"{page}.html").as_uri())
        opened.wait_for_load_state("networkidle")
    formulas = opened.locator("math[display=block]")
    assert formulas.count() >= 10
    for index in range(formulas.count()):
        box = formulas.nth(index).bounding_box()
        assert box is not None
        assert box["width"] > 50
    assert opened.locator("math merror").count() == 0
    assert asked == []
    if not list(site.glob("assets/javascripts/mermaid-*.js")):
        pytest.skip("no script for diagrams: no npm here, or it can't reach its registry")
    # Material draws into closed shadow roots: a drawn diagram is a div, one not drawn a pre.
    opened.wait_for_function("document.querySelectorAll('div.mermaid').length === 2")
    drawn = opened.locator("div.mermaid").first.bounding_box()
    assert drawn is not None
    assert drawn["height"] > 100
    opened.locator("input.md-search__input").fill("watchdog")
    opened.locator("a.md-search-result__link").first.wait_for()
    context.close()
    assert asked == []
    assert failed == []
