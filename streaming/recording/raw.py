"""A recording on disk as `volition record` leaves it, whole or cut short, and the session it makes.

    NAME.recording/
      about.json        session, subject, date, stream names, unit ids (again whenever units come),
                        whether the kinematics named their unit, when a clock jumped
      spikes.bin        float64 time (LSL clock, s), int64 unit, a record a spike
      kinematics.bin    float64 time, then `streaming.columns.COLUMNS`, a record a sample
      markers.jsonl     time and text, a line a marker

Files are only ever appended to, so that what is killed leaves a recording. It doesn't know LSL.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from decoder.arrays import Floats
from decoder.errors import SessionError
from streaming.columns import COLUMNS, NO_UNIT, POSITION, TARGET, VELOCITY
from streaming.recording.markers import trials_of
from streaming.sessions.intervals import continuous_domain, with_domains, without_gaps
from streaming.sessions.kinematics import position_of, velocity_of
from streaming.sessions.plausible import judged
from streaming.sessions.session import Session, sorted_spikes
from streaming.sessions.stamps import in_order, spikes_on_line

SUFFIX = ".recording"
ABOUT, SPIKES_FILE, KINEMATICS_FILE, MARKERS_FILE = (
    "about.json",
    "spikes.bin",
    "kinematics.bin",
    "markers.jsonl",
)
UNSURE_S = 5.0  # a jump is noticed after two measurements of the clock, of 2 s each
SPIKE = np.dtype([("time", "<f8"), ("unit", "<i8")])
SAMPLE = np.dtype([("time", "<f8"), ("values", "<f8", (len(COLUMNS),))])

Records = np.ndarray[Any, np.dtype[np.void]]


def read_recording(
    path: Path | str,
    *,
    cut: bool = True,
    metres: float | None = None,
    sure_of_times: bool = False,
) -> Session:
    """A recording as a session; SessionError where too little is there, or clocks don't meet.

    cut: its domains 70/10/20; else each of them is the whole, as of a calibration.
    metres: in one unit of kinematics that named none. Left out, they are in m and m/s, and
        refused if no hand moves so.

    A last record that was cut short is left out. Units without a spike stay. Where only velocity
    was sent, position is its integral from (0, 0), so that no target can be placed beside it.
    """
    path = Path(path)
    about = about_of(path)
    notes: list[str] = []
    times, values = _kinematics(path, notes)
    values = values * _metres(path, about, metres, notes)
    pos, vel, targets = values[:, POSITION], values[:, VELOCITY], values[:, TARGET]
    has_position = bool(np.isfinite(pos).all())
    if not has_position:
        pos, targets = np.zeros_like(vel), np.full_like(targets, np.nan)
        notes.append("no position was sent; it is the integral of velocity")
    elif not np.isfinite(vel).all():
        vel = velocity_of(pos, times)
        notes.append("no velocity was sent; it is the gradient of position")
    spike_times, spike_units = _spikes(path, about, notes)
    domain = _sure(without_gaps(continuous_domain(times), times), about, notes)
    trials = trials_of(_markers(path), times, targets, metres=metres or 1.0, notes=notes)
    session = Session(
        session_id=about["session_id"],
        subject_id=about["subject_id"],
        recorded_at=_date(about.get("recorded_at"), notes),
        unit_ids=tuple(about["unit_ids"]),
        spike_times=spike_times,
        spike_units=spike_units,
        cursor_times=times,
        cursor_pos=pos,
        cursor_vel=vel,
        domain=domain,
        train_domain=domain,
        valid_domain=domain,
        test_domain=domain,
        trials=trials,
        source=f"recorded from {about.get('spikes')} and {about.get('kinematics')}",
        notes=tuple(notes),
    )
    sure_of_unit = names_unit(about) or metres is not None
    session = _inside(judged(session, sure_of_unit=sure_of_unit, sure_of_times=sure_of_times))
    if not has_position:  # after it was judged: an integral may wander further than a hand
        session = replace(session, cursor_pos=position_of(vel, times))
    return with_domains(session) if cut else session


def _metres(path: Path, about: dict[str, Any], metres: float | None, notes: list[str]) -> float:
    """Metres in one of the file's units."""
    if names_unit(about):
        if metres is not None:
            raise SessionError(
                f"{path}: its kinematics named their unit, and are in metres; leave --unit out"
            )
        return 1.0
    if metres is None:
        notes.append(NO_UNIT)
        return 1.0
    notes.append(f"no channel of the kinematics named a unit; taken as {metres:g} m, as asked")
    return metres


