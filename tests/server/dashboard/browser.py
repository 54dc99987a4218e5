"""A real Chromium, which notes what a page complains of and asks for."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
QUIET = (  # Chromium calls no host of its own, and runs as root
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
SERIOUS = ("moderate", "serious", "critical")  # above minor
SCREENSHOTS = os.environ.get("VOLITION_SCREENSHOTS")  # a folder, to renew those of docs/
SIZE: ViewportSize = {"width": 1280, "height": 860}
COLOURS = 96  # of a screenshot; a quarter of the bytes


class Watched:
    """A page. complaints: console errors and exceptions. hosts: all hosts that it asked."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        page.on("console", lambda m: m.type == "error" and self.complaints.append(m.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        page.on("websocket", lambda socket: self.hosts.add(urlsplit(socket.url).netloc))

    def violations(self) -> list[str]:
        """Violations of accessibility rules above minor."""
        found = Axe().run(self.page).response["violations"]
        return [
            f"{rule['id']} ({rule['impact']}): {node['target']} {node['failureSummary']}"
            for rule in found
            if rule["impact"] in SERIOUS
            for node in rule["nodes"]
        ]

    def keep(self, name: str, **options: object) -> None:
        """A screenshot for docs/, if VOLITION_SCREENSHOTS names a folder."""
        if SCREENSHOTS is None:
            return
        from PIL import Image

        self.page.evaluate("scrollTo(0, 0)")  # the header stays on top
        image = Image.open(io.BytesIO(self.page.screenshot(**options)))  # type: ignore[arg-type]
        Path(SCREENSHOTS).mkdir(exist_ok=True)
        image.convert("RGB").quantize(COLOURS).save(Path(SCREENSHOTS) / f"{name}.png")


@contextmanager
def chromium(nice: int = 0) -> Iterator[Browser]:
    """A browser. Only one at a time in a process. nice: its priority, lower if higher."""
    with sync_playwright() as playwright:
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "chromium"
            program.write_text(f'#!/bin/sh\nexec nice -n {nice} "{CHROMIUM}" "$@"\n')
            program.chmod(0o755)
            browser = playwright.chromium.launch(executable_path=program, args=list(QUIET))
        try:
            yield browser
        finally:
            browser.close()


def opened(browser: Browser, url: str) -> Watched:
    """A page of its own, with cookies of its own, at this address."""
    watched = Watched(browser.new_page(viewport=SIZE))
    watched.page.goto(url)
    return watched
