"""Replays a recorded session over LSL, with its original timing.

    volition replay SESSION --from test

There are three outlets: spikes (`Spikes`), kinematics (`Kinematics`) and markers (`Markers`), as
described in docs/STREAMS.md. Recorded time is mapped to LSL time once, at the start
(`lsl = start + (recorded - first) / speed`), so that the replay can't drift against the clock.
Events are sent every `CHUNK_S`, never before their time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pylsl

from decoder.arrays import Floats
from decoder.errors import SessionError, SettingsError
from streaming.recording import outlets
from streaming.recording.outlets import chunks, sleep_until
from streaming.sessions.intervals import intersect
from streaming.sessions.session import Session, Split

CHUNK_S = 0.002  # time between sends
CONSUMER_TIMEOUT_S = 60.0
LINGER_S = 0.3  # outlets stay open this long, until the last event has arrived
KINEMATICS_LABELS = ("pos_x", "pos_y", "vel_x", "vel_y")


@dataclass(frozen=True, kw_only=True)
class ReplaySettings:
    """Settings of a replay.

    split: part of the session to play. seconds: play only its first seconds.
    speed: recorded seconds per second. loop: start over at the end, forever.
    wait_for_consumer: wait for a consumer of the spikes before the first event.
    lead_s: time between that and the first event.
    name_prefix: prefix of the streams' names; empty for the session id.
    """

    split: Split = "all"
    seconds: float | None = None
    speed: float = 1.0
    loop: bool = False
    wait_for_consumer: bool = False
    lead_s: float = 1.5
    name_prefix: str = ""

    def __post_init__(self) -> None:
        if not self.speed > 0:
            raise SettingsError(f"speed {self.speed}; expected more than 0")
        if self.seconds is not None and not self.seconds > 0:
            raise SettingsError(f"seconds {self.seconds}; expected more than 0")


@dataclass(frozen=True, kw_only=True)
class Mapping:
    """Recorded time to LSL time: `lsl = lsl_start + (recorded - recorded_start) / speed`."""

    lsl_start: float
    recorded_start: float
    recorded_end: float
    speed: float

    def to_lsl(self, recorded: Floats) -> Floats:
        return np.asarray(self.lsl_start + (recorded - self.recorded_start) / self.speed)

    def to_recorded(self, lsl: Floats) -> Floats:
        return np.asarray(self.recorded_start + (lsl - self.lsl_start) * self.speed)


@dataclass(frozen=True, kw_only=True)
class _Track:
    """One stream's events: recorded times (n,), ascending, and a function that sends a slice."""

    times: Floats
    send: Callable[[slice, Floats], None]


def span(session: Session, settings: ReplaySettings) -> tuple[float, float]:
    """Start and end of the part to play, in recorded seconds."""
    intervals = session.intervals(settings.split)
    if len(intervals) == 0:
        raise SessionError(f"{session.session_id} has no {settings.split} domain")
    start, end = float(intervals[0, 0]), float(intervals[-1, 1])
    return start, end if settings.seconds is None else min(end, start + settings.seconds)