def _sure(domain: Floats, about: dict[str, Any], notes: list[str]) -> Floats:
    """The domain without the seconds before each jump of a clock, whose stamps are off by it."""
    jumps = [at for at in about.get("clock_jumps") or () if isinstance(at, float)]
    for at in jumps:
        cut = [(a, min(b, at - UNSURE_S)) for a, b in domain]
        cut += [(max(a, at), b) for a, b in domain]
        domain = np.array(sorted(part for part in cut if part[1] > part[0])).reshape(-1, 2)
    if jumps:
        notes.append(
            f"a sender's clock jumped {len(jumps)} times; {UNSURE_S:g} s before each were left out"
        )
    return domain


def _inside(session: Session) -> Session:
    """The session with the spikes in the kinematics' time span only."""
    part = session.spikes_between(session.cursor_times[0], session.cursor_times[-1])
    return replace(
        session, spike_times=session.spike_times[part], spike_units=session.spike_units[part]
    )


def _kinematics(path: Path, notes: list[str]) -> tuple[Floats, Floats]:
    """Times (n,), ascending, and values (n, 6) of the samples that can be used."""
    samples = read_records(path / KINEMATICS_FILE, SAMPLE)
    times, values = samples["time"], samples["values"]
    has_position = bool(np.isfinite(values[:, POSITION]).any())
    given = values[:, POSITION if has_position else VELOCITY]
    finite = np.isfinite(times) & np.isfinite(given).all(axis=1)
    if n_bad := int((~finite).sum()):
        notes.append(f"{n_bad} kinematics samples without numbers were left out")
    times, values = times[finite], values[finite]
    if len(times) < 2:
        raise SessionError(f"{path}: {len(times)} samples of kinematics; expected many more")
    if not has_position:
        values = values.copy()
        values[:, POSITION] = np.nan
    try:
        kept, times = in_order(times, notes)
    except SessionError as error:
        raise SessionError(f"{path}: {error}") from error
    return times, values[kept]


def _spikes(path: Path, about: dict[str, Any], notes: list[str]) -> tuple[Floats, Any]:
    spikes = read_records(path / SPIKES_FILE, SPIKE)
    n_units = len(about["unit_ids"])
    good = np.isfinite(spikes["time"]) & (spikes["unit"] >= 0) & (spikes["unit"] < n_units)
    if n_bad := int((~good).sum()):
        notes.append(f"{n_bad} spikes without a time or a unit were left out")
    spikes = spikes[good]
    spikes = spikes[spikes_on_line(spikes["time"], str(about.get("spikes")), notes)]
    times, units, _ = sorted_spikes(spikes["time"], spikes["unit"])
    return times, units


def _markers(path: Path) -> Iterator[tuple[float, str]]:
    """Times and texts; lines that a crash left unfinished are left out."""
    try:
        lines = (path / MARKERS_FILE).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return
    except OSError as error:
        raise SessionError(f"{path}: can't be read ({error})") from error
    for line in lines:
        try:
            marker = json.loads(line)
            time, text = float(marker["time"]), str(marker["text"])
        except (ValueError, TypeError, LookupError, RecursionError, OverflowError):
            continue
        if np.isfinite(time):
            yield time, text


def about_of(path: Path) -> dict[str, Any]:
    """What a recording says of itself. Raises SessionError if it is none."""
    try:
        about = json.loads((path / ABOUT).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise SessionError(f"{path}: not a recording ({error}); expected {ABOUT} in it") from error
    texts = ("session_id", "subject_id")
    if not (
        isinstance(about, dict)
        and all(isinstance(about.get(name), str) for name in texts)
        and isinstance(about.get("unit_ids"), list)
        and all(isinstance(unit_id, str) for unit_id in about["unit_ids"])
    ):
        raise SessionError(
            f"{path / ABOUT}: not what a recording says of itself; expected session_id, subject_id "
            "and unit_ids"
        )
    return about


def names_unit(about: dict[str, Any]) -> bool:
    """Whether the kinematics of a recording said which unit they were in."""
    return about.get("names_unit") is not False


def _date(text: object, notes: list[str]) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(str(text))
    except ValueError:
        if text:
            notes.append(f"its date {str(text)[:80]!r} was not understood, and is left out")
        return None


def read_records(path: Path, kind: np.dtype[np.void]) -> Records:
    """The whole records of a file, in their order; none if there is no file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    except OSError as error:
        raise SessionError(f"{path}: can't be read ({error})") from error
    return np.frombuffer(content[: len(content) // kind.itemsize * kind.itemsize], dtype=kind)
