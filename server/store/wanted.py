"""The wanted state of the daemon, whichever process it is: in memory and in the journal.

Values are set in memory without waiting for the disk, so a pause holds for the next daemon even if
the disk is full. `keep` writes them to the journal.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from typing import Any

import msgspec

from decoder.errors import VolitionError
from decoder.filters import Filters
from server.store.journal import Journal, JournalError
from streaming.daemon.settings import DaemonSettings
from streaming.inlets.spikes import StreamQuery

log = logging.getLogger("volition.server")

CHECK = "check decoder, filters and input, then resume"
KINDS: dict[str, Any] = {  # else str
    "filters": Filters,
    "input": StreamQuery,
    "excluded": frozenset[str],
    "pid": int,
}
NAMES = ("active", "previous", "good", "paused", "filters", "input", "excluded", "pid")


class Wanted:
    """The active decoder and the settings of a new daemon. Each value is thread-safe by itself.

    active: decoder id. previous: the decoder before it, for a rollback. good: a proven decoder.
    pid: process id of the last daemon that was started or adopted.
    """

    def __init__(self, journal: Journal, settings: DaemonSettings) -> None:
        self._journal, self._settings = journal, settings
        self._lock = threading.Lock()  # guards the values; never held while waiting for the disk
        self._writing = threading.Lock()
        self._values: dict[str, Any] = dict.fromkeys(NAMES)
        self._unwritten: set[str] = set()
        strange = [name for name in NAMES if not self._recall(name)]
        self._strange = set(strange)  # overwritten once someone resumes
        if journal.set_aside is not None:
            self.set(paused=f"{journal.set_aside}; {CHECK}")
        elif strange:
            self.set(paused=f"the journal's {', '.join(strange)} can't be read; {CHECK}")

    def _recall(self, name: str) -> bool:
        """Load a value from the journal; returns whether all of it could be read."""
        value = self._journal.recall(name)
        if value is None:
            return not self._journal.is_damaged(name)
        kind = KINDS.get(name, str)
        try:
            self._values[name] = msgspec.convert(value, kind)
        except (msgspec.ValidationError, VolitionError) as error:
            log.error("the journal's %s can't be read (%s): %r", name, error, value)
            return False
        return not (
            dataclasses.is_dataclass(kind)
            and value.keys() - {f.name for f in dataclasses.fields(kind)}
        )

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
    def pid(self) -> int | None:
        value: int | None = self._get("pid")
        return value

    @property
    def filters(self) -> Filters:
        value: Filters | None = self._get("filters")
        return value if value is not None else self._settings.filters

    @property
    def input(self) -> StreamQuery:
        value: StreamQuery | None = self._get("input")
        if value is not None:
            return value
        return StreamQuery(kind=self._settings.stream_type, name=self._settings.stream_name)

    @property
    def excluded(self) -> frozenset[str]:
        """The ids of the units that are not decoded."""
        value: frozenset[str] | None = self._get("excluded")
        return value if value is not None else frozenset(self._settings.excluded)

    def set(self, **values: Any) -> dict[str, Any]:
        """Set values; returns the old ones, so that they can be restored. Never waits."""
        with self._lock:
            before = {name: self._values[name] for name in values}
            self._values |= values
            self._unwritten |= set(values)
            if values.get("paused", "") is None:
                self._unwritten |= self._strange
                self._strange = set()
        return before

    def set_missing(self, **values: Any) -> None:
        """Set only those values that are None."""
        with self._lock:
            new = {n: v for n, v in values.items() if self._values[n] is None and v is not None}
            self._values |= new
            self._unwritten |= set(new)

    def keep(self) -> None:
        """Write changed values to the journal, or wait until another thread has done so.

        Raises JournalError if that fails; a later call tries again.
        """
        with self._writing:
            with self._lock:
                names, self._unwritten = self._unwritten, set()
                values = {name: _plain(self._values[name]) for name in names}
            if not values:
                return
            try:
                self._journal.remember(**values)
            except JournalError:
                with self._lock:
                    self._unwritten |= names
                raise

    def try_to_keep(self) -> JournalError | None:
        """Like `keep`, but log and return the error instead of raising it."""
        try:
            self.keep()
        except JournalError as error:
            log.error("%s", error)
            return error
        return None

    def daemon(self, control: str) -> DaemonSettings:
        """The settings of a daemon that starts in this state."""
        return self._settings.model_copy(
            update={
                "control": control,
                "paused": self.paused,
                "filters": self.filters,
                "stream_type": self.input.kind,
                "stream_name": self.input.name,
                "excluded": tuple(sorted(self.excluded)),
            }
        )

    def _get(self, name: str) -> Any:
        with self._lock:
            return self._values[name]


def _plain(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(value)
    return dataclasses.asdict(value) if isinstance(value, Filters | StreamQuery) else value
