"""What was written is there for the next server."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from decoder.errors import SettingsError
from server.journal import Journal, JournalError


def test_a_journal_is_read_again_as_it_was_written(tmp_path: Path) -> None:
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


def test_a_journal_of_another_version_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal._db.execute("PRAGMA user_version=99")
    journal.close()
    with pytest.raises(SettingsError, match="version 99"):
        Journal(tmp_path / "journal.sqlite")


def test_a_journal_that_cannot_grow_says_what_to_do(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(JournalError, match="make room"):
        journal.remember(large="x" * 100_000)
    assert journal.recall("large") is None
    journal.close()


def test_no_journal_where_nothing_can_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(SettingsError, match="choose another home"):
        Journal(blocked / "journal.sqlite")
    assert os.listdir(tmp_path) == ["file"]
