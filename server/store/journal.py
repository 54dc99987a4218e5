"""The persistent state of the server, in one SQLite file.

It holds the calibrations, the log of changes (who changed what, and when), and the state that a new
daemon starts from.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from decoder.errors import SettingsError, VolitionError

log = logging.getLogger("volition.server")

SCHEMA_VERSION = 1
CHANGES_KEPT = 100_000  # older ones are deleted when a server starts
TABLES = """
CREATE TABLE IF NOT EXISTS changes (
    number INTEGER PRIMARY KEY, at TEXT NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS calibrations (
    id TEXT PRIMARY KEY, key TEXT UNIQUE, document TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS set_aside (
    id TEXT PRIMARY KEY, key TEXT, document TEXT NOT NULL, why TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class JournalError(VolitionError):
    """The journal can't be written."""


class Journal:
    """The open journal file. Thread-safe. Raises SettingsError if it can't be opened.

    A damaged file, or one of another version, is renamed, and its readable content is copied into a
    new file. set_aside: a message that says so, or None.
    """

    def __init__(self, path: Path) -> None:
        self._lock, self._path = threading.Lock(), path
        self.set_aside: str | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._db = _open(path)
            except sqlite3.OperationalError:  # locked or not writable, but not damaged
                raise
            except sqlite3.DatabaseError as error:
                self._db = self._begin_again(error)
        except (OSError, sqlite3.Error) as error:
            raise SettingsError(f"{path} can't be opened ({error}); choose another home") from error

    def _begin_again(self, why: sqlite3.DatabaseError) -> sqlite3.Connection:
        old = self._path.with_name(f"{self._path.name}.{now():%Y%m%d-%H%M%S}.old")
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{self._path}{suffix}", f"{old}{suffix}")
        self.set_aside = f"the journal was set aside as {old.name} ({why})"
        log.error("%s", self.set_aside)
        db = _open(self._path)
        for table in ("state", "calibrations", "changes"):
            try:
                with db, contextlib.closing(sqlite3.connect(old)) as source:
                    rows = source.execute(f"SELECT * FROM {table}").fetchall()
                    if rows:
                        marks = ", ".join("?" * len(rows[0]))
                        db.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
            except sqlite3.Error as error:
                log.error("table %s can't be copied from the old journal: %s", table, error)
        return db

    def close(self) -> None:
        """Close the journal file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._lock, self._db:
                yield self._db
        except sqlite3.Error as error:
            raise JournalError(
                f"{self._path} can't be written ({error}); free some space. The change is not in it"
            ) from error

    def _read(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise JournalError(f"{self._path} can't be read ({error})") from error

    def note(self, who: str, what: str, **detail: Any) -> dict[str, Any]:
        """Record that someone changed something now; returns the entry, as in `changes`."""
        at = now().isoformat()
        entry = at, who, what, json.dumps(detail)
        with self._write() as db:
            number = db.execute(
                "INSERT INTO changes (at, who, what, detail) VALUES (?, ?, ?, ?)", entry
            ).lastrowid
        return {"number": number, "at": at, "who": who, "what": what, "detail": detail}

    def changes(self, limit: int) -> list[dict[str, Any]]:
        """The last `limit` changes, newest first."""
        rows = self._read("SELECT * FROM changes ORDER BY number DESC LIMIT ?", limit)
        return [
            {"number": number, "at": at, "who": who, "what": what, "detail": json.loads(detail)}
            for number, at, who, what, detail in rows
        ]

    def save_calibration(self, identity: str, key: str | None, document: str) -> None:
        """Insert or replace a calibration's document."""
        with self._write() as db:
            db.execute(
                "INSERT INTO calibrations VALUES (?, ?, ?) "
                "ON CONFLICT(id) DO UPDATE SET document = excluded.document",
                (identity, key, document),
            )

    def set_aside_calibration(self, document: str, why: str) -> None:
        """Move an unreadable document to the table `set_aside`, which the server does not read."""
        with self._write() as db:
            db.execute(
                "INSERT OR REPLACE INTO set_aside SELECT id, key, document, ? FROM calibrations "
                "WHERE document = ?",
                (why, document),
            )
            db.execute("DELETE FROM calibrations WHERE document = ?", (document,))

    def delete_calibration(self, identity: str) -> None:
        """Delete a calibration's document."""
        with self._write() as db:
            db.execute("DELETE FROM calibrations WHERE id = ?", (identity,))

    def calibrations(self) -> list[tuple[str | None, str]]:
        """Idempotency key and document of each calibration, oldest first."""
        rows = self._read("SELECT key, document FROM calibrations ORDER BY rowid")
        return [(key, document) for key, document in rows]

    def remember(self, **values: Any) -> None:
        """Set values of the state; each must be JSON-serializable."""
        with self._write() as db:
            db.executemany(
                "INSERT INTO state VALUES (?, ?) "
                "ON CONFLICT(name) DO UPDATE SET value = excluded.value",
                [(name, json.dumps(value)) for name, value in values.items()],
            )

    def recall(self, name: str) -> Any:
        """A value of the state; None if it was never set or can't be read."""
        text = self._text(name)
        try:
            return None if text is None else json.loads(text)
        except (ValueError, RecursionError):
            return None

    def is_damaged(self, name: str) -> bool:
        """Whether a value of the state was set but can't be read."""
        return self.recall(name) is None and self._text(name) not in (None, "null")

    def _text(self, name: str) -> str | None:
        rows = self._read("SELECT value FROM state WHERE name = ?", name)
        return rows[0][0] if rows else None


def _open(path: Path) -> sqlite3.Connection:
    """Open the file. Raises sqlite3.DatabaseError, but not OperationalError, if it is damaged."""
    db = sqlite3.connect(path, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            raise sqlite3.DatabaseError(f"it is of version {version}, not {SCHEMA_VERSION}")
        if (state := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(f"it is damaged: {state}")
        db.executescript(TABLES)
        db.execute(
            "DELETE FROM changes WHERE number <= (SELECT max(number) FROM changes) - ?",
            (CHANGES_KEPT,),
        )
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        db.commit()
    except sqlite3.Error:
        db.close()
        raise
    return db


def now() -> datetime:
    """The current time, UTC."""
    return datetime.now(UTC)
