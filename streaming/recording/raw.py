"""The files of `volition record`, complete or cut short, and their conversion to a session.

    NAME.recording/
      about.json        session, subject, date, stream names, unit ids (written again on new units),
                        whether the kinematics named their unit, times of clock jumps
      spikes.bin        one record per spike: float64 time (LSL clock, s), int64 unit
      kinematics.bin    one record per sample: float64 time, then float64 `COLUMNS`
      markers.jsonl     one line per marker: time and text
      notes.jsonl       one line per note that someone wrote: time and text

The files are only appended to, so that a recorder that is killed leaves a usable recording.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from decoder.arrays import Floats, Ints
from decoder.errors import SessionError
from streaming.columns import COLUMNS, NO_UNIT, POSITION, TARGET, VELOCITY
from streaming.recording.markers import block_notes_of, trials_of
from streaming.sessions.intervals import continuous_domain, with_domains, without_gaps
from streaming.sessions.kinematics import position_of, velocity_of
from streaming.sessions.plausible import judged
from streaming.sessions.session import Session, Trials, sorted_spikes
from streaming.sessions.stamps import in_order, spikes_on_line

SUFFIX = ".recording"
ABOUT, SPIKES_FILE, KINEMATICS_FILE, MARKERS_FILE, NOTES_FILE = (
    "about.json",
    "spikes.bin",
    "kinematics.bin",
    "markers.jsonl",
    "notes.jsonl",
)
NO_KINEMATICS = "no kinematics were recorded; the cursor stands still"
STILL_HZ = 50.0  # samples of a cursor that stands still
MAX_PAUSE_S = 0.5  # a longer pause of the kinematics is a gap; of all spikes, if there are none
UNSURE_S = 5.0  # a jump is noticed after two clock measurements, 2 s apart
SPIKE = np.dtype([("time", "<f8"), ("unit", "<i8")])
SAMPLE = np.dtype([("time", "<f8"), ("values", "<f8", (len(COLUMNS),))])

Records = np.ndarray[Any, np.dtype[np.void]]


def read_recording(
    path: Path | str,
    *,
    cut: bool = True,
    metres: float | None = None,
    sure_of_times: bool = False,
    needs_kinematics: bool = True,
) -> Session:
    """Convert a recording to a session.

    cut: cut the domain 70/10/20; if false, each split is the whole domain, as for calibrations.
    metres: metres per unit of kinematics that named no unit. None: they are taken as m and m/s,
        and refused if they are implausible for a hand.
    sure_of_times: most spikes may lie outside the kinematics.
    needs_kinematics: if false, a recording without a sample of kinematics becomes a session whose
        cursor stands still, with the note `NO_KINEMATICS`.

    An incomplete last record is left out. Units without spikes are kept. If only velocity was sent,
    position is its integral from (0, 0), and targets are left out.
    Raises SessionError if there are too few data, or spikes and kinematics don't overlap.
    """
    path = Path(path)
    about = about_of(path)
    notes: list[str] = []
    if not (needs_kinematics or has_kinematics(path)):
        session = _of_spikes(path, about)
        return with_domains(session) if cut else session
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
    spikes = _spikes(path, about, notes)
    domain = _without_jumps(without_gaps(continuous_domain(times), times), about, notes)
    trials = trials_of(
        _texts(path / MARKERS_FILE), times, targets, metres=metres or 1.0, notes=notes
    )
    session = _session(
        path, about, notes, spikes, cursor=(times, pos, vel), domain=domain, trials=trials,
        source=f"recorded from {about.get('spikes')} and {about.get('kinematics')}",
    )  # fmt: skip
    sure_of_unit = names_unit(about) or metres is not None
    session = _inside(judged(session, sure_of_unit=sure_of_unit, sure_of_times=sure_of_times))
    if not has_position:  # after the checks: an integral may drift out of a hand's reach
        session = replace(session, cursor_pos=position_of(vel, times))
    return with_domains(session) if cut else session


def has_kinematics(path: Path) -> bool:
    """Whether a recording has any sample of kinematics."""
    return len(read_records(path / KINEMATICS_FILE, SAMPLE)) > 0


def _of_spikes(path: Path, about: dict[str, Any]) -> Session:
    """A session of spikes alone."""
    notes = [NO_KINEMATICS]
    times, units = _spikes(path, about, notes)
    if len(times) < 2:
        raise SessionError(f"{path}: {len(times)} spikes; expected many more")
    pauses = np.flatnonzero(np.diff(times) > MAX_PAUSE_S)
    domain = np.stack([times[[0, *(pauses + 1)]], times[[*pauses, -1]]], axis=1)
    domain = domain[domain[:, 1] > domain[:, 0]]
    n_samples = 2 + int(STILL_HZ * (times[-1] - times[0]))
    still = np.zeros((n_samples, 2))
    session = _session(
        path, about, notes, (times, units),
        cursor=(np.linspace(times[0], times[-1] + 1 / STILL_HZ, n_samples), still, still),
        domain=_without_jumps(domain, about, notes),
        source=f"recorded from {about.get('spikes')}",
    )  # fmt: skip
    return judged(session, sure_of_unit=True)


def _session(
    path: Path,
    about: dict[str, Any],
    notes: list[str],
    spikes: tuple[Floats, Ints],
    *,
    cursor: tuple[Floats, Floats, Floats],
    domain: Floats,
    source: str,
    trials: Trials | None = None,
) -> Session:
    """A recording as a session, uncut.

    spikes: times and units. cursor: times, positions and velocities.
    """
    return Session(
        session_id=about["session_id"],
        subject_id=about["subject_id"],
        recorded_at=_date(about.get("recorded_at"), notes),
        unit_ids=tuple(about["unit_ids"]),
        spike_times=spikes[0],
        spike_units=spikes[1],
        cursor_times=cursor[0],
        cursor_pos=cursor[1],
        cursor_vel=cursor[2],
        domain=domain,
        train_domain=domain,
        valid_domain=domain,
        test_domain=domain,
        trials=trials,
        source=source,
        block_notes=block_notes_of(_texts(path / NOTES_FILE), cursor[0], notes),
        notes=tuple(notes),
    )


def _metres(path: Path, about: dict[str, Any], metres: float | None, notes: list[str]) -> float:
    """Metres per unit of the file's kinematics."""
    if names_unit(about):
        if metres is not None:
            raise SessionError(
                f"{path}: its kinematics named their unit and are in metres; omit --unit"
            )
        return 1.0
    if metres is None:
        notes.append(NO_UNIT)
        return 1.0
    notes.append(f"no channel of the kinematics named a unit; taken as {metres:g} m, as given")
    return metres


