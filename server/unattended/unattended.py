"""Starts calibrations by itself, and freezes if somebody undoes one.

A thread looks at the server every `LOOK_EVERY_S`. When a calibration is due
(`server.unattended.due`), it starts an ordinary one by the name `UNATTENDED`. An operator's request
always comes first: `server.calibration.calibrations` cancels an unattended calibration for it.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from decoder.errors import VolitionError
from decoder.gate import CHANGED
from server.calibration.bases import check_base, check_shadow
from server.calibration.calibrations import UNATTENDED, Calibrations
from server.problems import ConflictError, NotFoundError
from server.schemas import RUNNING
from server.settings import ServerSettings
from server.store.journal import Journal, JournalError, now
from server.store.registry import Registry
from server.supervision.connection import SUPERVISOR
from server.supervision.daemon import SupervisedDaemon
from server.unattended.bodies import Doing, Kept, Swap, Unattended, UnattendedState
from server.unattended.due import HOLD_S, Due, Seen

log = logging.getLogger("volition.server")

LOOK_EVERY_S = 0.5
KEPT = "unattended"  # name in the journal
CHANGES_READ = 200  # of the journal at the start, for the last change of decoder by hand


class UnattendedCalibrations:
    """Recalibrates without being asked, from `start` until `stop`.

    look_every_s: interval of looks, s. hold_s: how long an alarm must last, s.
    """

    def __init__(
        self,
        settings: ServerSettings,
        journal: Journal,
        supervisor: SupervisedDaemon,
        registry: Registry,
        calibrations: Calibrations,
        *,
        look_every_s: float = LOOK_EVERY_S,
        hold_s: float = HOLD_S,
    ) -> None:
        self._journal, self._supervisor, self._registry = journal, supervisor, registry
        self._calibrations, self._given = calibrations, settings.unattended
        self._look_every_s, self._hold_s = look_every_s, hold_s
        self._lock, self._stop = threading.RLock(), threading.Event()
        self._kept = self._read()
        self._running: str | None = None  # id of the unattended calibration that is running
        self._active: str | None = None  # decoder at the last look
        self._why = self._problem = ""
        self._due = self._resumed()
        self._thread = threading.Thread(target=self._run, name="unattended", daemon=True)

    def start(self) -> None:
        """Start the thread, with the setting that the server was started with."""
        with self._lock:
            if self._given is not None and self._given != self._kept.given:
                settings = settings_of(self._given, self._kept.settings)
                self._kept.settings, self._kept.given = settings, self._given
                self._due = self._resumed()
                self._try_to_keep()
            promoted = self._kept.promoted
            self._active = promoted.candidate if promoted else self._supervisor.wanted.active
        self._thread.start()

    def stop(self) -> None:
        """Start nothing more; a running calibration goes on."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def state(self) -> UnattendedState:
        """What it does now, and why."""
        kept, due_s = self._kept, self._due.due_s()
        at = None if due_s is None else now() + timedelta(seconds=due_s - time.monotonic())
        doing: Doing = "off" if kept.settings.when == "off" else "waiting"
        if self._running is not None:
            doing = "calibrating"
        if kept.frozen is not None:
            doing, at = "frozen", None
        return UnattendedState(
            settings=kept.settings,
            state=doing,
            why=kept.frozen or self._why,
            next_due=at,
            rest_minutes=self._due.rest_s / 60.0,
            last=kept.last,
        )

    def summary(self) -> str:
        """One line for the status."""
        state = self.state()
        return f"{state.state}: {state.why}" if state.why and state.state != "off" else state.state

    def set(self, settings: Unattended, *, who: str) -> UnattendedState:
        """Change the settings; this ends a freeze. `off` cancels a running calibration.

        Raises ConflictError if the decoder in use can't be recalibrated in this way, and
        JournalError if the settings can't be written.
        """
        self._check(settings)
        with self._lock:
            kept = Kept(settings=settings, given=self._kept.given, last=self._kept.last)
            self._journal.remember(**{KEPT: kept.model_dump(mode="json")})
            self._kept, self._problem = kept, ""
            self._due = self._resumed()
            self._look_at_decoder()
            self._journal.note(who, KEPT, **settings.model_dump(mode="json"))
            if settings.when == "off":
                self._cancel(who)
        return self.state()

    def freeze(self, *, who: str, why: str | None = None) -> UnattendedState:
        """Start nothing more until the settings are changed, and cancel a running calibration.

        It is frozen even if JournalError is raised; then the next server may not know.
        """
        is_new = self._kept.frozen is None
        why = why or f"frozen by {who}"
        if is_new:
            self._kept.frozen = why  # at once: the lock may be held by a start
        with self._lock:
            if is_new:
                self._kept.frozen = why
            self._cancel(who)
            if is_new:
                self._keep()
                self._journal.note(who, KEPT, frozen=why)
        return self.state()

    def _check(self, settings: Unattended) -> None:
        check_shadow(settings.request)
        active, status = self._supervisor.wanted.active, self._supervisor.status
        if settings.when == "off" or active is None:
            return
        check_base(self._registry, settings.request, active)
        if settings.when == "alarm" and status is not None and status.distance_limit is None:
            raise ConflictError(
                f"{status.decoder} does not know its usual states, so it gives no alarm; use every "
                "with every_minutes, or calibrate a streaming decoder (possm) first"
            )

    def _run(self) -> None:
        while not self._stop.wait(self._look_every_s):
            try:
                self._look()
            except Exception as error:  # nothing in here may end the server
                self._failed(error)

    def _failed(self, error: Exception) -> None:
        """Log an error, and note it in the journal once."""
        problem = str(error) if isinstance(error, VolitionError) else repr(error)
        if problem == self._problem:
            return
        self._problem = problem
        log.error("unattended: %s", problem, exc_info=not isinstance(error, VolitionError))
        with suppress(JournalError):
            self._journal.note(UNATTENDED, KEPT, problem=problem)

    def _look(self) -> None:
        with self._lock:
            self._look_at_decoder()
            self._look_at_calibration()
            self._why = self._due.why_not(time.monotonic(), self._seen())
            if not self._why and self._kept.frozen is None:
                self._begin()

    def _seen(self) -> Seen:
        status = self._supervisor.status
        if status is None:
            return Seen(is_decoding=False, is_beyond=False, is_busy=False)
        distance, limit = status.distance, status.distance_limit
        if limit is not None and self._kept.settings.method == "align":
            limit *= CHANGED  # below, its candidate would not be promoted
        return Seen(
            is_decoding=status.state == "decoding" and self._supervisor.wanted.paused is None,
            is_beyond=distance is not None and limit is not None and distance > limit,
            is_busy=self._calibrations.running is not None,
        )

    def _begin(self) -> None:
        """Start a calibration. One that can't be started counts as not promoted."""
        self._journal.note(UNATTENDED, KEPT, starts=self._kept.settings.when)
        try:
            begun = self._calibrations.start(self._kept.settings.request, key=None, who=UNATTENDED)
        except VolitionError as error:
            self._ended(promoted=False)
            self._why = f"the last one could not start: {error}"
            raise
        self._running = self._kept.last = begun.id
        self._why, self._problem = f"{begun.id} is running", ""
        self._keep()

    def _look_at_calibration(self) -> None:
        if self._running is None:
            return
        try:
            calibration = self._calibrations.get(self._running)
        except NotFoundError:  # it was discarded
            self._running = None
            self._ended(promoted=False)
            return
        if calibration.state not in RUNNING:
            self._running = None
            self._ended(promoted=calibration.state == "promoted")

    def _ended(self, *, promoted: bool) -> None:
        self._due.ended(time.monotonic(), promoted=promoted)
        self._kept.rest_s = self._due.rest_s
        self._kept.rest_until = now() + timedelta(seconds=self._due.rest_s)
        self._try_to_keep()

    def _look_at_decoder(self) -> None:
        """Notice a change of decoder, by hand or by an unattended calibration."""
        running = self._calibrations.running
        if running is not None and running.state == "promoting":
            return  # it may still be refused
        before, self._active = self._active, self._supervisor.wanted.active
        if before in (None, self._active):
            return
        promoted = self._kept.promoted
        if promoted and (before, self._active) == (promoted.candidate, promoted.before):
            self._kept.promoted = None
            self.freeze(
                who=UNATTENDED,
                why=f"{promoted.before} was activated again in place of {promoted.candidate}, "
                "which an unattended calibration had promoted",
            )
        elif (own := self._own()) is not None and own.candidate == self._active:
            self._kept.promoted = own
            self._try_to_keep()
            return
        elif promoted is not None:
            self._kept.promoted = None
            self._try_to_keep()
        self._due.by_hand(time.monotonic())

    def _own(self) -> Swap | None:
        """What the last unattended calibration has promoted by itself, if anything."""
        with suppress(NotFoundError):
            last = self._calibrations.get(self._kept.last or "")
            if last.id in self._calibrations.promoted_by_hand:
                return None
            if last.state == "promoted" and last.candidate is not None:
                return Swap(candidate=last.candidate, before=last.before)
        return None

    def _cancel(self, who: str) -> None:
        if self._running is not None:
            with suppress(ConflictError, NotFoundError):  # it has ended
                self._calibrations.cancel(self._running, who=who)

    def _resumed(self) -> Due:
        """When the next is due by the settings that are kept, and the rest and the journal."""
        kept, now_s = self._kept, time.monotonic()
        rest_until_s = now_s
        if kept.rest_until is not None:
            left_s = (kept.rest_until - now()).total_seconds()
            rest_until_s += min(max(left_s, 0.0), kept.rest_s or 0.0)
        due = Due(
            kept.settings, now_s,
            hold_s=self._hold_s, rest_s=kept.rest_s, rest_until_s=rest_until_s,
        )  # fmt: skip
        for change in self._journal.changes(CHANGES_READ):
            is_ours = change["who"] == SUPERVISOR or change["who"].startswith(UNATTENDED)
            if change["what"] in ("activate", "rollback") and not is_ours:
                ago = datetime.now(UTC) - datetime.fromisoformat(change["at"])
                due.by_hand(now_s - max(0.0, ago.total_seconds()))
                break
        return due

    def _read(self) -> Kept:
        """What the journal keeps; if that can't be read, it is off."""
        document = self._journal.recall(KEPT)
        if document is None:
            return Kept()
        try:
            return Kept.model_validate(document, strict=False, extra="ignore")
        except (ValueError, RecursionError) as error:
            log.error("the journal's settings of unattended recalibration can't be read: %s", error)
            return Kept()

    def _keep(self) -> None:
        self._journal.remember(**{KEPT: self._kept.model_dump(mode="json")})

    def _try_to_keep(self) -> None:
        try:
            self._keep()
        except JournalError as error:
            log.error("%s", error)


def settings_of(text: str, before: Unattended) -> Unattended:
    """Settings from `off`, `alarm`, or a number of minutes; the others stay as before."""
    if text in ("off", "alarm"):
        return before.model_copy(update={"when": text})
    return before.model_copy(update={"when": "every", "every_minutes": float(text)})
