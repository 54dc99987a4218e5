"""The journal: a server reads the intact entries of the one before."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest

from decoder.errors import SettingsError
from server.calibration.calibrations import Calibrations
from server.schemas import Calibration, CalibrationRequest
from server.settings import ServerSettings
from server.store.journal import Journal, JournalError
from server.store.registry import Registry
from server.store.wanted import Wanted
from server.supervision.daemon import SupervisedDaemon
from streaming.daemon.settings import DaemonSettings


def test_a_journal_keeps_its_content(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.note("Ada", "pause", why="lunch")
    journal.remember(active="a", paused=None)
    journal.save_calibration("cal-1", "key", "{}")
    journal.save_calibration("cal-1", "key", '{"state": "promoted"}')
    journal.close()
    again = Journal(tmp_path / "journal.sqlite")
    assert again.recall("active") == "a"
    assert again.recall("paused") is None
    assert again.recall("never set") is None
    assert again.calibrations() == [("key", '{"state": "promoted"}')]
    (change,) = again.changes(10)
    assert (change["who"], change["what"], change["detail"]) == ("Ada", "pause", {"why": "lunch"})
    again.close()


def wanted(journal: Journal) -> Wanted:
    return Wanted(journal, DaemonSettings())


def test_a_journal_of_another_version_is_set_aside_and_copied(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.remember(active="a", filters={"gain": 0.5})
    journal._db.execute("PRAGMA user_version=99")
    journal.close()
    journal = Journal(tmp_path / "journal.sqlite")
    now = wanted(journal)
    assert (now.active, now.filters.gain) == ("a", 0.5)
    assert "version 99" in str(now.paused)  # it may hold values that this version can't read
    now.keep()
    journal.close()
    again = Journal(tmp_path / "journal.sqlite")
    assert again.set_aside is None
    assert "version 99" in str(wanted(again).paused)
    again.close()
    assert [path for path in tmp_path.iterdir() if path.suffix == ".old"]


@pytest.mark.parametrize("damage", ["no database", "a page of zeros"])
def test_a_damaged_journal_is_set_aside_and_the_daemon_starts_paused(
    tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path)
    journal.remember(active="a", **{f"other-{i}": "x" * 500 for i in range(50)})
    journal.close()
    content = bytearray(path.read_bytes())
    content[:100] = b"no database".ljust(100) if damage == "no database" else content[:100]
    content[4096:8192] = bytes(4096)
    path.write_bytes(content)
    journal = Journal(path)
    assert "set aside" in str(wanted(journal).paused)
    journal.close()


def test_unreadable_values_are_read_in_part_and_the_daemon_starts_paused(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    for strange in (
        {"filters": {"gain": 0.5, "notch_hz": 50}},
        {"filters": {"gain": "loud"}},
        {"filters": {"gain": -3.0}},
        {"filters": [1, 2]},
        {"input": {"kind": "LFP"}},
        {"active": {"id": "a"}},
        {"paused": 7},
    ):
        journal.remember(active="a", paused=None, filters=None, input=None)
        assert wanted(journal).paused is None
        journal.remember(**strange)
        assert f"the journal's {next(iter(strange))}" in str(wanted(journal).paused), strange
    journal.remember(active="a", paused=None, filters={"gain": 0.5, "notch_hz": 50}, input=None)
    assert wanted(journal).filters.gain == 0.5
    journal.close()


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("filters", '{"gain": 0.7, "wobble": 2}'),
        ("filters", "[1, 2"),
        ("input", '{"kind": "LFP"}'),
        ("active", '{"id": "a"}'),
        ("previous", "no JSON"),
        ("good", "[]"),
        ("paused", "7"),
        ("pid", '"x"'),
    ],
)
def test_a_resume_holds_even_if_a_value_was_unreadable(
    tmp_path: Path, name: str, stored: str
) -> None:
    path = tmp_path / "journal.sqlite"
    Journal(path).close()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, stored))
    for paused in (True, True, False):  # until someone resumes, and never again
        with contextlib.closing(Journal(path)) as journal:
            found = wanted(journal)
            assert (found.paused is not None) == paused
            assert found.filters.gain == (0.7 if "gain" in stored else 1.0)
            if found.paused is not None and journal.recall("asked"):
                found.set(paused=None)
            journal.remember(asked=True)
            found.keep()


def test_the_server_starts_with_calibrations_of_another_version(tmp_path: Path) -> None:
    settings = ServerSettings(home=tmp_path)
    journal, registry = Journal(tmp_path / "journal.sqlite"), Registry(settings.decoders)
    ours = Calibration(
        id="cal-1", state="training", request=CalibrationRequest(), created=datetime.now(UTC)
    ).model_dump(mode="json")
    newer = ours | {"id": "cal-2", "sites": 3, "request": ours["request"] | {"sites": [1]}}
    other = ours | {"id": "cal-3", "state": "dreaming"}
    for document in (ours, newer, other):
        journal.save_calibration(document["id"], None, json.dumps(document))
    journal.save_calibration("cal-4", None, "[" * 100_000)
    supervisor = SupervisedDaemon(settings, journal, registry)
    calibrations = Calibrations(settings, journal, supervisor, registry)
    assert [calibration.id for calibration in calibrations.all()] == ["cal-2", "cal-1"]
    aside = journal._db.execute("SELECT id, document FROM set_aside ORDER BY id").fetchall()
    assert aside == [("cal-3", json.dumps(other)), ("cal-4", "[" * 100_000)]
    supervisor.stop()
    journal.close()


def test_a_journal_that_can_not_grow_raises_an_error_with_advice(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(JournalError, match="free some space"):
        journal.remember(large="x" * 100_000)
    assert journal.recall("large") is None
    journal.close()


def test_a_journal_in_an_impossible_place_is_refused(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(SettingsError, match="choose another home"):
        Journal(blocked / "journal.sqlite")
    assert os.listdir(tmp_path) == ["file"]
