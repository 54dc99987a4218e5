"""Finds a stream, opens it, and opens it again when its sender comes back.

A sender goes in many ways: it says goodbye, is killed, loses its link or its power. Only the first
two are noticed by an inlet. So a stream from which nothing came for `SILENT_S` is looked for again:
another one of its name (a sender that was started again has another `uid`) takes its place, and
its own is opened once more, for a connection that was cut stays silent for ever.

Resolving and opening block for a second or more: they happen in a thread, never in a tick.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import pylsl

from decoder.errors import StreamError
from streaming.inlets.inlet import OPEN_TIMEOUT_S, Inlet
from streaming.inlets.search import Lookout, Query

log = logging.getLogger("volition.stream")

LOOK_S = 2.0  # a look at the network: peers are asked after half a second, and answer then
SILENT_S = 3.0
REOPEN_AT_MOST_S = 30.0  # a stream that is silent for long is opened again this often
RETRY_S, RETRY_AT_MOST_S = 1.0, 5.0  # after a problem
LIVE_S = 1.0  # how long several streams of one name have to send something
POLL_S = 0.05

AnInlet = TypeVar("AnInlet", bound=Inlet)
Open = Callable[[pylsl.StreamInfo], AnInlet]
Infos = list[pylsl.StreamInfo]


class Connector(Generic[AnInlet]):
    """Keeps one stream open for its owner, who calls `tend` again and again.

    Nothing that a stream or liblsl does is raised here: `problem` says it, and the search goes on.
    `query` may be changed at any time; what was found for another is closed.
    """

    def __init__(self, query: Query, open_inlet: Open[AnInlet]) -> None:
        self.problem: str | None = None
        self.is_opening = False  # one answers, and `tend` doesn't have it yet
        self._query = query
        self._open = open_inlet
        self._order = object()  # another one for each thing to look for
        self._found: tuple[object, AnInlet] | None = None
        self._looking = False
        self._silent: AnInlet | None = None  # what is to be replaced
        self._reopen_s = SILENT_S
        self._retry_s = RETRY_S
        self._left: list[AnInlet] = []
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def query(self) -> Query:
        """What is looked for."""
        return self._query

    @query.setter
    def query(self, query: Query) -> None:
        self._query = query
        self.forget_found()

    def forget_found(self) -> None:
        """What is looked for has changed."""
        self._order = object()

    def start(self) -> None:
        """Begin to look."""
        self._stop.clear()
        self._ask(None)

    def tend(self, inlet: AnInlet | None, now: float) -> AnInlet | None:
        """An inlet that is to take the place of `inlet`, once one has been opened; else None.

        inlet: what the owner reads, if anything. now: LSL clock, s. Never blocks. The owner gives
        the inlet that it no longer reads to `leave`.
        """
        if inlet is not None and inlet.heard_at > inlet.opened_at:
            self._reopen_s = SILENT_S
        if inlet is None or now - inlet.heard_at > SILENT_S:
            self._ask(inlet)
        if self._found is None:
            return None
        (order, found), self._found = self._found, None
        if order is self._order and (inlet is None or inlet.heard_at < found.opened_at):
            if inlet is not None and inlet.uid == found.uid:
                self._reopen_s = min(2 * self._reopen_s, REOPEN_AT_MOST_S)
            return found
        self.leave(found)
        if inlet is None:
            self._ask(None)
        return None

    def leave(self, inlet: AnInlet) -> None:
        """Close an inlet, in the thread."""
        self._left.append(inlet)
        self._go()

    def stop(self) -> None:
        """End the search, close what is left."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=2 * OPEN_TIMEOUT_S)
        self._close_left()
        if self._found is not None:
            self._found[1].close()

    def _ask(self, silent: AnInlet | None) -> None:
        """Have a stream looked for, in place of `silent` if there is one."""
        if self._found is not None or (self._looking and self._silent is silent):
            return
        self._silent, self._looking = silent, True
        self._go()

    def _go(self) -> None:
        self._wake.set()
        if self._thread is not None and self._thread.is_alive():
            return
        self._thread = threading.Thread(target=self._run, name="lsl-connector", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no thread is to be had now; the next call tries again
            self._thread, self._looking = None, False
            self.problem = f"can't look for the stream: {error}"

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            self._wake.clear()
            self._close_left()
            while self._looking and not self._stop.is_set():
                self._look()
                self._close_left()

    def _look(self) -> None:
        order, silent = self._order, self._silent
        problem, found = self._tried(order, silent)
        if problem is not None:
            self.problem = problem
            self.is_opening = False
            self._stop.wait(self._retry_s)
            self._retry_s = min(2 * self._retry_s, RETRY_AT_MOST_S)
            return
        if found is not None:
            self._retry_s = RETRY_S
            self.problem = None
            self._found = order, found
        self.is_opening = False
        if found is not None or (silent is not None and silent is self._silent):
            self._looking = False

    def _tried(self, order: object, silent: AnInlet | None) -> tuple[str | None, AnInlet | None]:
        """What is wrong, if anything, and the stream, opened."""
        try:
            return None, self._find(order, silent)
        except StreamError as error:
            return str(error), None
        except Exception as error:  # whatever it was: it is said, and tried again
            problem = f"can't open {self._query}: {error!r}"
            log.warning("%s", problem)
            return problem, None

    def _find(self, order: object, silent: AnInlet | None) -> AnInlet | None:
        """The stream, opened; None once it is no longer wanted."""
        since = silent.heard_at if silent is not None else 0.0

        def wanted() -> bool:
            heard = silent is not None and silent.heard_at > since
            return not (self._stop.is_set() or heard) and (order, silent) == (
                self._order,
                self._silent,
            )

        def candidates() -> Infos:
            seen = lookout.seen()
            return seen if silent is None else self._worth_opening(seen, silent)

        with Lookout(self._query) as lookout:
            while wanted():
                lookout.wait(LOOK_S, self._stop)
                if candidates():
                    self.is_opening = True
                    return choose(self._query, self._open, candidates, self._stop)
                if silent is None:
                    self.problem = self._garbled(lookout)
                self._stop.wait(POLL_S)
        return None

    def _garbled(self, lookout: Lookout) -> str | None:
        if (said := lookout.garbled) is None:
            return None
        return f"a stream answers to {self._query} that can't be read: {said}; check its sender"

    def _close_left(self) -> None:
        while self._left:
            self._left.pop().close()

    def _worth_opening(self, found: Infos, silent: AnInlet) -> Infos:
        """What may take the place of a silent stream: others of its name, and itself now and then.

        Another name would be another stream, while its own still answers.
        """
        if not found:
            self._reopen_s = SILENT_S  # away: opened at once when it is back
        if any(info.uid() == silent.uid for info in found):
            found = [info for info in found if info.name() == silent.name]
        is_due = pylsl.local_clock() - silent.heard_at > self._reopen_s
        return found if is_due or any(info.uid() != silent.uid for info in found) else []


def open_stream(query: Query, open_inlet: Open[AnInlet], timeout_s: float) -> AnInlet | None:
    """The one stream that matches, opened; None if none answers within `timeout_s`.

    The look takes `LOOK_S` at least, if need be: peers are not asked at once.
    Raises StreamError if what answers can't be opened, or if several do and it's not clear which.
    """
    try:
        with Lookout(query) as lookout:
            found = lookout.wait(max(timeout_s, LOOK_S))
            return choose(query, open_inlet, lookout.seen, threading.Event()) if found else None
    except RuntimeError as error:  # liblsl's: no more sockets, for one
        raise StreamError(f"can't look for a stream of {query}: {error}") from error


def choose(
    query: Query, open_inlet: Open[AnInlet], candidates: Callable[[], Infos], stop: threading.Event
) -> AnInlet:
    """The one of the streams that can be read, opened.

    candidates: gives those that answer by now; opening takes a second, in which more may.

    Streams that can't be (a device's own of this type) don't count. Of several with one name, the
    only one that sends is taken: a leftover of a sender that crashed still answers.
    Raises StreamError.
    """
    opened: dict[str, AnInlet] = {}
    infos: dict[str, pylsl.StreamInfo] = {}
    problems: list[str] = []  # errors would keep their frames, and so what could not be opened
    while new := [info for info in query.best(candidates()) if info.uid() not in infos]:
        for info in new:
            infos[info.uid()] = info
            try:
                opened[info.uid()] = open_inlet(info)
            except StreamError as error:
                problems.append(str(error))
            except Exception as error:  # descriptions may hold anything
                problems.append(f"can't read stream {info.name()!r}: {error!r}")
    if not opened:
        raise StreamError(problems[0] if problems else f"the stream of {query} went away")
    taken: AnInlet | None = None
    try:
        taken = _the_one(query, opened, infos, stop)
    finally:
        for inlet in opened.values():
            if inlet is not taken:
                inlet.close()
    return taken


def _the_one(
    query: Query,
    opened: dict[str, AnInlet],
    infos: dict[str, pylsl.StreamInfo],
    stop: threading.Event,
) -> AnInlet:
    if len(opened) == 1:
        return next(iter(opened.values()))
    refused = query.refuse([infos[uid] for uid in opened])
    if len({inlet.name for inlet in opened.values()}) > 1:
        raise refused
    live = _senders(list(opened.values()), stop)
    if not live:
        raise StreamError(f"{refused}; none of them sends now")
    if len(live) > 1:
        raise refused
    return live[0]


def _senders(inlets: Sequence[AnInlet], stop: threading.Event) -> list[AnInlet]:
    """Those that send within `LIVE_S`."""
    for _ in range(int(LIVE_S / POLL_S)):
        if stop.wait(POLL_S):
            break
    return [inlet for inlet in inlets if inlet.has_samples]


class Source(Generic[AnInlet]):
    """A stream that is read for long, whatever its sender does meanwhile.

    n_opened: how often it was opened; who reads it may note a gap when that changes.
    """

    def __init__(self, query: Query, open_inlet: Open[AnInlet]) -> None:
        self.inlet: AnInlet | None = None
        self.n_opened = 0
        self._connector = Connector(query, open_inlet)
        self._why = ""
        self._connector.start()

    @property
    def query(self) -> Query:
        """What is looked for."""
        return self._connector.query

    @property
    def problem(self) -> str | None:
        """Why it isn't read, if something is wrong."""
        return self._connector.problem or self._why or None

    @property
    def is_opening(self) -> bool:
        """Whether a stream answers, and is being opened."""
        return self._connector.is_opening

    def tend(self) -> AnInlet | None:
        """The open stream; None while there is none. Never blocks."""
        opened = self._connector.tend(self.inlet, pylsl.local_clock())
        if opened is not None:
            self.lose("")
            self.inlet = opened
            self.n_opened += 1
        return self.inlet

    def lose(self, why: str) -> None:
        """Leave the open stream, and look for it again."""
        self._why = why
        if self.inlet is not None:
            self._connector.leave(self.inlet)
            self.inlet = None

    def wait(self, timeout_s: float) -> AnInlet | None:
        """The open stream, as soon as it is; None if it isn't within `timeout_s`."""
        deadline = pylsl.local_clock() + timeout_s
        while self.tend() is None and pylsl.local_clock() < deadline:
            time.sleep(POLL_S)
        return self.inlet

    def close(self) -> None:
        """Close everything."""
        self._connector.stop()
        if self.inlet is not None:
            self.inlet.close()
            self.inlet = None