def _without_jumps(domain: Floats, about: dict[str, Any], notes: list[str]) -> Floats:
    """The domain without the seconds before each clock jump was noticed, whose stamps are wrong."""
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
    """The session without the spikes outside the kinematics' time span."""
    part = session.spikes_between(session.cursor_times[0], session.cursor_times[-1])
    return replace(
        session, spike_times=session.spike_times[part], spike_units=session.spike_units[part]
    )


def _kinematics(path: Path, notes: list[str]) -> tuple[Floats, Floats]:
    """Times (n,), ascending, and values (n, 6) of the usable samples."""
    samples = read_records(path / KINEMATICS_FILE, SAMPLE)
    times, values = samples["time"], samples["values"]
    has_position = bool(np.isfinite(values[:, POSITION]).any())
    given = values[:, POSITION if has_position else VELOCITY]
    finite = np.isfinite(times) & np.isfinite(given).all(axis=1)
    if n_bad := int((~finite).sum()):
        notes.append(f"{n_bad} kinematics samples with NaN or infinity were left out")
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


def _texts(path: Path) -> Iterator[tuple[float, str]]:
    """Times and texts of markers or notes, without incomplete lines."""
    try:
        lines = path.read_text(errors="replace").splitlines()
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
    """The contents of `about.json`. Raises SessionError if `path` is not a recording."""
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
            f"{path / ABOUT}: not a description of a recording; expected session_id, subject_id "
            "and unit_ids"
        )
    return about


def names_unit(about: dict[str, Any]) -> bool:
    """Whether the kinematics of a recording named their unit."""
    return about.get("names_unit") is not False


def _date(text: object, notes: list[str]) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(str(text))
    except ValueError:
        if text:
            notes.append(f"the date {str(text)[:80]!r} can't be read and was left out")
        return None


def read_records(path: Path, kind: np.dtype[np.void]) -> Records:
    """The complete records of a file, in order; none if the file doesn't exist."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    except OSError as error:
        raise SessionError(f"{path}: can't be read ({error})") from error
    return np.frombuffer(content[: len(content) // kind.itemsize * kind.itemsize], dtype=kind)
