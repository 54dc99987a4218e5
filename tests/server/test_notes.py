"""Notes: in the journal, over LSL, from REST, client and command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from clients.control import ControlClient
from clients.harness.server import Server
from server.notes import MOST_WAITING, STREAM, NotesOutlet
from streaming.inlets.kinematics import NOTES, Markers
from tests.rig import wait_for
from tests.server.conftest import POSSM


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(POSSM, tmp_path_factory.mktemp("idle"), "nobody-streams-this") as running:
        yield running


@pytest.fixture
def heard() -> Iterator[Markers]:
    """What a recorder hears."""
    notes = Markers(kind=NOTES)
    wait_for("the server's stream", lambda: STREAM in notes.names)
    yield notes
    notes.close()


def test_a_note_is_in_the_journal_and_sent_with_its_time(idle: Server, heard: Markers) -> None:
    text = "électrode 12 came loose, “fixed”"
    with ControlClient(idle.url, operator="Ada") as client:
        entry = client.note(text)
        assert (entry.who, entry.what, entry.detail["text"]) == ("Ada", "note", text)
        assert client.journal(1) == [entry]
    found: list[tuple[float, str]] = []
    wait_for(
        "the note",
        lambda: found.extend(heard.drain()) or [t for _, t in found if t == text],
    )
    (at,) = (at for at, t in found if t == text)
    assert at == pytest.approx(entry.detail["lsl_time_s"], abs=2e-3)


INVALID = {
    "empty": "", "long": "x" * 501, "lines": "two\nlines", "NUL": "a\x00b", "C1": "\x85",
    "number": 7, "null": None,
}  # fmt: skip


@pytest.mark.parametrize("text", INVALID.values(), ids=INVALID)
def test_an_invalid_note_is_refused(idle: Server, text: object) -> None:
    answer = httpx.post(f"{idle.url}/v1/notes", json={"text": text})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


def test_the_command_writes_a_note(idle: Server) -> None:
    def volition(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "clients", "note", "--url", idle.url, *arguments],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    done = volition("a new task", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["detail"]["text"] == "a new task"
    assert "noted at" in volition("again").stdout
    refused = volition("")
    assert refused.returncode == 1
    assert "text" in refused.stderr


def test_an_outlet_that_is_stuck_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    stuck = NotesOutlet(0)  # never started
    for number in range(MOST_WAITING + 1):
        stuck.send(0.0, f"note {number}")
    assert f"in the journal only: note {MOST_WAITING}" in caplog.text
    stuck.close()
