"""Recalibration: collect labelled data, learn today's units, score, swap; one at a time.

    collecting -> training -> [shadowing] -> promoting -> promoted | rejected | ready
                                             (or failed, cancelled, interrupted, at any point)

The daemon decodes on, undisturbed: collecting, learning and shadowing are processes of their own
(`server.children`). A calibration's folder has its data; a server that finds one unfinished in its
journal lists it as `interrupted`, and it can be resumed or discarded.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
import uuid

from decoder.errors import SessionError, StreamError, VolitionError
from server.children import Child
from server.daemon import Supervisor
from server.journal import Journal, JournalError, now
from server.problems import ConflictError, NotFoundError, problem_of
from server.registry import Entry, Registry
from server.schemas import RUNNING, Calibration, CalibrationRequest, Scores, State
from server.settings import ServerSettings

log = logging.getLogger("volition.server")

WAIT_FOR_STREAMS_S = 3.0
SAVE_EVERY_S = 1.0
CUT_SHORT: tuple[State, ...] = ("interrupted", "failed", "cancelled")
LEAST_R2 = 0.1  # below it a decoder is lost: shuffled labels give about 0
# Seconds of learning that `auto` may take where nobody says: what lets a new decoder take over
# within 10 s (30 s for windows) of the last sample on two cores. Measured: docs/RECALIBRATION.md.
ALLOWED_S = {"possm": 6.0, "poyo": 20.0}


class Job:
    """A calibration that runs, in a thread of its own."""

    def __init__(
        self,
        calibration: Calibration,
        key: str | None,
        *,
        settings: ServerSettings,
        journal: Journal,
        supervisor: Supervisor,
        registry: Registry,
        who: str,
        resume: bool = False,
    ) -> None:
        self.calibration = calibration
        self._key, self._who, self._resume = key, who, resume
        self._settings, self._journal = settings, journal
        self._supervisor, self._registry = supervisor, registry
        self.folder = settings.calibrations / calibration.id
        self._cancelled = threading.Event()
        self._children: list[Child] = []
        self._starting = threading.Lock()
        self._collector: Child | None = None
        self._saved_at = 0.0
        self._collected_at = 0.0
        self._thread = threading.Thread(target=self._run, name=calibration.id, daemon=True)

    @property
    def runs(self) -> bool:
        return self.calibration.state in RUNNING

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def finish(self, *, who: str) -> None:
        """Collect no more; go on with what is there."""
        if self.calibration.state != "collecting" or self._collector is None:
            raise ConflictError(
                f"{self.calibration.id} is {self.calibration.state}; only a calibration that "
                "collects can be finished"
            )
        self._journal.note(who, "calibration", id=self.calibration.id, state="finish")
        self._collector.tell(finish=True)

    def cancel(self, *, who: str) -> None:
        """End it, whatever it does but a swap that has begun, and wait until it has."""
        self._who = who
        self._cancelled.set()
        with self._starting:
            for child in self._children:
                child.kill()
        if self._thread.ident is not None:
            self._thread.join()

    def save(self) -> None:
        """Into the journal, as it stands."""
        self._saved_at = time.monotonic()
        self._journal.save_calibration(
            self.calibration.id, self._key, self.calibration.model_dump_json()
        )

    def _run(self) -> None:
        try:
            self._calibrate()
        except VolitionError as error:
            self._failed(error)
        except OSError as error:
            self._failed(SessionError(f"{self.folder}: can't be written ({error}); make room"))
        except Exception as error:
            log.exception("calibration %s", self.calibration.id)
            self._failed(VolitionError(f"a fault of ours: {error!r}"))
        finally:
            for child in self._children:
                child.stop()

    def _failed(self, error: VolitionError) -> None:
        if self._cancelled.is_set():
            self._enter("cancelled")
            return
        self.calibration.problem = problem_of(error)
        lost = self.calibration.state == "collecting" and isinstance(error, StreamError)
        self._enter("interrupted" if lost and self.calibration.collected_s > 0 else "failed")

    def _enter(self, state: State) -> None:
        if state not in RUNNING:
            self.calibration.ended = now()
        self.calibration.state = state
        try:
            self.save()
            self._journal.note(self._who, "calibration", id=self.calibration.id, state=state)
        except JournalError as error:  # what was collected and learned counts, not the record
            log.error("%s", error)

    def _child(self, module: str) -> Child:
        with self._starting:
            if self._cancelled.is_set():
                raise ConflictError("cancelled")
            child = Child(module, log=self._settings.logs / f"{module}.log")
            self._children.append(child)
        return child

    def _calibrate(self) -> None:
        base = self._base()
        self.calibration.base = base.manifest.decoder_id
        self.calibration.before = self._active()
        trainer = self._child("training.worker")
        trainer.tell(prepare=str(base.path.absolute()), threads=self._settings.trainer_threads)
        session = self._collect(trainer)
        self._enter("training")
        self._learn(trainer, session, ALLOWED_S[base.manifest.family])
        if self.calibration.request.shadow:
            self._enter("shadowing")
            self._shadow()
        self._enter("promoting")
        self._decide()

    def _base(self) -> Entry:
        """The decoder that learning begins from."""
        asked = self.calibration.request.base
        entry = self._pretrained() if asked is None else self._registry.get(asked)
        if entry.manifest.family not in ALLOWED_S:
            raise ConflictError(
                f"{entry.manifest.decoder_id} is a {entry.manifest.family} decoder, which nothing "
                f"can be learned from; name a base of family {' or '.join(ALLOWED_S)}"
            )
        return entry

    def _pretrained(self) -> Entry:
        """What was pretrained and the active decoder came from, no recalibration of it.

        Where that is not in the registry, the recalibration: it has all weights too.
        """
        active = self._active()
        if active is None:
            raise ConflictError("there is no decoder to begin from; register one, or name a base")
        entry = self._registry.get(active)
        base = entry.manifest.provenance.get("base")
        if base is None:
            return entry
        try:
            return self._registry.get(str(base))
        except NotFoundError:
            return entry

    def _active(self) -> str | None:
        """The decoder in use, or that will be when a daemon runs again."""
        status = self._supervisor.status
        return status.decoder if status else self._supervisor.wanted.active

    def _collect(self, trainer: Child) -> str:
        """Returns the session's file. A trainer that can't work ends it at once."""
        request = self.calibration.request
        if (whole := list(self.folder.glob("*.h5"))) and self._resume:
            return str(whole[0])
        self.folder.mkdir(parents=True, exist_ok=True)
        query, status = self._supervisor.wanted.input, self._supervisor.status
        decoded = status.stream if status is not None else None
        collector = self._child("server.collect")
        collector.tell(
            folder=str(self.folder.absolute()),
            session=self.calibration.id,
            seconds=request.seconds,
            subject=request.subject,
            spikes_kind=query.kind,
            spikes=request.spikes or decoded or query.name,
            kinematics=request.kinematics,
            markers=request.markers,
            wait_s=WAIT_FOR_STREAMS_S,
            resume=self._resume,
        )
        self._collector = collector
        for message in collector.messages():
            if "done" in message:
                return str(message["done"])
            self.calibration.collected_s = float(message["collected"])
            self.calibration.spikes = int(message["spikes"])
            self._collected_at = time.monotonic()
            trainer.check()
            if time.monotonic() - self._saved_at > SAVE_EVERY_S:
                self.save()
        raise AssertionError("messages end with `done`, or raise")

    def _learn(self, trainer: Child, session: str, allowed_s: float) -> None:
        request = self.calibration.request
        decoder = self._active()
        active = self._registry.get(decoder).path if decoder else None
        self.calibration.before = decoder
        candidate = self.folder / "candidate.bundle"
        trainer.tell(
            session=session,
            active=str(active.absolute()) if active else None,
            output=str(candidate.absolute()),
            method=request.method,
            labels=request.labels,
            allowed_s=request.allowed_s or allowed_s,
            seed=request.seed,
        )
        for message in trainer.messages():
            if "phase" in message:
                self.calibration.phase = str(message["phase"])
                self.calibration.share = float(message["share"])
            elif "done" in message:
                made = message["done"]
                self.calibration.held_out = Scores(**made["scores"])
                self.calibration.method = made["method"]
        entry = self._registry.add(candidate)
        shutil.rmtree(candidate, ignore_errors=True)
        self.calibration.candidate = entry.manifest.decoder_id

    def _shadow(self) -> None:
        status = self._supervisor.status
        if status is None or status.stream is None:
            raise ConflictError("no daemon decodes a stream; nothing to decode beside")
        request = self.calibration.request
        assert self.calibration.candidate is not None
        shadow = self._child("server.shadow")
        shadow.tell(
            active=str(self._registry.get(status.decoder).path.absolute()),
            candidate=str(self._registry.get(self.calibration.candidate).path.absolute()),
            seconds=request.shadow_s,
            spikes=status.stream,
            kinematics=request.kinematics,
        )
        for message in shadow.messages():
            scores = message.get("scores") or message["done"]
            self.calibration.live = Scores(**scores)

    def _decide(self) -> None:
        """Promote the candidate if it is better, and if it is for us to do so."""
        calibration, promote = self.calibration, self.calibration.request.promote
        assert calibration.candidate is not None
        against = doubts(calibration.held_out, calibration.live)
        state: State = "rejected" if against else "ready"
        calibration.verdict = "; ".join(against)
        if not against and promote == "auto":
            if self._active() != calibration.before:  # it was never compared with this one
                calibration.verdict = f"{self._active()} was activated meanwhile; compare with it"
            elif self._cancelled.is_set():
                raise ConflictError("cancelled")
            else:
                who = f"{self._who}, {calibration.id}"
                self._supervisor.activate(calibration.candidate, who=who)
                state = "promoted"
        if self._collected_at:
            calibration.took_s = time.monotonic() - self._collected_at
        self._enter(state)


def doubts(held_out: Scores | None, live: Scores | None) -> list[str]:
    """What speaks against a candidate. Better than a decoder that is lost isn't good enough."""
    against = []
    for where, scores in (("the held-out fifth", held_out), ("the live stream", live)):
        if scores is None:
            continue
        if scores.candidate is None or not scores.candidate >= LEAST_R2:  # NaN isn't either
            against.append(
                f"R² {_text(scores.candidate)} on {where}, expected {LEAST_R2:g} or more: spikes "
                "and labels have little to do with each other: check both streams, collect longer"
            )
        elif scores.active is not None and not scores.candidate > scores.active:
            against.append(
                f"R² {_text(scores.candidate)} on {where}, the active decoder has "
                f"{_text(scores.active)}"
            )
    return against


def _text(score: float | None) -> str:
    return "unknown" if score is None else f"{score:.3f}"


class Calibrations:
    """All calibrations, of which one at most runs."""

    def __init__(
        self,
        settings: ServerSettings,
        journal: Journal,
        supervisor: Supervisor,
        registry: Registry,
    ) -> None:
        self._parts = {
            "settings": settings, "journal": journal, "supervisor": supervisor,
            "registry": registry,
        }  # fmt: skip
        self._settings, self._journal = settings, journal
        self._registry = registry
        self._lock = threading.Lock()
        self._known: dict[str, Calibration] = {}
        self._keys: dict[str, str] = {}
        self._job: Job | None = None
        for key, document in journal.calibrations():
            self._restore(key, Calibration.model_validate_json(document))

    def _restore(self, key: str | None, calibration: Calibration) -> None:
        """Of an earlier server: what ran then was interrupted."""
        if calibration.state in RUNNING:
            calibration.state = "interrupted"
            self._journal.save_calibration(calibration.id, key, calibration.model_dump_json())
            self._journal.note("server", "calibration", id=calibration.id, state="interrupted")
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
        NotFoundError where the base isn't registered.
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
            has_data = (self._settings.calibrations / identity).is_dir()
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
            job.cancel(who="server")
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