class Replay:
    """Outlets for one session; `play` sends the session."""

    def __init__(self, session: Session, settings: ReplaySettings) -> None:
        self.session, self.settings = session, settings
        self.start, self.end = span(session, settings)
        self.should_stop = False
        prefix = settings.name_prefix or session.session_id
        self.spikes = pylsl.StreamOutlet(spikes_info(session, prefix))
        self.kinematics = pylsl.StreamOutlet(kinematics_info(session, prefix))
        self.markers = pylsl.StreamOutlet(markers_info(session, prefix))
        self._tracks = (self._spike_track(), self._kinematics_track(), self._marker_track())

    def play(self, on_start: Callable[[Mapping], None] = lambda mapping: None) -> int:
        """Send the session once, or forever with `loop`. Returns the number of spikes sent.

        on_start: called with the mapping of times before the first event of each round.
        """
        if self.settings.wait_for_consumer:
            self._wait_for_consumer()
        n_spikes = 0
        begin = pylsl.local_clock() + self.settings.lead_s
        while not self.should_stop:
            mapping = Mapping(
                lsl_start=begin,
                recorded_start=self.start,
                recorded_end=self.end,
                speed=self.settings.speed,
            )
            on_start(mapping)
            n_spikes += self._play_once(mapping)
            if not self.settings.loop:
                break
            begin += (self.end - self.start) / self.settings.speed
        sleep_until(pylsl.local_clock() + LINGER_S)
        return n_spikes

    def _wait_for_consumer(self) -> None:
        deadline = pylsl.local_clock() + CONSUMER_TIMEOUT_S
        while not self.should_stop and not self.spikes.wait_for_consumers(0.2):
            if pylsl.local_clock() > deadline:
                raise SettingsError(
                    f"no consumer of the spikes within {CONSUMER_TIMEOUT_S:.0f} s; start "
                    "`volition decode BUNDLE`, or omit --wait"
                )

    def _play_once(self, mapping: Mapping) -> int:
        lsl_times = [mapping.to_lsl(track.times) for track in self._tracks]
        sent = [0] * len(self._tracks)
        end = float(mapping.to_lsl(np.array([self.end]))[0])
        due = mapping.lsl_start
        while not self.should_stop:
            sleep_until(due)
            now = pylsl.local_clock()
            for index, track in enumerate(self._tracks):
                stop = int(np.searchsorted(lsl_times[index], now, side="right"))
                for part in chunks(lsl_times[index], sent[index], stop):
                    track.send(part, lsl_times[index][part])
                sent[index] = stop
            if now >= end:
                break
            due = max(due + CHUNK_S, now)
        return sent[0]

    def _spike_track(self) -> _Track:
        part = self.session.spikes_between(self.start, self.end)
        units = self.session.spike_units[part]
        events = np.stack([units, np.zeros_like(units)], axis=1).astype(np.int32)
        outlet = self.spikes  # no reference to self: without a circle, its streams end with it

        def send(chunk: slice, stamps: Floats) -> None:
            outlet.push_chunk(
                events[chunk], stamps.tolist()
            )  # as a list: an array would count as one time stamp

        return _Track(times=self.session.spike_times[part], send=send)

    def _kinematics_track(self) -> _Track:
        times = self.session.cursor_times
        part = (times >= self.start) & (times < self.end)
        samples = np.concatenate(
            [self.session.cursor_pos[part], self.session.cursor_vel[part]], axis=1
        )
        outlet = self.kinematics

        def send(chunk: slice, stamps: Floats) -> None:
            outlet.push_chunk(samples[chunk], stamps.tolist())

        return _Track(times=times[part], send=send)

    def _marker_track(self) -> _Track:
        times, labels = _trial_markers(self.session, self.start, self.end)
        outlet = self.markers

        def send(chunk: slice, stamps: Floats) -> None:
            for label, stamp in zip(labels[chunk], stamps, strict=True):
                outlet.push_sample([label], float(stamp))

        return _Track(times=times, send=send)


def _trial_markers(session: Session, start: float, end: float) -> tuple[Floats, list[str]]:
    if session.trials is None:
        return np.empty(0), []
    inside = intersect(session.trials.intervals, start, end)
    events = [(float(t), f"trial_start {i}") for i, t in enumerate(inside[:, 0])]
    events += [(float(t), f"trial_end {i}") for i, t in enumerate(inside[:, 1])]
    events.sort(key=lambda event: event[0])
    return np.array([time for time, _ in events]), [label for _, label in events]


def spikes_info(session: Session, prefix: str) -> pylsl.StreamInfo:
    """Description of the spike stream. Unit `i` of the session is sent as channel `i`, unit 0."""
    name = f"{prefix}-spikes"
    return outlets.spikes_info(name, f"volition-replay-{name}", session.unit_ids)


def kinematics_info(session: Session, prefix: str) -> pylsl.StreamInfo:
    """Description of the kinematics stream."""
    rate_hz = 1.0 / float(np.median(np.diff(session.cursor_times)))
    name = f"{prefix}-kinematics"
    return outlets.kinematics_info(name, f"volition-replay-{name}", KINEMATICS_LABELS, rate_hz)


def markers_info(session: Session, prefix: str) -> pylsl.StreamInfo:
    """Description of the marker stream."""
    name = f"{prefix}-markers"
    return outlets.markers_info(name, f"volition-replay-{name}")
