"""Finds a stream, opens it, and opens it again when its sender returns.

A sender may close its stream, be killed, or lose its link or its power. An inlet notices only the
first two. So a stream that is silent for `SILENT_S` is searched for again. Another stream of its
name replaces it (a restarted sender has a new `uid`). If the same stream still answers, it is
opened once more: a connection that was cut stays silent forever.

Searching and opening block for a second or more, so they run in a thread, never in a tick.
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

LOOK_S = 2.0  # one search of the network: peers are asked only after half a second
SILENT_S = 3.0
REOPEN_AT_MOST_S = 30.0  # a stream that stays silent is opened again at this interval
RETRY_S, RETRY_AT_MOST_S = 1.0, 5.0  # first and longest delay after a problem
LIVE_S = 1.0  # how long several streams of one name have to send a sample
POLL_S = 0.05

AnInlet = TypeVar("AnInlet", bound=Inlet)
Open = Callable[[pylsl.StreamInfo], AnInlet]
Infos = list[pylsl.StreamInfo]


class Connector(Generic[AnInlet]):
    """Keeps one stream open for its owner, which calls `tend` regularly.

    Errors of streams and of liblsl are not raised: `problem` describes the latest, and the search
    goes on. `query` may be changed at any time; a stream found for the old query is closed.

    is_opening: whether a stream answers that `tend` has not returned yet.
    """

    def __init__(self, query: Query, open_inlet: Open[AnInlet]) -> None:
        self.problem: str | None = None
        self.is_opening = False
        self._query = query
        self._open = open_inlet
        self._order = object()  # identifies a search; a new object for each query
        self._found: tuple[object, AnInlet] | None = None
        self._looking = False
        self._silent: AnInlet | None = None  # the inlet to replace
        self._reopen_s = SILENT_S
        self._retry_s = RETRY_S
        self._left: list[AnInlet] = []
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def query(self) -> Query:
        """The stream to find."""
        return self._query

    @query.setter
    def query(self, query: Query) -> None:
        self._query = query
        self.forget_found()

    def forget_found(self) -> None:
        """Discard a stream that was found for an earlier query."""
        self._order = object()

    def start(self) -> None:
        """Start the search."""
        self._stop.clear()
        self._ask(None)

    def tend(self, inlet: AnInlet | None, now: float) -> AnInlet | None:
        """Returns a new inlet to read in place of `inlet`, once one is open; else None.

        inlet: the owner's current inlet, if any. now: LSL clock, s. Never blocks. The owner passes
        the replaced inlet to `leave`.
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
        """Close an inlet in the thread."""
        self._left.append(inlet)
        self._go()

    def stop(self) -> None:
        """End the search and close the remaining inlets."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=2 * OPEN_TIMEOUT_S)
        self._close_left()
        if self._found is not None:
            self._found[1].close()

    def _ask(self, silent: AnInlet | None) -> None:
        """Request a search for a stream, to replace `silent` if given."""
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
        except RuntimeError as error:  # out of threads; the next call tries again
            self._thread, self._looking = None, False
            self.problem = f"can't search for the stream: {error}"

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
        problem, found = self._try_to_find(order, silent)
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

    def _try_to_find(
        self, order: object, silent: AnInlet | None
    ) -> tuple[str | None, AnInlet | None]:
        """An error message or None, and the opened stream or None."""
        try:
            return None, self._find(order, silent)
        except StreamError as error:
            return str(error), None
        except Exception as error:  # any other error is reported, and the search goes on
            problem = f"can't open {self._query}: {error!r}"
            log.warning("%s", problem)
            return problem, None

    def _find(self, order: object, silent: AnInlet | None) -> AnInlet | None:
        """The opened stream; None if it is no longer wanted."""
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
        if (garbled := lookout.garbled) is None:
            return None
        return f"the answer of a stream to {self._query} can't be read: {garbled}; check its sender"

    def _close_left(self) -> None:
        while self._left:
            self._left.pop().close()

    def _worth_opening(self, found: Infos, silent: AnInlet) -> Infos:
        """The streams that may replace a silent one: others of its name, or itself when due.

        As long as the silent stream answers, a stream of another name can't replace it.
        """
        if not found:
            self._reopen_s = SILENT_S  # gone: opened at once when it is back
        if any(info.uid() == silent.uid for info in found):
            found = [info for info in found if info.name() == silent.name]
        is_due = pylsl.local_clock() - silent.heard_at > self._reopen_s
        return found if is_due or any(info.uid() != silent.uid for info in found) else []


def open_stream(query: Query, open_inlet: Open[AnInlet], timeout_s: float) -> AnInlet | None:
    """Opens the one matching stream; returns None if none answers within `timeout_s`.

    The search goes on for at least `LOOK_S`, because peers are not asked at once.
    Raises StreamError if the stream can't be opened, or if the choice between several is not clear.
    """
    try:
        with Lookout(query) as lookout:
            found = lookout.wait(max(timeout_s, LOOK_S))
            return choose(query, open_inlet, lookout.seen, threading.Event()) if found else None
    except RuntimeError as error:  # from liblsl, as when the process is out of sockets
        raise StreamError(f"can't search for a stream of {query}: {error}") from error


def choose(
    query: Query, open_inlet: Open[AnInlet], candidates: Callable[[], Infos], stop: threading.Event
) -> AnInlet:
    """Opens the one stream that can be read.

    candidates: returns the streams that have answered; more may answer while others are opened.

    Streams that can't be read, such as a device's own streams of this type, don't count. Of several
    streams with one name, the only one that sends is taken: a stream left over from a crashed
    sender still answers, but is silent.
    Raises StreamError if no stream can be read, or more than one.
    """
    opened: dict[str, AnInlet] = {}
    infos: dict[str, pylsl.StreamInfo] = {}
    problems: list[str] = []  # texts: exceptions would keep the failed inlets alive
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
        raise StreamError(problems[0] if problems else f"the stream of {query} is gone")
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
        raise StreamError(f"{refused}; none of them sends data")
    if len(live) > 1:
        raise refused
    return live[0]


def _senders(inlets: Sequence[AnInlet], stop: threading.Event) -> list[AnInlet]:
    """The inlets that receive samples within `LIVE_S`."""
    for _ in range(int(LIVE_S / POLL_S)):
        if stop.wait(POLL_S):
            break
    return [inlet for inlet in inlets if inlet.has_samples]


class Source(Generic[AnInlet]):
    """A stream that is opened again whenever its sender returns.

    n_opened: how often it was opened; a change means a gap in the data.
    """

    def __init__(self, query: Query, open_inlet: Open[AnInlet]) -> None:
        self.inlet: AnInlet | None = None
        self.n_opened = 0
        self._connector = Connector(query, open_inlet)
        self._why = ""
        self._connector.start()

    @property
    def query(self) -> Query:
        """The stream to find."""
        return self._connector.query

    @property
    def problem(self) -> str | None:
        """Why the stream isn't open, or None."""
        return self._connector.problem or self._why or None

    @property
    def is_opening(self) -> bool:
        """Whether a stream has answered and is being opened."""
        return self._connector.is_opening

    def tend(self) -> AnInlet | None:
        """The open inlet, or None. Never blocks."""
        opened = self._connector.tend(self.inlet, pylsl.local_clock())
        if opened is not None:
            self.lose("")
            self.inlet = opened
            self.n_opened += 1
        return self.inlet

    def lose(self, why: str) -> None:
        """Leave the open stream and search for it again. why: reported as the problem."""
        self._why = why
        if self.inlet is not None:
            self._connector.leave(self.inlet)
            self.inlet = None

    def wait(self, timeout_s: float) -> AnInlet | None:
        """Wait for an open inlet; returns None after `timeout_s`."""
        deadline = pylsl.local_clock() + timeout_s
        while self.tend() is None and pylsl.local_clock() < deadline:
            time.sleep(POLL_S)
        return self.inlet

    def close(self) -> None:
        """End the search and close the inlet."""
        self._connector.stop()
        if self.inlet is not None:
            self.inlet.close()
            self.inlet = None
