"""Recording and playing with progress: `volition record` and `volition replay`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
)

from clients.reports.tables import print_score, print_session
from decoder.errors import StreamError, VolitionError
from streaming.sessions import format as sessions

if TYPE_CHECKING:
    from streaming.recording.record import RecordSettings
    from streaming.recording.replay import ReplaySettings


def run_recording(
    console: Console,
    folder: Path,
    name: str | None,
    settings: RecordSettings,
    *,
    subject: str,
    seconds: float | None,
) -> Path:
    """Record for `seconds` or until Ctrl-C, with a progress bar, and write the session."""
    from streaming.recording.record import Recorder
    from streaming.signals import stop_on_signal

    name = name or time.strftime("%Y-%m-%d_%H%M%S")
    recorder = Recorder(folder, name, settings, subject=subject)
    _point_at_unfinished(console, folder)
    columns = (
        TextColumn("recording {task.fields[name]}", style="bold", markup=False), BarColumn(),
        TextColumn("{task.completed:.0f} s, {task.fields[spikes]:,} spikes"),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        with console.status("looking for streams…"):
            recorder.find_streams()  # Ctrl-C ends the command: nothing is recorded yet
        with stop_on_signal(recorder):
            recorder.start()
            bar = progress.add_task("", total=seconds, name=name, spikes=0)
            with _pointing_at(recorder.path, folder), recorder:
                recorder.run(
                    seconds,
                    on_poll=lambda r: progress.update(
                        bar, completed=r.labelled_s, spikes=r.n_spikes
                    ),
                )
    with _pointing_at(recorder.path, folder):
        return session_of_recording(console, recorder.path, folder)


@contextmanager
def _pointing_at(recording: Path, folder: Path) -> Iterator[None]:
    """Add to an error the command that converts the recording so far to a session."""
    try:
        yield
    except VolitionError as error:
        raise type(error)(
            f"{error}. `volition import {recording} -o {folder}` converts it to a session"
        ) from error


def session_of_recording(console: Console, recording: Path, folder: Path) -> Path:
    """Convert a recording, complete or unfinished, to a session and print it."""
    from streaming.recording.raw import read_recording

    session = read_recording(recording)
    path = sessions.save(session, folder, overwrite=False)
    print_session(console, session, path)
    return path


def _point_at_unfinished(console: Console, folder: Path) -> None:
    """Print the unfinished recordings, with the command that converts them."""
    for recording in sorted(folder.glob("*.recording")):
        if not recording.with_suffix(".h5").exists():
            console.print(
                f"{recording} is unfinished: `volition import {recording} -o {folder}` "
                "converts it to a session",
                style="yellow",
            )


def play(console: Console, path: Path, settings: ReplaySettings) -> None:
    """Replay in this process until the end of the session or a signal."""
    from streaming.recording.replay import Replay
    from streaming.signals import stop_on_signal

    replay = Replay(sessions.load(path), settings)
    with stop_on_signal(replay):
        console.print(
            f"replaying {replay.session.session_id} ({settings.split}), "
            f"{replay.end - replay.start:.1f} s at speed {settings.speed:g}"
        )
        n_spikes = replay.play()
    console.print(f"sent {n_spikes} spikes")


def play_and_score(
    console: Console, path: Path, settings: ReplaySettings, address: str, *, as_json: bool
) -> None:
    """Replay in a child process and score the daemon's frames here.

    If either ends early, or on Ctrl-C, the frames received so far are scored, and
    StreamError is raised afterwards.
    """
    from clients.harness import live

    session = sessions.load(path)
    frames, problem = live.LiveFrames(), None
    try:
        live.collect(path, settings, address, into=frames)
    except (StreamError, KeyboardInterrupt) as error:
        if frames.mapping is None:
            raise
        problem = str(error) or "stopped by Ctrl-C"
    try:
        result = live.score(frames, session)
    except StreamError as error:
        raise StreamError(f"{problem}; {error}" if problem else str(error)) from error
    if as_json:
        print(json.dumps(result.as_dict(), indent=2))
    else:
        print_score(console, result)
    if problem:
        raise StreamError(f"the score covers only the part before this: {problem}")
