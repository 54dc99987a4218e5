"""A running calibration: collect labelled data, train on today's units, score, swap.

    collecting -> training -> [shadowing] -> promoting -> promoted | rejected | undecided | ready
                                             (or failed, cancelled, interrupted, at any point)

`decoder.gate` makes the decision: by labels, or without them for the method `align` if no movement
was recorded or the daemon made it. If it is undecided, the operator may activate the candidate with
`POST /v1/decoders/{id}/activate`. A request for the data of earlier calibrations starts with the
training; one with further data (`with_data`) adds them to what it has collected.

Collecting, training and shadowing are child processes (`streaming.wire.children`), so the
daemon decodes undisturbed. The data are in the calibration's folder.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from decoder.errors import SessionError, StreamError, VolitionError
from decoder.gate import Evidence, Unlabelled, decide, judge_unlabelled
from decoder.stopwatch import Stopwatch
from decoder.traces import TRACES
from server.calibration.bases import ALLOWED_S, base_of, check_base
from server.calibration.blocks import session_file, session_of
from server.calibration.scores import distances_of, live_doubts, scores_of
from server.problems import ConflictError, problem_of
from server.schemas import OWN, RUNNING, Calibration, State
from server.settings import ServerSettings, environment
from server.store.journal import Journal, JournalError, now
from server.store.registry import Entry, Registry
from server.supervision.daemon import SupervisedDaemon
from streaming.wire.children import Child

log = logging.getLogger("volition.server")

WAIT_FOR_STREAMS_S = 8.0  # on a busy machine LSL answers take seconds
SAVE_EVERY_S = 1.0
NO_SHADOW = "no shadow: it compares with movement that the daemon did not make, and there is none"
EARLIER = "earlier"  # folder of sessions made from recordings of other calibrations
StartChild = Callable[..., Child]


class Job:
    """One calibration, running in its own thread."""

    def __init__(
        self,
        calibration: Calibration,
        key: str | None,
        *,
        settings: ServerSettings,
        journal: Journal,
        supervisor: SupervisedDaemon,
        registry: Registry,
        get: Callable[[str], Calibration],
        who: str,
        resume: bool = False,
        start_child: StartChild = Child,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.calibration = calibration
        self._key, self._who, self._resume = key, who, resume
        self._settings, self._journal = settings, journal
        self._supervisor, self._registry, self._get = supervisor, registry, get
        self.folder = settings.calibrations / calibration.id
        self._start_child, self._on_end = start_child, on_end
        self._cancelled = threading.Event()
        self._is_decided = False  # too late to cancel
        self._children: list[Child] = []
        self._starting = threading.Lock()
        self._collector: Child | None = None
        self._saved_at = 0.0
        self._stopwatch: Stopwatch | None = None  # from the last sample on
        self._held_out = self._live = Evidence.none()
        self._unlabelled: Unlabelled | None = None
        self._thread = threading.Thread(target=self._run, name=calibration.id, daemon=True)

    @property
    def runs(self) -> bool:
        return self.calibration.state in RUNNING

    def check(self) -> None:
        """Raise ConflictError if the method can't be used with the base. Nothing has started."""
        check_base(self._registry, self.calibration.request, self._active())

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def finish(self, *, who: str) -> None:
        """Stop collecting and go on to training."""
        if self.calibration.state != "collecting" or self._collector is None:
            raise ConflictError(
                f"{self.calibration.id} is {self.calibration.state}; only a calibration that is "
                "collecting can be finished"
            )
        self._journal.note(who, "calibration", id=self.calibration.id, state="finish")
        self._collector.send(finish=True)

    def cancel(self, *, who: str) -> None:
        """Cancel it and wait for its end. Raises ConflictError if it ends by itself first.

        A cancelled calibration never promotes its candidate.
        """
        with self._starting:
            if self._is_decided:
                raise ConflictError(
                    f"{self.calibration.id} is {self.calibration.state}, too late to cancel; roll "
                    "back if you don't want its decoder"
                )
            self._who = who
            self._cancelled.set()
            for child in self._children:
                child.kill()
        self.wait()
        if self.calibration.state != "cancelled":
            raise ConflictError(f"{self.calibration.id} has just ended: {self.calibration.state}")

    def wait(self) -> None:
        """Wait until it has ended."""
        if self._thread.ident is not None:
            self._thread.join()

    def save(self) -> None:
        """Save its current state in the journal."""
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
            self._failed(
                SessionError(f"{self.folder}: can't be written ({error}); free some space")
            )
        except Exception as error:
            log.exception("calibration %s", self.calibration.id)
            self._failed(VolitionError(f"internal error: {error!r}; see the server's log"))
        finally:
            for child in self._children:
                child.stop()
            self._on_end()

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
        except JournalError as error:  # the calibration matters more than its record
            log.error("%s", error)

    def _child(self, module: str) -> Child:
        with self._starting:
            if self._cancelled.is_set():
                raise ConflictError("cancelled")
            child = self._start_child(
                module, log=self._settings.logs / f"{module}.log", env=environment()
            )
            self._children.append(child)
        return child

    def _calibrate(self) -> None:
        base = self._base()
        self.calibration.base = base.manifest.decoder_id
        self.calibration.before = self._active()
        trainer = self._child("training.calibration.worker")
        trainer.send(
            prepare=str(base.path.absolute()), method=self.calibration.request.method,
            threads=self._settings.trainer_threads,
        )  # fmt: skip
        sessions = self._collect(trainer)
        self._enter("training")
        self._learn(trainer, sessions, ALLOWED_S[base.manifest.family])
        if self.calibration.request.shadow and self._is_labelled:
            self._enter("shadowing")
            self._shadow()
        self._enter("promoting")
        self._decide()

    def _base(self) -> Entry:
        """The decoder that training starts from."""
        request = self.calibration.request
        return base_of(self._registry, request.method, request.base, self._active())

    @property
    def _needs_labels(self) -> bool:
        return self.calibration.request.method != "align"

    @property
    def _is_labelled(self) -> bool:
        """Whether labels can judge the candidate. `align` can be judged without them."""
        request = self.calibration.request
        blocks = [self.calibration, *map(self._get, request.earlier)]
        are_recorded = all(block.movement in (None, "recorded") for block in blocks)
        return self._needs_labels or (request.labels not in OWN and are_recorded)

    def _active(self) -> str | None:
        """The decoder in use, or the one that the next daemon will use."""
        status = self._supervisor.status
        return status.decoder if status else self._supervisor.wanted.active

    def _collect(self, trainer: Child) -> list[str]:
        """The files of the sessions to train on: earlier ones, and the one collected now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        earlier = [
            str(
                session_of(
                    self._settings, identity, self.folder / EARLIER, needs_labels=self._needs_labels
                )
            )
            for identity in self.calibration.request.earlier
        ]
        if self.calibration.request.data is None:
            return [*earlier, self._collected(trainer)]
        self._stopwatch = Stopwatch()
        return earlier

    def _collected(self, trainer: Child) -> str:
        """Collect, and return the session's file. An error in the trainer ends the collection."""
        request = self.calibration.request
        if self._resume and (complete := session_file(self._settings, self.calibration.id)):
            return str(complete)
        query, status = self._supervisor.wanted.input, self._supervisor.status
        decoded = status.stream if status is not None else None
        collector = self._child("server.calibration.collect")
        collector.send(
            folder=str(self.folder.absolute()),
            session=self.calibration.id,
            seconds=request.seconds,
            subject=request.subject,
            spikes_kind=query.kind,
            spikes=request.spikes or decoded or query.name,
            kinematics=request.kinematics,
            markers=request.markers,
            frames=self._settings.daemon.address,
            wait_s=WAIT_FOR_STREAMS_S,
            resume=self._resume,
            needs_labels=self._needs_labels,
        )
        self._collector = collector
        for message in collector.messages(silent_s=self._patience_s(request.seconds)):
            self.calibration.movement = message.get("movement")
            if "done" in message:
                self.calibration.phases_s |= message["phases_s"]
                return str(message["done"])
            self.calibration.collected_s = float(message["collected"])
            self.calibration.spikes = int(message["spikes"])
            self._stopwatch = Stopwatch()
            trainer.check()
            if time.monotonic() - self._saved_at > SAVE_EVERY_S:
                self.save()
        raise AssertionError("messages end with `done`, or raise")

    def _learn(self, trainer: Child, sessions: list[str], allowed_s: float) -> None:
        request = self.calibration.request
        decoder = self._active()
        active = self._registry.get(decoder).path if decoder else None
        self.calibration.before = decoder
        candidate = self.folder / "candidate.bundle"
        trainer.send(
            sessions=sessions,
            active=str(active.absolute()) if active else None,
            output=str(candidate.absolute()),
            method=request.method,
            labels=request.labels,
            labelled=self._is_labelled,
            allowed_s=request.allowed_s or allowed_s,
            seed=request.seed,
            excluded=sorted(self._supervisor.wanted.excluded),
            traces=str((self.folder / TRACES).absolute()),
        )
        data_s = self.calibration.collected_s + self.calibration.earlier_s
        silent_s = self._patience_s((request.allowed_s or allowed_s) + data_s)
        for message in trainer.messages(silent_s=silent_s, within_s=3 * silent_s):
            if "phase" in message:
                self.calibration.phase = str(message["phase"])
                self.calibration.share = float(message["share"])
            elif "made" in message:
                self._take(Path(message["made"]))
            elif "done" in message:
                made = message["done"]
                self.calibration.phases_s |= made["phases_s"]
                self._held_out = Evidence.from_lists(made["evidence"])
                self.calibration.held_out = scores_of(self._held_out)
                if (found := made.get("unlabelled")) is not None:
                    self._unlabelled = Unlabelled(**found)
                    self.calibration.held_out = None
                    self.calibration.distances = distances_of(self._unlabelled)
                self.calibration.method = made["method"]
                self.calibration.doubts = made["doubts"]
                self.calibration.notes = made["notes"]
                if request.shadow and not self._is_labelled:
                    self.calibration.notes.append(NO_SHADOW)

    def _take(self, made: Path) -> None:
        """Register the candidate, and load it into the daemon while it is still being compared.

        So an activation takes one tick. If loading fails, the activation tries again and reports.
        """
        stopwatch = Stopwatch()
        entry = self._registry.add(made)
        shutil.rmtree(made, ignore_errors=True)
        self.calibration.candidate = entry.manifest.decoder_id
        stopwatch.lap("registering")
        if self.calibration.request.promote == "auto":
            with contextlib.suppress(VolitionError):
                self._supervisor.load(entry.manifest.decoder_id)
            stopwatch.lap("loading in the daemon")
        self.calibration.phases_s |= stopwatch.phases_s

    def _shadow(self) -> None:
        status = self._supervisor.status
        if status is None or status.stream is None:
            raise ConflictError("no daemon is decoding a stream to compare on; start one first")
        request = self.calibration.request
        assert self.calibration.candidate is not None
        shadow = self._child("server.calibration.shadow")
        shadow.send(
            active=str(self._registry.get(status.decoder).path.absolute()),
            candidate=str(self._registry.get(self.calibration.candidate).path.absolute()),
            seconds=request.shadow_s,
            spikes=status.stream,
            spikes_kind=self._supervisor.wanted.input.kind,
            kinematics=request.kinematics,
            frames=self._settings.daemon.address,
            held_out=self._held_out.as_lists(),
            excluded=sorted(self._supervisor.wanted.excluded),
        )
        silent_s = self._patience_s(request.shadow_s)
        for message in shadow.messages(silent_s=silent_s, within_s=10 * silent_s):
            evidence = message.get("evidence") or message.get("done")
            if evidence is not None:
                self._live = Evidence.from_lists(evidence)
                self.calibration.live = scores_of(self._live)
        self.calibration.doubts += live_doubts(self._live, request.shadow_s)

    def _patience_s(self, work_s: float) -> float:
        """How long a child process with `work_s` of work may be silent on a busy machine."""
        return self._supervisor.timing.silent_s + work_s

    def _decide(self) -> None:
        """Promote the candidate if it is better and the request allows it."""
        calibration = self.calibration
        assert calibration.candidate is not None
        with self._starting:
            if self._cancelled.is_set():
                raise ConflictError("cancelled")
            self._is_decided = True
        if self._unlabelled is not None:
            verdict = judge_unlabelled(self._unlabelled, calibration.doubts)
        else:
            verdict = decide(self._held_out, self._live, calibration.doubts)
        calibration.verdict = verdict.why
        match verdict.answer:
            case "promote":
                state: State = self._promote() if calibration.request.promote == "auto" else "ready"
            case "reject":
                state = "rejected"
            case "undecided":
                state = "undecided"
        if self._stopwatch is not None:
            calibration.took_s = self._stopwatch.total_s
        self._enter(state)

    def _promote(self) -> State:
        """Activate the candidate, unless another decoder has been activated since."""
        calibration = self.calibration
        assert calibration.candidate is not None
        if self._active() != calibration.before:  # the candidate was not compared with this one
            calibration.verdict = f"{self._active()} was activated since; compare with it"
            return "ready"
        stopwatch = Stopwatch()
        self._supervisor.activate(calibration.candidate, who=f"{self._who}, {calibration.id}")
        stopwatch.lap("swapping")
        calibration.phases_s |= stopwatch.phases_s
        return "promoted"
