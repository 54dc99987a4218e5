"""Importers: NWB (series named as in DANDI 000688), XDF (LabRecorder) and session files.

| file | job |
|---|---|
| `nwb` | reads an NWB file: units, series, trials |
| `series` | selects the series for the cursor's position and velocity |
| `targets` | reads the targets of trials |
| `xdf` | reads an XDF file: spikes, kinematics, markers |
| `xdf_streams` | selects streams, groups them by sender, compares their clocks |
| `xdf_spikes` | units and spike times from spike streams |
| `xdf_kinematics` | x and y in SI units from kinematics streams |
| `xdf_clocks` | corrects streams whose sender's clock stepped |
| `xdf_chunks` | skips damaged chunks |

What all of them share is in `training.conversion`: units of length, axes, assembly of the session.

Session files of other tools (`brainsets prepare`) need no import unless they are in centimetres.
An interrupted `.recording` can be imported too.

Every repair, derived value, choice and omission goes into the session's notes, and the command
prints it. What can't be repaired raises ImportFailedError. Timestamps stay on the file's clock.
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
from training.conversion.options import ImportOptions
from training.conversion.track import EFFECTORS
from training.conversion.units import parse_length_unit
from training.importers.nwb import import_nwb
from training.importers.xdf import import_xdf

__all__ = [
    "EFFECTORS",
    "ImportOptions",
    "import_nwb",
    "import_recording",
    "import_xdf",
    "in_metres",
]


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
    """Read an NWB, XDF or session file, or a `.recording` folder, as a session in metres.

    position, velocity: names of the series to use instead of the defaults; `none` for no series.
    unit: `m`, `cm`, … or metres per unit, for files whose unit is wrong or missing.
    columns: the columns x and y, counted from 1, for series that don't name them; -2 flips the
        sign of column 2.
    spike_unit: `ms`, `us` or a sampling rate, for spike times that aren't in seconds.
    spikes_outside: accept files with most spikes outside the kinematics' time span.
    """
    path = Path(path)
    options = ImportOptions(
        position=position, velocity=velocity, unit=unit, columns=columns, spike_unit=spike_unit,
        spikes_outside=spikes_outside,
    )  # fmt: skip
    options.check()
    if path.is_dir():
        return _import_folder(path, options)
    readers = {".nwb": import_nwb, ".xdf": import_xdf, ".h5": _import_session}
    if path.suffix.lower() not in readers:
        raise ImportFailedError(
            f"{path}: unknown file type; expected .nwb, .xdf or .h5, or a {SUFFIX} folder"
        )
    if not path.is_file():
        raise ImportFailedError(f"{path}: no such file")
    try:
        return readers[path.suffix.lower()](path, options)
    except ModuleNotFoundError as error:
        raise ImportFailedError(
            f"{path}: reading it needs {error.name}; install it with: pip install 'volition[train]'"
        ) from error


def in_metres(session: Session, unit: str) -> Session:
    """The session with kinematics and targets converted from `unit` to metres and m/s."""
    scale, trials = parse_length_unit(unit), session.trials
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


def _import_session(path: Path, options: ImportOptions) -> Session:
    if options.position or options.velocity or options.spike_unit:
        raise ImportFailedError(
            f"{path}: a session file has one cursor and times in seconds; drop --position, "
            "--velocity and --spike-unit"
        )
    session = _inside_kinematics(load(path, columns=options.columns, repair=True))
    if options.unit is not None:
        session = in_metres(session, options.unit)
    else:
        session = replace(
            session, notes=tuple(n for n in session.notes if not n.startswith(TOO_FAST))
        )
    return judged(
        session, sure_of_unit=options.unit is not None, sure_of_times=options.spikes_outside
    )


def _inside_kinematics(session: Session) -> Session:
    """The session with its domains cut to the span of its kinematics."""
    low, high = float(session.cursor_times[0]), float(session.cursor_times[-1])
    if session.domain[0, 0] >= low - MIN_GAP_S and session.domain[-1, 1] <= high + MIN_GAP_S:
        return session
    domain, train, valid, test = (
        intersect(session.intervals(split), low, high)
        for split in ("all", "train", "valid", "test")
    )
    if len(domain) == 0:
        raise ImportFailedError(
            f"{session.session_id}: the domain has no kinematics, which span {low:.1f} to "
            f"{high:.1f} s; expected them to overlap"
        )
    note = f"domains extended beyond the kinematics; cut to {low:.1f} to {high:.1f} s"
    session = replace(session, domain=domain, notes=(*session.notes, note))
    if min(map(len, (train, valid, test))) == 0:
        return with_domains(session)
    return replace(session, train_domain=train, valid_domain=valid, test_domain=test)


def _import_folder(path: Path, options: ImportOptions) -> Session:
    """Import an interrupted recording; reject other folders with a specific error."""
    if path.suffix == SUFFIX or (path / "about.json").is_file():
        if options.names_anything():
            raise ImportFailedError(
                f"{path}: a recording has one cursor and times in seconds; expected no options "
                "except --unit and --spikes-outside"
            )
        metres = None if options.unit is None else parse_length_unit(options.unit)
        return read_recording(path, metres=metres, sure_of_times=options.spikes_outside)
    if any((path / name).exists() for name in (".zgroup", ".zattrs", ".zmetadata", "zarr.json")):
        raise ImportFailedError(
            f"{path}: a Zarr folder; expected one HDF5 file. Open it with hdmf_zarr's NWBZarrIO, "
            "export it with pynwb (`NWBHDF5IO.export(src_io=…)`), and import the .nwb file"
        )
    raise ImportFailedError(f"{path}: a folder; expected a .nwb, .xdf or .h5 file")
