"""The blocks of labelled data on disk, one per calibration that collected, to learn from again.

A block is a recording, and the session made from it once it is complete. Both stay in the folder of
their calibration, whatever becomes of it; only `DELETE` removes them. So a block can be named even
if its calibration was cancelled, failed or was interrupted.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from decoder.errors import SessionError
from server.calibration.driven import before_filters, read_driving
from server.problems import ConflictError, NotFoundError
from server.schemas import ANY_SUBJECT, Calibration, CalibrationRequest, Movement
from server.settings import ServerSettings
from streaming.recording.raw import SUFFIX, read_recording
from streaming.sessions import format as sessions
from streaming.sessions.intervals import duration_s
from streaming.sessions.session import Session

MIN_SECONDS = 5.0
MIN_UNITS, MIN_SPIKES = 4, 20  # at least MIN_UNITS units need at least MIN_SPIKES spikes
MIN_SPEED_M_S = 0.005  # the 90th percentile of the calibration's speeds
MOSTLY = 0.5  # share of the samples that followed the daemon; above, the movement is its own


def named_in(
    request: CalibrationRequest,
    get: Callable[[str], Calibration],
    settings: ServerSettings,
) -> list[Calibration]:
    """The earlier calibrations that a request names, each with a block on disk.

    get: finds a calibration by its id; raises NotFoundError.
    Raises NotFoundError if one has no block, and ConflictError if one is named twice or lacks the
    labels that the method needs, they are of different subjects, or the request has both `data` and
    `with_data`.
    """
    ids = request.earlier
    if request.data is not None and request.with_data is not None:
        raise ConflictError(
            "both data and with_data are given; name all blocks in data to collect nothing, or in "
            "with_data to collect one more"
        )
    for identity in ids:
        if ids.count(identity) > 1:
            raise ConflictError(f"{identity} is named {ids.count(identity)} times; name it once")
    named = [get(identity) for identity in ids]
    for calibration in named:
        _check_has_block(calibration, settings)
        if calibration.movement == "none" and request.method != "align":
            raise ConflictError(
                f"{calibration.id} recorded no movement, which the method {request.method} needs; "
                "choose the method align, or leave it out"
            )
    subjects = {calibration.id: calibration.request.subject for calibration in named}
    if request.with_data or request.subject != ANY_SUBJECT:
        subjects["this request"] = request.subject
    if len(set(subjects.values())) > 1:
        of = ", ".join(f"{one} of {subject!r}" for one, subject in subjects.items())
        raise ConflictError(f"blocks of different subjects: {of}; name blocks of one subject")
    return named


def _check_has_block(calibration: Calibration, settings: ServerSettings) -> None:
    folder = settings.calibrations / calibration.id
    if _session(folder) is not None or _recording(folder) is not None:
        return
    sources = calibration.request.data
    if sources is not None:
        others = sources if isinstance(sources, str) else ", ".join(sources)
        why = f"collected no data of its own; it learned from {others}: name that instead"
    elif calibration.collected_s > 0:
        why = f"collected {calibration.collected_s:.0f} s, but {folder} has no data; leave it out"
    else:
        why = f"is {calibration.state} and collected no data; leave it out"
    raise NotFoundError(f"{calibration.id} {why}")


def session_file(settings: ServerSettings, identity: str) -> Path | None:
    """The session that a calibration collected; None if it is not complete."""
    return _session(settings.calibrations / identity)


def session_of(
    settings: ServerSettings, identity: str, folder: Path, *, needs_labels: bool = True
) -> Path:
    """The session of an earlier calibration; one made in `folder` if only its recording exists.

    (In the calibration's own folder, it would pass for a complete session when that is resumed.)
    Raises NotFoundError if there is neither, and SessionError if the recording can't be used.
    """
    own = settings.calibrations / identity
    if (path := _session(own)) is not None:
        return path
    if (recording := _recording(own)) is None:
        raise NotFoundError(f"{identity} has no data in {own}; leave it out")
    try:
        return saved(recording, folder, needs_labels=needs_labels)[0]
    except SessionError as error:
        raise SessionError(f"the data of {identity} can't be used: {error}") from error


def saved(recording: Path, folder: Path, *, needs_labels: bool = True) -> tuple[Path, Movement]:
    """Turn a recording into a session with the velocity before the filters, and save it.

    needs_labels: whether movement must have been recorded.
    Returns the session's file, and where its movement comes from.
    Raises SessionError if it has too little time, spikes or movement to train on.
    """
    session = read_recording(recording, cut=False, needs_kinematics=needs_labels)
    driving = read_driving(recording)
    own = driving.share_of(session.cursor_times, session.cursor_vel)
    session = before_filters(session, driving)
    check_calibration(session, needs_labels=needs_labels)
    folder.mkdir(parents=True, exist_ok=True)
    movement: Movement = "decoded" if own > MOSTLY else "recorded"
    if speed_of(session) < MIN_SPEED_M_S:
        movement = "none"
    return sessions.save(session, folder), movement


def speed_of(session: Session) -> float:
    """The 90th percentile of a session's speeds, m/s."""
    return float(np.percentile(np.linalg.norm(session.cursor_vel, axis=1), 90))


def check_calibration(session: Session, *, needs_labels: bool = True) -> None:
    """Raise SessionError if a session has too little time, spikes or movement to train on."""
    seconds = duration_s(session.domain)
    if seconds < MIN_SECONDS:
        raise SessionError(
            f"{seconds:.1f} s of {'labelled ' * needs_labels}data, expected at least "
            f"{MIN_SECONDS:g} s, better 40 s; collect longer"
        )
    n_active = int((np.bincount(session.spike_units) >= MIN_SPIKES).sum())
    if n_active < MIN_UNITS:
        raise SessionError(
            f"{n_active} of {session.n_units} units had at least {MIN_SPIKES} spikes in "
            f"{seconds:.0f} s, expected at least {MIN_UNITS}; check thresholds and the spike stream"
        )
    speed = speed_of(session)
    if needs_labels and speed < MIN_SPEED_M_S:
        raise SessionError(
            f"too little movement: the 90th percentile of speed is {speed:.4f} m/s, expected at "
            f"least {MIN_SPEED_M_S:g} m/s; move the cursor during the calibration, and check that "
            "the kinematics are in metres"
        )


def _session(folder: Path) -> Path | None:
    return next(folder.glob("*.h5"), None)


def _recording(folder: Path) -> Path | None:
    return next(folder.glob(f"*{SUFFIX}"), None)
