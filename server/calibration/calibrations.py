"""All calibrations: begin, cancel, resume, discard. At most one runs (`server.calibration.job`).

A server that finds one unfinished in its journal lists it as `interrupted`, with its data.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import uuid
from typing import Any

from pydantic import ValidationError

from decoder.errors import SessionError
from server.calibration.job import Job, StartChild, session_file
from server.problems import ConflictError, NotFoundError
from server.schemas import RUNNING, Calibration, CalibrationRequest, State
from server.settings import ServerSettings
from server.store.journal import Journal, JournalError, now
from server.store.registry import Registry
from server.supervision.children import Child
from server.supervision.daemon import SupervisedDaemon

log = logging.getLogger("volition.server")

CUT_SHORT: tuple[State, ...] = ("interrupted", "failed", "cancelled")


class Calibrations:
    """All calibrations, of which one at most runs."""

    def __init__(
        self,
        settings: ServerSettings,
        journal: Journal,
        supervisor: SupervisedDaemon,
        registry: Registry,
        *,
        start_child: StartChild = Child,
    ) -> None:
        self._parts = {
            "settings": settings, "journal": journal, "supervisor": supervisor,
            "registry": registry, "start_child": start_child,
        }  # fmt: skip
        self._settings, self._journal = settings, journal
        self._registry = registry
        self._lock = threading.Lock()
        self._known: dict[str, Calibration] = {}
        self._keys: dict[str, str] = {}
        self._job: Job | None = None
        for key, document in journal.calibrations():
            if (calibration := self._read(document)) is not None:
                self._restore(key, calibration)

    def _read(self, document: str) -> Calibration | None:
        """A document of the journal, less what a newer version put in; one that isn't is kept."""
        try:
            try:
                return Calibration.model_validate_json(document)
            except ValidationError as error:
                return Calibration.model_validate(_known_parts(json.loads(document), error))
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            log.error("a calibration of the journal is set aside (%s): %.200s", error, document)
            self._journal.set_aside_calibration(document, str(error))
            return None

    def _restore(self, key: str | None, calibration: Calibration) -> None:
        """Of an earlier server: what ran then was interrupted."""
        if calibration.state in RUNNING:
            active = self._journal.recall("active")
            was_promoted = calibration.state == "promoting" and calibration.candidate == active
            calibration.state = "promoted" if was_promoted else "interrupted"
            calibration.ended = now() if was_promoted else None
            try:
                self._journal.save_calibration(calibration.id, key, calibration.model_dump_json())
                self._journal.note(
                    "server", "calibration", id=calibration.id, state=calibration.state
                )
            except JournalError as error:  # the next server finds the same
                log.error("%s", error)
        self._known[calibration.id] = calibration
        if key is not None:
            self._keys[key] = calibration.id

    @property
    def running(self) -> Calibration | None:
        """The one that runs."""
        job = self._job
        return job.calibration if job is not None and job.runs else None

    def all(self) -> list[Calibration]:
        """Newest first."""
        return list(self._known.values())[::-1]

    def get(self, identity: str) -> Calibration:
        """One calibration. Raises NotFoundError."""
        if identity not in self._known:
            raise NotFoundError(f"there is no calibration {identity!r}; see GET /v1/calibrations")
        return self._known[identity]

    def start(self, request: CalibrationRequest, *, key: str | None, who: str) -> Calibration:
        """Begin a calibration, or return the one that the same key began.

        Raises ConflictError where another one runs, or the key was used for another request;
        NotFoundError where the base isn't registered, or the data to learn from aren't there.
        """
        with self._lock:
            if key is not None and key in self._keys:
                known = self._known[self._keys[key]]
                if known.request != request:
                    raise ConflictError(f"key {key!r} began {known.id}, by another request")
                return known
            self._check_idle()
            if request.base is not None:
                self._registry.get(request.base)
            if request.shadow and request.labels != "kinematics":
                raise ConflictError(
                    f"a shadow is scored by the kinematics as they come, not by {request.labels}; "
                    "leave one of them out"
                )
            made_at = now()
            calibration = Calibration(
                id=f"cal-{made_at:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}",
                state="collecting",
                request=request,
                created=made_at,
            )
            if request.data is not None:
                source = self.get(request.data)
                session_file(self._settings, source.id)
                calibration.collected_s, calibration.spikes = source.collected_s, source.spikes
            self._run(calibration, key, who=who)
            return calibration

    def finish(self, identity: str, *, who: str) -> Calibration:
        """End a collection early and learn from what is there."""
        self._running(identity).finish(who=who)
        return self.get(identity)

    def cancel(self, identity: str, *, who: str) -> Calibration:
        """End one that runs. Raises ConflictError where it has ended already."""
        self._running(identity).cancel(who=who)
        return self.get(identity)

    def resume(self, identity: str, *, who: str) -> Calibration:
        """Go on with one that was cut short: collect what is missing, then learn."""
        with self._lock:
            calibration = self.get(identity)
            has_data = (
                calibration.request.data is not None
                or (self._settings.calibrations / identity).is_dir()
            )
            if calibration.state not in CUT_SHORT or not has_data:
                raise ConflictError(
                    f"{identity} is {calibration.state}; only one that was cut short after data "
                    "had come can be resumed"
                )
            self._check_idle()
            anew = calibration.model_copy(
                update={"state": "collecting", "ended": None, "problem": None, "verdict": ""}
            )
            key = next((k for k, i in self._keys.items() if i == identity), None)
            self._run(anew, key, who=who, resume=True)
            return anew

    def remove(self, identity: str, *, who: str) -> None:
        """Cancel a calibration that runs; one that has ended is forgotten, with its data.

        Raises SessionError where its data can't be removed.
        """
        with self._lock:
            self.get(identity)
            job = self._job
            if job is not None and job.runs and job.calibration.id == identity:
                job.cancel(who=who)
                return
            self._journal.delete_calibration(identity)
            self._journal.note(who, "calibration", id=identity, state="discarded")
            self._known.pop(identity)
            self._keys = {k: i for k, i in self._keys.items() if i != identity}
            folder = self._settings.calibrations / identity
            gone = folder.with_name(f".{folder.name}.{os.getpid()}.gone")
            try:
                if folder.exists():
                    os.rename(folder, gone)
            except OSError as error:
                raise SessionError(f"{folder} can't be removed ({error})") from error
        shutil.rmtree(gone, ignore_errors=True)

    def stop(self) -> None:
        """The server stops: what runs is interrupted, its data kept."""
        job = self._job
        if job is not None and job.runs:
            try:
                job.cancel(who="server")
            except ConflictError:  # it ends by itself
                job.wait()
            if job.calibration.state == "cancelled":
                job.calibration.state = "interrupted"
                job.save()

    def _run(
        self, calibration: Calibration, key: str | None, *, who: str, resume: bool = False
    ) -> None:
        job = Job(calibration, key, who=who, resume=resume, **self._parts)  # type: ignore[arg-type]
        job.save()  # before it is known: where the disk is full, nothing has begun
        self._known[calibration.id], self._job = calibration, job
        if key is not None:
            self._keys[key] = calibration.id
        job.start()

    def _running(self, identity: str) -> Job:
        calibration, job = self.get(identity), self._job
        if job is None or not job.runs or job.calibration.id != identity:
            raise ConflictError(f"{identity} is {calibration.state}; it doesn't run")
        return job

    def _check_idle(self) -> None:
        if (running := self.running) is not None:
            raise ConflictError(
                f"{running.id} is {running.state}; wait for it, or cancel it with "
                f"DELETE /v1/calibrations/{running.id}"
            )


def _known_parts(document: Any, error: ValidationError) -> Any:
    """A document without the fields that validation found too many."""
    for wrong in error.errors():
        if wrong["type"] == "extra_forbidden":
            part = document
            for name in wrong["loc"][:-1]:
                part = part[name]
            part.pop(wrong["loc"][-1])
    return document
