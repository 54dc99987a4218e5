"""Deletes decoders from the registry: one on request, and the oldest if only so many are kept.

A decoder stays while something needs it: the daemon, a rollback, the supervisor after a crash, a
running calibration, or a decoder that was trained from it. Calibrations start from the pretrained
end of a lineage (`server.calibration.bases`), so a base stays as long as a decoder based on it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from decoder.errors import VolitionError
from server.problems import ConflictError
from server.schemas import Calibration
from server.store.journal import Journal
from server.store.registry import Entry, Registry
from server.supervision.daemon import SupervisedDaemon

log = logging.getLogger("volition.server")

RETENTION = "retention"  # who deletes the oldest decoders


@dataclass(frozen=True, kw_only=True)
class Removal:
    """Deletes decoders that nothing needs.

    keep: number of newest decoders that `retire` keeps; None for all.
    running: returns the running calibration, if any.
    """

    keep: int | None
    journal: Journal
    registry: Registry
    supervisor: SupervisedDaemon
    running: Callable[[], Calibration | None]

    def remove(self, decoder: str, *, who: str) -> None:
        """Delete a decoder. Raises ConflictError if something needs it, and NotFoundError."""
        with self.supervisor.decoder_lock:
            entry = self.registry.get(decoder)
            if (why := self._needed(entry, self.registry.all())) is not None:
                raise ConflictError(f"{decoder} {why}")
            self._delete(entry, who)

    def retire(self) -> None:
        """Delete older decoders than the newest `keep` that have no label and nothing needs.

        Errors are logged.
        """
        if self.keep is None:
            return
        kept = self.registry.all()
        for entry in kept[self.keep :]:  # newest first: a base comes after what is based on it
            try:
                with self.supervisor.decoder_lock:  # for one each: a rollback must not wait long
                    now = self.registry.get(entry.id)  # it may have been pinned since
                    if now.marks.label or self._needed(now, kept) is not None:
                        continue
                    self._delete(now, RETENTION)
            except (VolitionError, OSError) as error:
                log.error("retention: %s", error)
            else:
                kept.remove(entry)

    def _delete(self, entry: Entry, who: str) -> None:
        with self.registry.removing(entry):
            self.journal.note(who, "delete", decoder=entry.id, label=entry.marks.label)

    def _needed(self, entry: Entry, kept: list[Entry]) -> str | None:
        """Why a decoder can't be deleted, and what to do about it; None if it can.

        kept: the registered decoders.
        """
        wanted, status = self.supervisor.wanted, self.supervisor.status
        uses = (
            (wanted.active, "is in use; activate another decoder first"),
            (status and status.decoder, "is in use; activate another decoder first"),
            (status and status.candidate,
             "is the daemon's candidate, ready to be activated; activate two others first"),
            (wanted.previous, "is the previous decoder, for a rollback; activate two others first"),
            (status and status.previous,
             "is the daemon's previous decoder, for a rollback; activate two others first"),
            (wanted.good,
             "is the last good decoder, which the daemon is started with if the active one fails; "
             "wait until the active one has proven itself"),
        )  # fmt: skip
        for used, why in uses:
            if used == entry.id:
                return why
        if entry.marks.problem is not None:
            return f"counts as pinned: {entry.marks.problem} with PATCH /v1/decoders/{entry.id}"
        if entry.marks.pinned:
            return f"is pinned; unpin it first (PATCH /v1/decoders/{entry.id})"
        running = self.running()
        if running is not None and entry.id in (
            running.request.base, running.base, running.before, running.candidate
        ):  # fmt: skip
            return f"is used by {running.id}, which is {running.state}; wait for its end"
        for other in kept:
            if other.base == entry.id and other.id != entry.id:
                return (
                    f"is the base of {other.id}, and later calibrations start from it; delete "
                    "that one first"
                )
        return None
