"""The calibrations: start, finish, cancel, resume, promote, reject, discard. One runs at a time.

A running calibration is a `server.calibration.job`. One that an earlier server left unfinished is
listed as `interrupted`; its data are kept.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import uuid
from contextlib import suppress

from decoder.errors import SessionError
from decoder.traces import TRACES, Traces, TracesError
from server.calibration.bases import check_shadow
from server.calibration.blocks import named_in
from server.calibration.job import Job, StartChild
from server.problems import ConflictError, NotFoundError
from server.schemas import OWN, RUNNING, Calibration, CalibrationRequest, State
from server.settings import ServerSettings
from server.store.journal import Journal, JournalError, now
from server.store.registry import Registry
from server.supervision.daemon import SupervisedDaemon
from server.supervision.removal import Removal
from streaming.wire.children import Child

log = logging.getLogger("volition.server")

UNATTENDED = "unattended"  # who starts the calibrations that no operator asked for
CUT_SHORT: tuple[State, ...] = ("interrupted", "failed", "cancelled")
REJECTABLE: tuple[State, ...] = ("ready", "undecided")
PROMOTABLE: tuple[State, ...] = (*REJECTABLE, "rejected")


class Calibrations:
    """All calibrations known to the server. At most one runs at a time.

    removal: deletes decoders; the oldest ones after each calibration, if only so many are kept.
    promoted_by_hand: ids of those that operators have promoted since the server started.
    """

    def __init__(
        self,
        settings: ServerSettings,
        journal: Journal,
        supervisor: SupervisedDaemon,
        registry: Registry,
        *,
        start_child: StartChild = Child,
    ) -> None:
        self.removal = Removal(
            keep=settings.keep_decoders, journal=journal, registry=registry, supervisor=supervisor,
            running=lambda: self.running,
        )  # fmt: skip
        self._parts = {
            "settings": settings, "journal": journal, "supervisor": supervisor,
            "registry": registry, "get": self.get, "start_child": start_child,
            "on_end": self.removal.retire,
        }  # fmt: skip
        self._settings, self._journal = settings, journal
        self._registry, self._supervisor = registry, supervisor
        self._lock, self._deciding = threading.Lock(), threading.Lock()
        self.promoted_by_hand: set[str] = set()
        self._known: dict[str, Calibration] = {}
        self._keys: dict[str, str] = {}
        self._job: Job | None = None
        for key, document in journal.calibrations():
            if (calibration := self._read(document)) is not None:
                self._restore(key, calibration)

    def _read(self, document: str) -> Calibration | None:
        """Parse a document without its unknown fields; set it aside if it is not valid."""
        try:
            return Calibration.model_validate_json(document, extra="ignore")
        except (ValueError, RecursionError) as error:
            log.error(
                "a calibration in the journal can't be read and is set aside (%s): %.200s",
                error,
                document,
            )
            self._journal.set_aside_calibration(document, str(error))
            return None

    def _restore(self, key: str | None, calibration: Calibration) -> None:
        """Restore a calibration of an earlier server; one that was running is now interrupted."""
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
            except JournalError as error:  # the next server tries again
                log.error("%s", error)
        self._known[calibration.id] = calibration
        if key is not None:
            self._keys[key] = calibration.id

    @property
    def running(self) -> Calibration | None:
        """The running calibration, if any."""
        job = self._job
        return job.calibration if job is not None and job.runs else None

    def all(self) -> list[Calibration]:
        """All calibrations, newest first."""
        return list(self._known.values())[::-1]

    def get(self, identity: str) -> Calibration:
        """One calibration. Raises NotFoundError."""
        if identity not in self._known:
            raise NotFoundError(f"no calibration {identity!r}; see GET /v1/calibrations")
        return self._known[identity]

    def start(self, request: CalibrationRequest, *, key: str | None, who: str) -> Calibration:
        """Start a calibration, or return the one that was started with the same key.

        An unattended calibration that is running is cancelled for it, unless it is unattended too.
        Raises ConflictError if another one is running, the key was used for another request or the
        data to train on are of several subjects, or the method needs another base, and
        NotFoundError if the base is not registered or data to train on are missing.
        """
        with self._lock:
            if key is not None and key in self._keys:
                known = self._known[self._keys[key]]
                if known.request != request:
                    raise ConflictError(
                        f"key {key!r} started {known.id} with another request; use a new key"
                    )
                return known
            self._check_idle(who)
            if request.base is not None:
                self._registry.get(request.base)
            check_shadow(request)
            made_at = now()
            calibration = Calibration(
                id=f"cal-{made_at:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}",
                state="collecting",
                request=request,
                who=who,
                created=made_at,
            )
            earlier = named_in(request, self.get, self._settings)
            seconds = sum(block.collected_s for block in earlier)
            if request.data is None:
                calibration.earlier_s = seconds
            else:
                calibration.collected_s = seconds
                calibration.spikes = sum(block.spikes for block in earlier)
            self._run(calibration, key, who=who)
            return calibration

    def finish(self, identity: str, *, who: str) -> Calibration:
        """Stop collecting early and train on the data collected so far."""
        self._running(identity).finish(who=who)
        return self.get(identity)

    def cancel(self, identity: str, *, who: str) -> Calibration:
        """Cancel a running calibration. Raises ConflictError if it has already ended."""
        self._running(identity).cancel(who=who)
        return self.get(identity)

    def resume(self, identity: str, *, who: str) -> Calibration:
        """Continue a calibration that was cut short: collect the missing data, then train."""
        with self._lock:
            calibration = self.get(identity)
            has_data = (
                calibration.request.data is not None
                or (self._settings.calibrations / identity).is_dir()
            )
            if calibration.state not in CUT_SHORT or not has_data:
                raise ConflictError(
                    f"{identity} is {calibration.state}; only a calibration that was cut short and "
                    "has data can be resumed; start a new one"
                )
            self._check_idle(who)
            resumed = calibration.model_copy(
                update={"state": "collecting", "ended": None, "problem": None, "verdict": ""}
            )
            key = next((k for k, i in self._keys.items() if i == identity), None)
            self._run(resumed, key, who=who, resume=True)
            return resumed

    def promote(self, identity: str, *, who: str) -> Calibration:
        """Activate the candidate of a calibration that has ended, whatever the gate's answer.

        Raises ConflictError if it has no candidate that waits, and as `SupervisedDaemon.activate`.
        """
        with self._deciding:
            calibration = self._decidable(identity, PROMOTABLE, "promoted")
            candidate = calibration.candidate
            assert candidate is not None
            try:
                self._registry.get(candidate)
            except NotFoundError as error:
                raise ConflictError(
                    f"{candidate}, the candidate of {identity}, is no longer registered; calibrate "
                    f"again with data={identity}"
                ) from error
            self.promoted_by_hand.add(identity)
            self._supervisor.activate(candidate, who=who)
            self._record(calibration, "promoted", calibration.verdict, who=who)
        return calibration

    def reject(self, identity: str, *, who: str) -> Calibration:
        """Close a calibration without its candidate. Raises ConflictError if it is not open."""
        with self._deciding:
            calibration = self._decidable(identity, REJECTABLE, "rejected")
            self._record(calibration, "rejected", f"rejected by {who}", who=who)
        return calibration

    def _decidable(self, identity: str, states: tuple[State, ...], what: str) -> Calibration:
        """A calibration in one of these states, with a candidate. Raises ConflictError."""
        calibration = self.get(identity)
        state, candidate = calibration.state, calibration.candidate
        if state in RUNNING:
            raise ConflictError(f"{identity} is {state}; wait for its end, or cancel it")
        if state not in states or candidate is None:
            raise ConflictError(
                f"{identity} is {state}; only one that is {', '.join(states[:-1])} or {states[-1]} "
                f"can be {what}"
            )
        return calibration

    def _record(self, calibration: Calibration, state: State, verdict: str, *, who: str) -> None:
        """Record an operator's decision. Raises JournalError, and then it is as before."""
        with self._lock:
            if calibration.id not in self._known:
                return  # it was discarded in the meantime
            before = calibration.state, calibration.verdict
            calibration.state, calibration.verdict = state, verdict
            try:
                self._journal.save_calibration(calibration.id, None, calibration.model_dump_json())
            except JournalError:
                calibration.state, calibration.verdict = before
                raise
            self._journal.note(who, "calibration", id=calibration.id, state=state)

    def traces(self, identity: str) -> Traces:
        """The velocities of both decoders on held-out data. Raises NotFoundError."""
        calibration = self.get(identity)
        path = self._settings.calibrations / identity / TRACES
        try:
            return Traces.load(path)
        except TracesError as error:
            if path.exists():
                raise NotFoundError(f"{error}; calibrate again with data={identity}") from error
            raise NotFoundError(f"{identity} has no traces: {_why_none(calibration)}") from error

    def remove(self, identity: str, *, who: str) -> None:
        """Cancel a running calibration, or discard one that has ended, with its data.

        Raises SessionError if its data can't be deleted.
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
                raise SessionError(f"{folder} can't be deleted ({error})") from error
        shutil.rmtree(gone, ignore_errors=True)

    def stop(self) -> None:
        """Interrupt the running calibration when the server stops; its data are kept."""
        job = self._job
        if job is not None and job.runs:
            try:
                job.cancel(who="server")
            except ConflictError:  # it is about to end by itself
                job.wait()
            if job.calibration.state == "cancelled":
                job.calibration.state = "interrupted"
                job.save()

    def _run(
        self, calibration: Calibration, key: str | None, *, who: str, resume: bool = False
    ) -> None:
        job = Job(calibration, key, who=who, resume=resume, **self._parts)  # type: ignore[arg-type]
        job.check()
        self._make_room(who)
        job.save()  # before anything else: on a full disk, nothing is started
        self._known[calibration.id], self._job = calibration, job
        if key is not None:
            self._keys[key] = calibration.id
        job.start()

    def _running(self, identity: str) -> Job:
        calibration, job = self.get(identity), self._job
        if job is None or not job.runs or job.calibration.id != identity:
            raise ConflictError(f"{identity} is {calibration.state}, not running")
        return job

    def _check_idle(self, who: str) -> None:
        if (running := self.running) is not None and not self._gives_way(running, who):
            raise ConflictError(
                f"{running.id} is {running.state}; wait for it, or cancel it with "
                f"DELETE /v1/calibrations/{running.id}"
            )

    def _gives_way(self, running: Calibration, who: str) -> bool:
        """Whether a running calibration is cancelled for another one."""
        return running.who == UNATTENDED != who

    def _make_room(self, who: str) -> None:
        """Cancel an unattended calibration that is in the way of an operator's."""
        job = self._job
        if job is not None and job.runs and self._gives_way(job.calibration, who):
            with suppress(ConflictError):  # it is about to end by itself
                job.cancel(who=who)
            job.wait()


def _why_none(calibration: Calibration) -> str:
    """Why a calibration has no traces."""
    if calibration.state in RUNNING:
        return f"it is {calibration.state} and not compared yet"
    if calibration.request.labels in OWN:
        return f"its labels ({calibration.request.labels}) are the decoder's own, so none compare"
    if calibration.method is None:
        return f"it ended as {calibration.state} before its candidate was compared"
    if calibration.held_out is not None and calibration.held_out.candidate is None:
        return "it has too few seconds to compare"
    return (
        "an older version made it, or they could not be written; calibrate again with "
        f"data={calibration.id}"
    )
