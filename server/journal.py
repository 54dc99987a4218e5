"""What must survive: one SQLite file of calibrations, of what was changed by whom and when, and of
the state that a new daemon is given.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from decoder.errors import SettingsError, VolitionError

SCHEMA_VERSION = 1
TABLES = """
CREATE TABLE IF NOT EXISTS changes (
    number INTEGER PRIMARY KEY, at TEXT NOT NULL, who TEXT NOT NULL, what TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS calibrations (
    id TEXT PRIMARY KEY, key TEXT UNIQUE, document TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class JournalError(VolitionError):
    """The journal can't be written."""


class Journal:
    """The file, open. Raises SettingsError where it can't be. May be used from any thread."""

    def __init__(self, path: Path) -> None:
        self._lock, self._path = threading.Lock(), path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(TABLES)
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, SCHEMA_VERSION):
                raise SettingsError(f"{path} is of version {version}, expected {SCHEMA_VERSION}")
            self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        except (OSError, sqlite3.Error) as error:
            raise SettingsError(f"{path} can't be opened ({error}); choose another home") from error

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._lock, self._db:
                yield self._db
        except sqlite3.Error as error:
            raise JournalError(
                f"{self._path} can't be written ({error}); make room. What was done is not in it"
            ) from error

    def _read(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise JournalError(f"{self._path} can't be read ({error})") from error

    def note(self, who: str, what: str, **detail: Any) -> None:
        """Somebody changed something, now."""
        entry = now().isoformat(), who, what, json.dumps(detail)
        with self._write() as db:
            db.execute("INSERT INTO changes (at, who, what, detail) VALUES (?, ?, ?, ?)", entry)

    def changes(self, limit: int) -> list[dict[str, Any]]:
        """The latest changes, newest first."""
        rows = self._read("SELECT * FROM changes ORDER BY number DESC LIMIT ?", limit)
        return [
            {"number": number, "at": at, "who": who, "what": what, "detail": json.loads(detail)}
            for number, at, who, what, detail in rows
        ]

    def save_calibration(self, identity: str, key: str | None, document: str) -> None:
        """Write a calibration, anew or over what stood there."""
        with self._write() as db:
            db.execute(
                "INSERT INTO calibrations VALUES (?, ?, ?) "
                "ON CONFLICT(id) DO UPDATE SET document = excluded.document",
                (identity, key, document),
            )

    def delete_calibration(self, identity: str) -> None:
        """Forget a calibration."""
        with self._write() as db:
            db.execute("DELETE FROM calibrations WHERE id = ?", (identity,))

    def calibrations(self) -> list[tuple[str | None, str]]:
        """Idempotency key and document of each, oldest first."""
        rows = self._read("SELECT key, document FROM calibrations ORDER BY rowid")
        return [(key, document) for key, document in rows]

    def remember(self, **values: Any) -> None:
        """Set values of the state, as JSON."""
        with self._write() as db:
            db.executemany(
                "INSERT INTO state VALUES (?, ?) "
                "ON CONFLICT(name) DO UPDATE SET value = excluded.value",
                [(name, json.dumps(value)) for name, value in values.items()],
            )

    def recall(self, name: str) -> Any:
        """A value of the state; None where it was never set."""
        rows = self._read("SELECT value FROM state WHERE name = ?", name)
        return json.loads(rows[0][0]) if rows else None


def now() -> datetime:
    """This instant, UTC."""
    return datetime.now(UTC)
