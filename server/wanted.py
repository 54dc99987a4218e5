"""What the daemon should do, whichever process it is: kept in memory first, then in the journal.

Memory comes first so that a pause holds where the disk is full: the next daemon begins paused.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from typing import Any

from decoder.filters import Filters
from server.journal import Journal, JournalError
from streaming.lsl import StreamQuery
from streaming.settings import DaemonSettings

log = logging.getLogger("volition.server")


class Wanted:
    """The decoder, and what a new daemon is told. Thread-safe, each value on its own.

    active: decoder id. previous: the one before, for a rollback. good: one that has proven itself.
    """

    def __init__(self, journal: Journal, settings: DaemonSettings) -> None:
        self._journal, self._settings = journal, settings
        self._lock = threading.Lock()
        self._values: dict[str, Any] = {
            name: journal.recall(name)
            for name in ("active", "previous", "good", "paused", "filters", "input")
        }

    @property
    def active(self) -> str | None:
        value: str | None = self._get("active")
        return value

    @property
    def previous(self) -> str | None:
        value: str | None = self._get("previous")
        return value

    @property
    def good(self) -> str | None:
        value: str | None = self._get("good")
        return value

    @property
    def paused(self) -> str | None:
        value: str | None = self._get("paused")
        return value

    @property
    def filters(self) -> Filters:
        value = self._get("filters")
        return Filters(**value) if value is not None else self._settings.filters

    @property
    def input(self) -> StreamQuery:
        value = self._get("input")
        if value is not None:
            return StreamQuery(**value)
        return StreamQuery(kind=self._settings.stream_type, name=self._settings.stream_name)

    def set(self, **values: Any) -> JournalError | None:
        """Remember values of these names; what kept them out of the journal, if anything."""
        plain = {
            name: dataclasses.asdict(value) if isinstance(value, Filters | StreamQuery) else value
            for name, value in values.items()
        }
        with self._lock:
            self._values |= plain
        try:
            self._journal.remember(**plain)
        except JournalError as error:
            log.error("%s", error)
            return error
        return None

    def daemon(self, control: str) -> DaemonSettings:
        """Settings of a daemon that does this from its first tick on."""
        return self._settings.model_copy(
            update={
                "control": control,
                "paused": self.paused,
                "filters": self.filters,
                "stream_type": self.input.kind,
                "stream_name": self.input.name,
            }
        )

    def _get(self, name: str) -> Any:
        with self._lock:
            return self._values[name]
