"""Plays a session in a child process and scores the frames of a daemon that decodes it.

Frames are received over ZeroMQ. At the end they are compared with the recorded kinematics at the
decoded times. Only `valid` frames count, and only where the whole window
lies inside the played domain. This module does not depend on the decoder.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from clients.subscriber import CursorSubscriber, StatusSubscriber
from decoder.arrays import Floats
from decoder.errors import StreamError, TrainingError, VolitionError
from streaming.recording.replay import Mapping, ReplaySettings
from streaming.sessions.intervals import within
from streaming.sessions.session import Session
from streaming.wire import messages as wire

AFTERWARDS_S = 0.3  # for the last frames to arrive after the replay ends
SILENCE_S = 10.0  # without a frame for this long, there is no daemon


@dataclass
class LiveFrames:
    """Frames, and their arrival times on the LSL clock, s."""

    frames: list[wire.CursorFrame] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)
    n_gaps: int = 0
    n_missed: int = 0
    mapping: Mapping | None = None
    status: wire.Status | None = None


@dataclass(frozen=True, kw_only=True)
class LiveScore:
    """The score of a replay. R² is causal: nothing after the window's end was used.

    ridge_…: ridge on the part of the test domain that was played; None if none was.
    """

    r2_x: float
    r2_y: float
    r2_mean: float
    ridge_r2_x: float | None
    ridge_r2_y: float | None
    ridge_r2_mean: float | None
    frames: int
    valid_frames: int
    scored_frames: int
    gaps: int
    missed_frames: int
    ticks: int
    late_ticks: int
    late_share: float
    arrival_ms: dict[str, float]
    states: dict[str, int]
    decoder: str
    session: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@contextmanager
def playing(
    path: Path, settings: ReplaySettings
) -> Iterator[tuple[Connection, multiprocessing.process.BaseProcess]]:
    """Run a replay process. Its connection sends a `Mapping`, then None or an error text."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_play, args=(path, settings, theirs), daemon=True)
    with _ctrl_c_ignored():
        process.start()
    theirs.close()
    try:
        yield ours, process
    finally:
        process.terminate()
        process.join(timeout=5.0)


@contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    """Make a child ignore Ctrl-C while it imports; this process ends it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _play(path: Path, settings: ReplaySettings, connection: Connection) -> None:
    """The replay process."""
    from streaming.recording.replay import Replay
    from streaming.sessions import format as sessions
    from streaming.signals import stop_on_signal

    with suppress(BrokenPipeError):  # the process that waits for the replay has ended
        try:
            replay = Replay(sessions.load(path), settings)
            with stop_on_signal(replay):
                replay.play(on_start=connection.send)
        except VolitionError as error:
            connection.send(str(error))
            sys.exit(1)
        connection.send(None)


def collect(
    path: Path,
    settings: ReplaySettings,
    address: str,
    on_frame: Callable[[wire.CursorFrame, LiveFrames], None] = lambda frame, live: None,
    *,
    into: LiveFrames | None = None,
) -> LiveFrames:
    """Play a session to its end and collect the daemon's frames.

    into: the object to collect into, which keeps its frames after an error.
    Raises StreamError if no daemon publishes on `address`, or if the replay fails.
    """
    live = LiveFrames() if into is None else into
    status = StatusSubscriber(address)
    try:
        with (
            CursorSubscriber(address, max_age_s=None) as cursor,
            playing(path, settings) as (events, process),
        ):
            ended_at = float("inf")
            while cursor.arrived is None or cursor.arrived < ended_at + AFTERWARDS_S:
                frame = cursor.receive(timeout_s=SILENCE_S)
                if frame is None:
                    raise StreamError(
                        f"no frame on {address} for {SILENCE_S:.0f} s: the daemon ended; its log "
                        "says why"
                        if live.frames
                        else f"no frame on {address} for {SILENCE_S:.0f} s; start `volition decode "
                        "BUNDLE`, or give its --address"
                    )
                assert cursor.arrived is not None
                live.frames.append(frame)
                live.arrived.append(cursor.arrived)
                on_frame(frame, live)
                live.status = status.receive() or live.status
                while ended_at == float("inf") and events.poll():
                    ended_at = _note(_next_event(events, process), live, cursor.arrived)
                live.n_gaps, live.n_missed = cursor.n_gaps, cursor.n_missed
    finally:
        status.close()
    return live


def _next_event(
    events: Connection, process: multiprocessing.process.BaseProcess
) -> Mapping | str | None:
    try:
        event: Mapping | str | None = events.recv()
    except EOFError:
        return f"the replay process ended with exit code {process.exitcode}"
    return event


def _note(event: Mapping | str | None, live: LiveFrames, now: float) -> float:
    """Handle an event of the replay. Returns the time of its end; infinity while it plays."""
    if isinstance(event, str):
        raise StreamError(event)
    if event is None:
        return now
    live.mapping = event
    return float("inf")


def score(live: LiveFrames, session: Session) -> LiveScore:
    """Compare live frames with the recording. Raises StreamError if too few were valid."""
    from training.baselines.ridge import r2

    if live.mapping is None:
        raise StreamError("the replay ended before it began to play")
    if live.status is None:
        raise StreamError("the daemon sent frames but no status; is it another version?")
    window_s = live.status.window_s
    times, decoded = decoded_velocity(live, session, window_s)
    during = [f for f in live.frames if f.window_end >= live.mapping.lsl_start]
    if len(times) < 10:
        seen = Counter(frame.state for frame in during)
        raise StreamError(
            f"only {len(times)} valid frames during the replay (states: {dict(seen)}); "
            f"{live.status.detail}"
        )
    fit = r2(session.velocity_at(times), decoded)
    ridge_x, ridge_y, ridge_mean = _ridge_r2(session, float(times[0]), float(times[-1]))
    arrival = (np.array(live.arrived) - [f.window_end for f in live.frames]) * 1e3
    arrival = arrival[-len(during) :]
    p50, p95, p99, p999 = np.percentile(arrival, (50, 95, 99, 99.9))
    late, ticks = late_ticks(during)
    return LiveScore(
        r2_x=fit.r2_x,
        r2_y=fit.r2_y,
        r2_mean=fit.r2_mean,
        ridge_r2_x=ridge_x,
        ridge_r2_y=ridge_y,
        ridge_r2_mean=ridge_mean,
        frames=len(during),
        valid_frames=sum(frame.valid for frame in during),
        scored_frames=len(times),
        gaps=live.n_gaps,
        missed_frames=live.n_missed,
        ticks=ticks,
        late_ticks=late,
        late_share=late / max(ticks, 1),
        arrival_ms={"p50": p50, "p95": p95, "p99": p99, "p99.9": p999},
        states=dict(Counter(frame.state for frame in during)),
        decoder=during[-1].decoder,
        session=session.session_id,
    )


def _ridge_r2(
    session: Session, start: float, end: float
) -> tuple[float, float, float] | tuple[None, None, None]:
    """R² of x, y and their mean; None if too little of the test domain was played."""
    from training.baselines.ridge import ridge_score

    try:
        ridge = ridge_score(session, score_between=(start, end))
    except TrainingError:
        return None, None, None
    return ridge.r2_x, ridge.r2_y, ridge.r2_mean


def decoded_velocity(live: LiveFrames, session: Session, window_s: float) -> tuple[Floats, Floats]:
    """Recorded times (n,) and decoded velocities (n, 2) of the scored frames."""
    assert live.mapping is not None
    valid = [frame for frame in live.frames if frame.valid]
    times = live.mapping.to_recorded(np.array([frame.window_end for frame in valid]))
    velocity = np.array([frame.velocity for frame in valid]).reshape(-1, 2)
    played = np.array([[live.mapping.recorded_start, live.mapping.recorded_end]])
    counts = within(times, session.domain, margin_s=window_s) & within(
        times, played, margin_s=window_s
    )
    return times[counts], velocity[counts]


def late_ticks(during: list[wire.CursorFrame]) -> tuple[int, int]:
    """Number of deadlines without a frame, and of all deadlines, from the window ends."""
    ends = np.array([frame.window_end for frame in during])
    steps = np.diff(ends)
    tick_s = float(np.median(steps))
    ticks = round(float(ends[-1] - ends[0]) / tick_s) + 1
    return ticks - len(ends), ticks
