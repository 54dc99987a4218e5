"""The operator's screen in a real Chromium, while a simulated participant steers."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from clients.harness.daemon import BUNDLES
from clients.harness.server import Server
from clients.rig.closed_loop import Loop, LoopSettings, running_loop
from tests.rig import DEADLINE_S, Pace, learning_s, wait_for
from tests.server.conftest import POSSM
from tests.server.dashboard.browser import Watched, chromium, needs_chromium, opened
from tests.server.dashboard.test_feed import TOKEN

WAIT_MS = DEADLINE_S * 1e3
BLOCK_S = 600.0
NO_SERVER = re.compile("ERR_CONNECTION_|ERR_EMPTY_|ERR_INCOMPLETE_|WebSocket")
REFUSED = "status of 409"  # Chromium logs each; the page shows why
SAID_AT = """word => {
  window.saidAt = null;
  const said = () => { if (document.body.dataset.state === word) window.saidAt ??= Date.now(); };
  new MutationObserver(said).observe(document.body, { attributes: true });
}"""
expect.set_options(timeout=WAIT_MS)

pytestmark = [pytest.mark.slow, pytest.mark.timing, needs_chromium]


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """A rig as `volition rig` runs it, observing."""
    settings = LoopSettings(
        folder=tmp_path_factory.mktemp("rig"), seed=1, trials=2, seconds=10.0, method="units",
        allowed_s=learning_s(),
    )  # fmt: skip
    with running_loop(settings) as running:
        running.begin("observation", "observed", trials=None, seconds=BLOCK_S)
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def screen(loop: Loop, browser: Browser) -> Iterator[Watched]:
    watched = opened(browser, loop.server.url)
    yield watched
    assert watched.hosts == {loop.server.url.removeprefix("http://")}
    assert [what for what in watched.complaints if REFUSED not in what] == []


def state(page: Page, word: str) -> None:
    """Wait until the page says that the decoder is in this state."""
    expect(page.locator("#state-word")).to_have_text(word, ignore_case=True)


def arm(page: Page) -> None:
    """Click on Arm until it is not refused: on a busy machine spikes may come with a gap."""

    def armed() -> bool:
        if page.locator("#arm").is_enabled():
            page.locator("#arm").click()
        page.wait_for_timeout(300)
        return page.inner_text("#state-word").lower() == "decoding"

    wait_for("decoding", armed)


def confirm(page: Page) -> None:
    page.locator("#ask-yes").click()


def test_the_cursor_moves_and_spikes_are_seen(loop: Loop, screen: Watched) -> None:
    page = screen.page
    state(page, "decoding")
    positions: set[str] = set()

    def moves() -> bool:
        positions.add(page.inner_text("#cursor-note"))
        return len(positions) > 5

    expect(page.locator("#cursor-note")).to_contain_text(f"{loop.prefix}-kinematics")
    wait_for("a moving cursor", moves)
    expect(page.locator("#raster-rate")).to_contain_text(re.compile(r"[1-9]\d* spikes/s"))
    expect(page.locator("#units button").first).to_be_visible()
    expect(page.locator("#ticks")).to_contain_text("ms")
    page.wait_for_timeout(5000)  # for a full raster
    screen.keep("decoding", full_page=True)


def test_nothing_on_the_page_is_hard_to_reach(screen: Watched) -> None:
    assert screen.violations() == []
    screen.page.emulate_media(color_scheme="dark")
    assert screen.violations() == []
    screen.keep("dark", full_page=True)
    screen.page.set_viewport_size({"width": 820, "height": 1180})
    assert screen.violations() == []
    screen.keep("tablet", full_page=True)
    overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert screen.page.evaluate(overflow) <= 0
    screen.page.set_viewport_size({"width": 1280, "height": 860})
    screen.page.emulate_media(color_scheme="light")


def test_the_space_bar_pauses_from_anywhere_and_arming_resumes(loop: Loop, screen: Watched) -> None:
    page = screen.page
    for focus in ("#rollback", "#filter-gain", "#arm"):  # a button must not be pressed by it
        page.locator(focus).focus()
        page.keyboard.press("Space")
        state(page, "paused")
        expect(page.locator("#ask")).to_be_hidden()
        screen.keep("paused")
        arm(page)
    note = page.locator("#note input")
    note.focus()
    page.keyboard.type("a b")
    assert note.input_value() == "a b"
    state(page, "decoding")
    page.keyboard.press("Escape")
    state(page, "paused")
    with loop.server.client() as client:
        assert client.status().daemon.paused == "from the dashboard"
    arm(page)
    note.fill("")


def test_a_filter_a_unit_and_a_note_change_and_are_in_the_journal(
    loop: Loop, screen: Watched
) -> None:
    page = screen.page
    page.locator("#operator").fill("Ada")
    page.locator("#operator").press("Tab")
    with loop.server.client() as client:
        before = client.filters().gain
        page.locator("#filter-gain").focus()
        page.keyboard.press("ArrowRight")
        wait_for("a larger gain", lambda: client.filters().gain > before)
        unit = page.locator("#units button").first
        unit.click()
        screen.keep("confirming")
        confirm(page)
        expect(unit).to_have_attribute("aria-pressed", "false")
        assert [u.excluded for u in client.units().units][:2] == [True, False]
        expect(page.locator("#units-count")).to_contain_text("1 off")
        unit.click()
        expect(unit).to_have_attribute("aria-pressed", "true")
        page.locator("#note input").fill("block 1: eyes closed")
        page.locator("#note button").click()
        expect(page.locator("#journal")).to_contain_text("block 1: eyes closed")
        changes = [change for change in client.journal() if change.who == "Ada"]
    assert len({change.what for change in changes}) >= 3, changes


def test_a_calibration_is_run_promoted_and_rolled_back(loop: Loop, screen: Watched) -> None:
    page = screen.page
    with loop.server.client() as client:
        before = client.status().daemon.decoder
        form = page.locator("#calibrate")
        form.locator("[name=seconds]").fill("20")
        form.locator("[name=method]").select_option("units")
        form.locator("[name=promote]").select_option("manual")
        form.locator("button").click()
        expect(page.locator("#progress-text")).to_contain_text("collecting")
        screen.keep("collecting", full_page=True)
        row = page.locator("#calibrations tbody tr").first
        promote = row.get_by_role("button", name="Promote")
        expect(promote).to_be_visible(timeout=3 * WAIT_MS)
        row.get_by_role("button", name="Traces").click()
        expect(page.locator("#held-out-plot canvas")).to_be_visible()
        screen.keep("ready", full_page=True)
        promote.click()
        confirm(page)
        expect(row).to_contain_text("promoted")
        state(page, "decoding")
        promoted = client.status().daemon.decoder
        assert promoted != before
        page.locator("#rollback").click()
        confirm(page)
        wait_for("the decoder before", lambda: client.status().daemon.decoder == before)
        previous = page.locator("#decoders tr", has_text=promoted)
        expect(previous.locator(".tag")).to_have_text("previous")


def test_a_decoder_is_labelled_pinned_and_deleted(
    loop: Loop, screen: Watched, tmp_path: Path
) -> None:
    page = screen.page
    spare = tmp_path / "spare.bundle"
    shutil.copytree(BUNDLES / "poyo.bundle", spare)
    with loop.server.client() as client:
        name = client.add_decoder(str(spare)).id
        row = page.locator("#decoders tr", has_text=name)
        row.get_by_role("button", name="Label").click()
        page.locator("#ask-value").fill("spare")
        confirm(page)
        expect(row).to_contain_text("spare")
        row.get_by_role("button", name="Pin").click()
        expect(row).to_contain_text("pinned")
        row.get_by_role("button", name="Delete").click()
        confirm(page)
        expect(page.locator("#complaint")).to_contain_text("pinned")
        screen.keep("refused")
        row.get_by_role("button", name="Unpin").click()
        expect(row).not_to_contain_text("pinned")
        row.get_by_role("button", name="Delete").click()
        confirm(page)
        expect(row).to_have_count(0)
        assert name not in {decoder.id for decoder in client.decoders()}


def test_a_lost_daemon_and_a_lost_server_are_said_within_a_second(
    loop: Loop, screen: Watched
) -> None:
    page = screen.page
    with loop.server.client() as client:
        pid = client.status().daemon.pid

    def said_after(end: Callable[[], None], word: str, name: str) -> float:
        """Seconds until the page says so, measured in the page."""
        page.evaluate(SAID_AT, word)
        began = time.time()
        end()
        said_at = wait_for(word, lambda: page.evaluate("window.saidAt"))
        screen.keep(name)
        return said_at / 1e3 - began

    with Pace() as pace:
        daemon_s = said_after(lambda: os.kill(pid, signal.SIGKILL), "no daemon", "no-daemon")
    assert daemon_s < 1.0 + 4 * pace.worst_s  # server, browser and this test may all be late
    state(page, "decoding")
    with Pace() as pace:
        server_s = said_after(loop.server.process.kill, "lost", "lost")
    assert server_s < 1.0 + 4 * pace.worst_s
    loop.server.process.wait()
    loop.server.start()
    state(page, "decoding")
    screen.complaints = [c for c in screen.complaints if not NO_SERVER.search(c)]


def test_a_token_is_asked_for_and_logs_in(browser: Browser, tmp_path: Path) -> None:
    with Server(POSSM, tmp_path / "home", "nobody", VOLITION_TOKEN=TOKEN) as server:
        screen = opened(browser, server.url)
        page = screen.page
        expect(page).to_have_url(f"{server.url}/login")
        assert screen.violations() == []
        page.get_by_label("Token").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#complaint")).to_contain_text("not the server's token")
        screen.keep("login")
        page.get_by_label("Token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page).to_have_url(f"{server.url}/")
        expect(page.locator("#state-word")).not_to_have_text("Connecting")
        assert page.evaluate("document.cookie") == ""
        page.goto(f"{server.url}/docs")
        expect(page.locator(".swagger-ui .info")).to_contain_text("Volition")
        assert screen.hosts == {server.url.removeprefix("http://")}
