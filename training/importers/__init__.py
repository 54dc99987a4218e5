"""Foreign recordings become sessions: NWB (names of DANDI 000688), XDF (LabRecorder), and others'.

| file | does |
|---|---|
| `nwb` | reads an NWB file: units, series, trials |
| `xdf` | reads an XDF file: streams of spikes, kinematics and markers |
| `series` | which series of an NWB file are the cursor's position and velocity |
| `targets` | where the targets of an NWB file's trials are |
| `axes` | which columns are x and y |
| `units` | what is a metre |
| `assemble` | parts become a session; repairs what can be repaired |
| `complaints` | what a reader's library says on its way |

Sessions of other makers (`brainsets prepare`) open as they are; one in centimetres is imported
into metres. A `.recording` that was cut short becomes a session, too.

Whatever had to be repaired, derived, chosen or left out is written into the session's notes and
printed by the command; whatever can't be repaired raises ImportFailedError. Timestamps keep the
file's own clock.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from decoder.errors import ImportFailedError
from streaming.recording.raw import SUFFIX, read_recording
from streaming.sessions.format import load
from streaming.sessions.intervals import MIN_GAP_S, intersect, with_domains
from streaming.sessions.layout import TOO_FAST
from streaming.sessions.plausible import judged
from streaming.sessions.session import Session
from training.conversion.asked import Asked
from training.conversion.track import EFFECTORS
from training.conversion.units import factor_asked
from training.importers.nwb import import_nwb
from training.importers.xdf import import_xdf

__all__ = ["EFFECTORS", "Asked", "import_nwb", "import_recording", "import_xdf", "in_metres"]


def import_recording(
    path: Path | str,
    *,
    position: str | None = None,
    velocity: str | None = None,
    unit: str | None = None,
    columns: tuple[int, int] | None = None,
    spike_unit: str | None = None,
    spikes_outside: bool = False,
) -> Session:
    """Read one NWB, XDF or session file, or a `.recording` folder, as a session in metres.

    position, velocity: names of the series to use instead of the usual ones; `none` for none.
    unit: `m`, `cm`, … or metres in one unit, of files that say it wrongly or not at all.
    columns: which columns are x and y, counted from 1, of series that don't say; -2 turns one.
    spike_unit: `ms`, `us` or a sampling rate, of spike times that aren't in seconds.
    spikes_outside: most spikes may lie outside the kinematics.
    """
    path = Path(path)
    asked = Asked(
        position=position, velocity=velocity, unit=unit, columns=columns, spike_unit=spike_unit,
        spikes_outside=spikes_outside,
    )  # fmt: skip
    asked.check()
    if path.is_dir():
        return _import_folder(path, asked)
    readers = {".nwb": import_nwb, ".xdf": import_xdf, ".h5": _import_session}
    if path.suffix.lower() not in readers:
        raise ImportFailedError(
            f"{path}: unknown kind of file; expected .nwb, .xdf or .h5, or a folder {SUFFIX}"
        )
    if not path.is_file():
        raise ImportFailedError(f"{path}: no such file")
    return readers[path.suffix.lower()](path, asked)


def in_metres(session: Session, unit: str) -> Session:
    """The session with kinematics and targets that were in `unit` in metres and m/s."""
    scale, trials = factor_asked(unit), session.trials
    if trials is not None and trials.target_pos is not None:
        trials = replace(trials, target_pos=trials.target_pos * scale)
    return replace(
        session,
        cursor_pos=session.cursor_pos * scale,
        cursor_vel=session.cursor_vel * scale,
        trials=trials,
        notes=(
            *(note for note in session.notes if not note.startswith(TOO_FAST)),
            f"kinematics converted from {unit}",
        ),
    )


def _import_session(path: Path, asked: Asked) -> Session:
    if asked.position or asked.velocity or asked.spike_unit:
        raise ImportFailedError(
            f"{path}: a session has one cursor and times in seconds; leave --position, --velocity "
            "and --spike-unit out"
        )
    session = _inside_kinematics(load(path, columns=asked.columns, repair=True))
    if asked.unit is not None:
        session = in_metres(session, asked.unit)
    else:
        session = replace(
            session, notes=tuple(n for n in session.notes if not n.startswith(TOO_FAST))
        )
    return judged(session, sure_of_unit=asked.unit is not None, sure_of_times=asked.spikes_outside)


def _inside_kinematics(session: Session) -> Session:
    """The session with domains that end where its kinematics do."""
    low, high = float(session.cursor_times[0]), float(session.cursor_times[-1])
    if session.domain[0, 0] >= low - MIN_GAP_S and session.domain[-1, 1] <= high + MIN_GAP_S:
        return session
    domain, train, valid, test = (
        intersect(session.intervals(split), low, high)
        for split in ("all", "train", "valid", "test")
    )
    if len(domain) == 0:
        raise ImportFailedError(
            f"{session.session_id}: its domain has no kinematics, which are from {low:.1f} to "
            f"{high:.1f} s; expected both at one time"
        )
    note = f"domains reached beyond the kinematics; cut to {low:.1f} to {high:.1f} s"
    session = replace(session, domain=domain, notes=(*session.notes, note))
    if min(map(len, (train, valid, test))) == 0:
        return with_domains(session)
    return replace(session, train_domain=train, valid_domain=valid, test_domain=test)


def _import_folder(path: Path, asked: Asked) -> Session:
    """A recording that was cut short; other folders are named for what they are."""
    if path.suffix == SUFFIX or (path / "about.json").is_file():
        if asked.names_anything():
            raise ImportFailedError(
                f"{path}: a recording has one cursor and times in seconds; expected no option but "
                "--unit and --spikes-outside"
            )
        metres = None if asked.unit is None else factor_asked(asked.unit)
        return read_recording(path, metres=metres, sure_of_times=asked.spikes_outside)
    if any((path / name).exists() for name in (".zgroup", ".zattrs", ".zmetadata", "zarr.json")):
        raise ImportFailedError(
            f"{path}: a Zarr folder; expected one HDF5 file. Export it first (hdmf_zarr's "
            "NWBZarrIO reads it, pynwb's NWBHDF5IO exports it: `io.export(src_io=…)`), and import "
            "the .nwb file"
        )
    raise ImportFailedError(f"{path}: a folder; expected one .nwb, .xdf or .h5 file")
