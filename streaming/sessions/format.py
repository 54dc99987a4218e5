"""Recorded sessions on disk, in torch_brain's HDF5 format, without torch.

A session is one continuous recording day: spikes, units, cursor kinematics, trials, and the
stretches of time (domains) that training, validation and test may use. What is written here
opens in `torch_brain.datasets.Dataset`; what `brainsets prepare` writes opens here.

This module does not know where a session came from (see `training.importers`), nor how it
is cut into windows (see `training.data.windows`).
"""

from __future__ import annotations

import datetime
import errno
import mmap
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from numpy.typing import NDArray

from decoder.errors import SessionError
from decoder.files import replacing
from streaming.units import repeated_units

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Split = Literal["all", "train", "valid", "test"]

GAP_FACTOR = 5.0  # kinematics samples this many median steps apart leave a gap in the data
MIN_GAP_S = 0.2
FASTEST_HAND = 5.0  # m/s; kinematics above it are in other units
TOO_FAST = "speeds reach "
SLIVER_S = 1e-6  # intervals shorter than this are rounding, not time
MAX_SPAN_S = 7 * 86_400.0  # torch_brain stores an index for every second between first and last
MAX_TEXT = 30_000  # characters of an HDF5 attribute, which has 64 KB
MAX_UNITS = 100_000
MAX_NAME = 200  # bytes of a session's id; a file's name has 255
MIN_PART = 0.5  # of its share that each of train, valid and test must have
CURSORS = ("cursor", "hand", "finger")  # what moves, in the order in which one is taken
NO_DATE = datetime.datetime(1970, 1, 1)  # stored if nobody knows


@dataclass(frozen=True, kw_only=True)
class Trials:
    """Trials of one session.

    intervals: (n_trials, 2) float64, seconds, start and end of each trial.
    target_pos: (n_trials, 2) float64, metres, or None where the task has no targets.
    """

    intervals: Floats
    target_pos: Floats | None = None


@dataclass(frozen=True, kw_only=True)
class Session:
    """One recorded session, in memory.

    spike_times: (n_spikes,) float64, seconds on the recording's clock, ascending.
    spike_units: (n_spikes,) int64, position in `unit_ids` of each spike's unit.
    cursor_times: (n_samples,) float64, seconds, ascending.
    cursor_pos, cursor_vel: (n_samples, 2) float64, metres and metres per second.
    recorded_at: when the recording began, or None if nobody knows.
    domain, train_domain, valid_domain, test_domain: (n, 2) float64 intervals, seconds.
    """

    session_id: str
    subject_id: str
    unit_ids: tuple[str, ...]
    spike_times: Floats
    spike_units: Ints
    cursor_times: Floats
    cursor_pos: Floats
    cursor_vel: Floats
    domain: Floats
    train_domain: Floats
    valid_domain: Floats
    test_domain: Floats
    trials: Trials | None = None
    recorded_at: datetime.datetime | None = None
    source: str = "unknown"
    notes: tuple[str, ...] = field(default=())

    @property
    def n_units(self) -> int:
        return len(self.unit_ids)

    def intervals(self, split: Split) -> Floats:
        """Intervals (n, 2) of one split, in seconds; `all` is the whole domain."""
        return {
            "all": self.domain,
            "train": self.train_domain,
            "valid": self.valid_domain,
            "test": self.test_domain,
        }[split]

    def spikes_between(self, start_s: float, end_s: float) -> slice:
        """The slice of spikes with `start_s <= time < end_s`."""
        first, last = np.searchsorted(self.spike_times, (start_s, end_s))
        return slice(int(first), int(last))

    def velocity_at(self, times: Floats) -> Floats:
        """Cursor velocity (n, 2) in m/s at `times`, linear between samples."""
        if len(times) == 0:
            return np.empty((0, 2))
        first, last = np.searchsorted(self.cursor_times, (np.min(times), np.max(times)))
        around = slice(max(0, int(first) - 1), int(last) + 1)  # reads no more than it must
        at, vel = self.cursor_times[around], self.cursor_vel[around]
        return np.stack([np.interp(times, at, vel[:, axis]) for axis in (0, 1)], axis=1)


def duration_s(intervals: Floats) -> float:
    """Seconds that (n, 2) intervals cover together."""
    return float((intervals[:, 1] - intervals[:, 0]).sum())


def within(times: Floats, intervals: Floats, margin_s: float = 0.0) -> NDArray[np.bool_]:
    """Which `times` lie in one of the sorted `intervals`, at least `margin_s` after its start."""
    index = np.searchsorted(intervals[:, 0], times, side="right") - 1
    inside = index >= 0
    safe = np.maximum(index, 0)
    return np.asarray(
        inside & (times < intervals[safe, 1]) & (times - margin_s >= intervals[safe, 0] - 1e-9)
    )


def intersect(intervals: Floats, start_s: float, end_s: float) -> Floats:
    """The parts of `intervals` (n, 2) that lie in [start_s, end_s)."""
    clipped = np.clip(intervals, start_s, end_s)
    return clipped[clipped[:, 1] - clipped[:, 0] > SLIVER_S]


def continuous_domain(timestamps: Floats) -> Floats:
    """Intervals (n, 2) over which kinematics were sampled without a gap.

    A gap is a step of more than `GAP_FACTOR` median steps and `MIN_GAP_S`.
    """
    steps = np.diff(timestamps)
    step = float(np.median(steps)) if len(steps) else 0.0
    breaks = np.flatnonzero(steps > max(GAP_FACTOR * step, MIN_GAP_S))
    starts = timestamps[np.concatenate(([0], breaks + 1))] - step / 2
    ends = timestamps[np.concatenate((breaks, [len(timestamps) - 1]))] + step / 2
    return np.stack([starts, ends], axis=1)


def without_gaps(intervals: Floats, timestamps: Floats) -> Floats:
    """`intervals` (n, 2) cut where kinematics, sampled at `timestamps`, have a gap."""
    sampled = continuous_domain(timestamps)
    gaps = np.stack([sampled[:-1, 1], sampled[1:, 0]], axis=1)
    edges = (-np.inf, *gaps.ravel(), np.inf)
    parts = [intersect(intervals, a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return np.concatenate(parts)


def velocity_of(pos: Floats, timestamps: Floats) -> Floats:
    """Velocity (n_samples, 2) as the gradient of position, never across a gap."""
    vel = np.zeros_like(pos)
    for start, end in continuous_domain(timestamps):
        part = slice(*np.searchsorted(timestamps, (start, end)))
        if len(timestamps[part]) > 1:
            vel[part] = np.gradient(pos[part], timestamps[part], axis=0)
    return vel


def position_of(vel: Floats, timestamps: Floats) -> Floats:
    """Position (n_samples, 2) as the integral of velocity from (0, 0); over a gap it stands."""
    pos = np.zeros_like(vel)
    at = np.zeros(2)
    for start, end in continuous_domain(timestamps):
        part = slice(*np.searchsorted(timestamps, (start, end)))
        steps = np.diff(timestamps[part])[:, None] * (vel[part][1:] + vel[part][:-1]) / 2
        pos[part] = at + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
        at = pos[part][-1]
    return pos


def chronological_domains(
    domain: Floats,
    trials: Trials | None,
    notes: list[str] | None = None,
    *,
    shares: tuple[float, float] = (0.7, 0.1),
) -> tuple[Floats, Floats, Floats]:
    """Cut a domain in time order into train, valid and test parts.

    The cuts are where `shares` of the domain's seconds have passed, or at the nearest edge of a
    trial, so that no trial is cut in two. A "trial" of more than half the session is none (some
    tables hold one row for the whole recording), and trials so long that a part would get less than
    half of its share (blocks) don't move the cuts either.

    notes: is told if trials were too long.
    """
    total = duration_s(domain)
    given = np.empty((0, 2)) if trials is None else trials.intervals
    whole = given[given[:, 1] - given[:, 0] <= total / 2]
    at = [time_after(domain, share * total) for share in (shares[0], shares[0] + shares[1])]
    parts = _cut(domain, [_off_trials(time, whole) for time in at])
    wanted = np.array([shares[0], shares[1], 1 - sum(shares)]) * total
    if not all(duration_s(p) >= MIN_PART * w for p, w in zip(parts, wanted, strict=True)):
        parts = _cut(domain, at)
        if notes is not None and len(given):
            notes.append("trials are too long to cut between them; domains are cut by time")
    if min(map(len, parts)) == 0:
        raise SessionError(
            f"a domain of {total:.3g} s can't be cut into 70/10/20 parts: record for longer"
        )
    return parts


def _cut(domain: Floats, cuts: list[float]) -> tuple[Floats, Floats, Floats]:
    edges = (float(domain[0, 0]), *cuts, float(domain[-1, 1]))
    train, valid, test = (intersect(domain, a, b) for a, b in pairwise(edges))
    return train, valid, test


def time_after(domain: Floats, seconds: float) -> float:
    """When `seconds` of a domain (n, 2) have passed."""
    lengths = domain[:, 1] - domain[:, 0]
    before = np.concatenate(([0.0], np.cumsum(lengths)))
    index = min(int(np.searchsorted(before, seconds, side="right")) - 1, len(domain) - 1)
    return float(min(domain[index, 0] + seconds - before[index], domain[index, 1]))


def _off_trials(time_s: float, trials: Floats) -> float:
    """`time_s` where it lies inside no trial (n, 2), else the nearest edge that doesn't."""
    by_start = trials[np.argsort(trials[:, 0])]
    edges = np.unique(np.append(trials, time_s))
    n_begun = np.searchsorted(by_start[:, 0], edges)
    latest_end = np.maximum.accumulate(np.append(-np.inf, by_start[:, 1]))[n_begun]
    free = edges[latest_end <= edges]
    return float(free[np.argmin(np.abs(free - time_s))])


def sorted_spikes(times: Floats, units: Ints) -> tuple[Floats, Ints, bool]:
    """Spikes in time order, and whether they had to be sorted."""
    if len(times) < 2 or bool((np.diff(times) >= 0).all()):
        return times, units, False
    order = np.argsort(times, kind="stable")
    return times[order], units[order], True


def check(session: Session) -> Session:
    """Return `session` if it holds together, raise SessionError with what doesn't."""
    name = session.session_id
    _check_units(name, session.unit_ids)
    _check_spikes(name, session.spike_times, session.spike_units, session.n_units)
    _check_kinematics(name, session.cursor_times, pos=session.cursor_pos, vel=session.cursor_vel)
    for split in ("all", "train", "valid", "test"):
        _check_intervals(name, split, session.intervals(split))
    _check_span(name, session)
    return session


def _check_span(name: str, session: Session) -> None:
    """One stray stamp must not make a session of years: torch_brain keeps a grid of its seconds."""
    first = min(session.cursor_times[0], session.domain[0, 0])
    last = max(session.cursor_times[-1], session.domain[-1, 1])
    if last - first > MAX_SPAN_S:
        raise SessionError(
            f"{name}: kinematics and domains span {last - first:.3g} s, from {first:.3f} to "
            f"{last:.3f}; expected at most {MAX_SPAN_S:.0f} s (7 days). Are some stamps of another "
            "clock, or in another unit?"
        )


def _check_units(name: str, unit_ids: tuple[str, ...]) -> None:
    if not unit_ids:
        raise SessionError(f"{name}: no units; expected at least one sorted or thresholded unit")
    if problem := repeated_units(unit_ids):
        raise SessionError(f"{name}: {problem}")
    if odd := [unit_id for unit_id in unit_ids if not unit_id or "\0" in unit_id]:
        raise SessionError(f"{name}: a unit's id is {odd[0][:80]!r}; expected a name")


def _check_spikes(name: str, times: Floats, units: Ints, n_units: int) -> None:
    if times.ndim != 1 or times.shape != units.shape:
        raise SessionError(
            f"{name}: spike times of shape {times.shape} but unit indices of shape "
            f"{units.shape}; expected one of each a spike"
        )
    if not np.isfinite(times).all():
        raise SessionError(f"{name}: spike times have NaN or infinity; remove those spikes")
    if (np.diff(times) < 0).any():
        raise SessionError(f"{name}: spike times go backwards; sort them (`sorted_spikes`)")
    if len(units) and not (units.min() >= 0 and units.max() < n_units):
        raise SessionError(
            f"{name}: spikes of units {units.min()}..{units.max()}, but there are {n_units} units; "
            f"expected indices in 0..{n_units - 1}"
        )


def _check_kinematics(name: str, times: Floats, **columns: Floats) -> None:
    if times.ndim != 1 or len(times) < 2:
        raise SessionError(
            f"{name}: kinematics timestamps of shape {times.shape}; expected at least two in a row"
        )
    for label, values in columns.items():
        if values.shape != (len(times), 2):
            raise SessionError(
                f"{name}: cursor {label} has shape {values.shape}, but there are {len(times)} "
                f"timestamps; expected ({len(times)}, 2)"
            )
        if not np.isfinite(values).all():
            raise SessionError(f"{name}: cursor {label} has NaN or infinity; remove or fill them")
    if not np.isfinite(times).all():
        raise SessionError(
            f"{name}: kinematics timestamps have NaN or infinity; remove those samples"
        )
    if (np.diff(times) <= 0).any():
        raise SessionError(f"{name}: kinematics timestamps don't ascend; sort and deduplicate them")


def _check_intervals(name: str, split: str, intervals: Floats) -> None:
    edges = intervals.ravel()
    if not (len(edges) and np.isfinite(edges).all() and (np.diff(edges) >= 0).all()):
        raise SessionError(
            f"{name}: the {split} domain is empty or out of order; expected finite intervals "
            "that ascend and don't overlap (`with_domains` cuts them anew)"
        )


def save(session: Session, folder: Path | str, *, overwrite: bool = True) -> Path:
    """Write `session` to `folder/<session_id>.h5` (temporary name, synced, renamed).

    overwrite: else raise SessionError if there is one already.
    """
    path = path_of(session.session_id, folder)
    if not overwrite and path.exists():
        raise SessionError(f"{path} exists and was left as it is; expected a name of its own")
    check(session)
    with replacing(path, SessionError) as partial:
        try:
            with h5py.File(partial, "w") as file:
                _to_data(session).to_hdf5(file)
        except RuntimeError as error:  # h5py, if a flush fails
            raise OSError(str(error)) from error
        except (ValueError, TypeError) as error:  # texts with NUL, for one
            raise SessionError(
                f"{session.session_id[:80]!r} can't be stored as HDF5 ({error}); expected plain "
                "texts for session, subject and source"
            ) from error
    return path


def path_of(session_id: str, folder: Path | str) -> Path:
    """Where a session of this id is written. Raises SessionError if it can't be a file's name."""
    if Path(session_id).name != session_id or not _fits_a_name(session_id):
        raise SessionError(
            f"session id {session_id[:80]!r} can't be a file's name; expected at most {MAX_NAME} "
            "bytes of text without slashes (`volition import --name` gives another)"
        )
    return Path(folder) / f"{session_id}.h5"


def _fits_a_name(text: str) -> bool:
    try:
        name = text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return 0 < len(name) <= MAX_NAME and b"\0" not in name


def _to_data(session: Session):  # type: ignore[no-untyped-def]  # torch_brain has no types
    from torch_brain.data import (
        ArrayDict,
        BrainsetDescription,
        Data,
        Interval,
        IrregularTimeSeries,
        SessionDescription,
        SubjectDescription,
    )

    def interval(edges: Floats) -> Interval:
        return Interval(start=edges[:, 0].copy(), end=edges[:, 1].copy())

    unit_of_spike = session.spike_units.astype(np.int64)
    parts: dict[str, Any] = dict(  # noqa: C408  # names are torch_brain's
        brainset=BrainsetDescription(
            id="volition",
            origin_version="unknown",
            derived_version="1.0.0",
            source=session.source,
            description="; ".join(session.notes)[:MAX_TEXT] or "session written by Volition",
        ),
        subject=SubjectDescription(id=session.subject_id, species="UNKNOWN", sex="UNKNOWN"),
        session=SessionDescription(
            id=session.session_id,
            recording_date=session.recorded_at or NO_DATE,
            task="REACHING",
        ),
        spikes=IrregularTimeSeries(
            timestamps=session.spike_times,
            unit_index=unit_of_spike,
            domain=interval(session.domain),
        ),
        units=ArrayDict(
            id=np.array([_ascii(unit_id) for unit_id in session.unit_ids], dtype=str),
            count=np.bincount(unit_of_spike, minlength=session.n_units),
        ),
        cursor=IrregularTimeSeries(
            timestamps=session.cursor_times,
            pos=session.cursor_pos,
            vel=session.cursor_vel,
            domain=interval(session.domain),
        ),
        domain=interval(session.domain),
    )
    if session.trials is not None:
        parts["trials"] = interval(session.trials.intervals)
        if session.trials.target_pos is not None:
            parts["trials"].target_pos = session.trials.target_pos
    data = Data(**parts)
    data.train_domain = interval(session.train_domain)
    data.valid_domain = interval(session.valid_domain)
    data.test_domain = interval(session.test_domain)
    return data


_ESCAPED = re.compile(r"\\x([0-9a-f]{2})|\\u([0-9a-f]{4})|\\U([0-9a-f]{8})")


def _ascii(text: str) -> str:
    """The text as ASCII, which is all that torch_brain's format stores; `_unescaped` undoes it."""
    return text.replace("\\", r"\x5c").encode("ascii", "backslashreplace").decode()


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1] or match[2] or match[3], 16)), text)


def load(
    path: Path | str,
    *,
    lazy: bool = False,
    columns: tuple[int, int] | None = None,
    repair: bool = False,
) -> Session:
    """Read a session file; SessionError says what is wrong with one that can't be used.

    columns: which columns are x and y, counted from 1, of kinematics with more than two; one that
        is negative is turned round.
    lazy: map spikes and kinematics into memory instead of reading them, so that only what is
        used takes room. The file must not be written to meanwhile.
    repair: leave out spikes without a time, and kinematics samples whose stamps repeat, step back
        or are far off, with a note; else a file that has some is refused.
    """
    path = Path(path)
    if not path.exists():
        raise SessionError(f"{path}: no such file; expected a session (.h5)")
    try:
        with h5py.File(path, "r") as file:
            session = _from_hdf5(
                file, path.stem, _Mapped(path) if lazy else _whole, columns, repair
            )
    except SessionError:
        raise
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise SessionError(
                f"{path}: too many open files; raise the limit (ulimit -n), a session that is "
                "mapped takes one"
            ) from error
        raise SessionError(
            f"{path}: not a readable HDF5 file ({error}); it may be truncated. "
            "Import the recording again"
        ) from error
    except KeyError as error:
        raise SessionError(
            f"{path}: {error.args[0]}; expected spikes, units and cursor as torch_brain stores "
            "them. `volition import` makes such files from NWB and XDF"
        ) from error
    except Exception as error:  # h5py and numpy raise many kinds on a foreign layout
        raise SessionError(
            f"{path}: laid out otherwise than torch_brain stores sessions "
            f"({type(error).__name__}: {error}). `volition import` makes such files"
        ) from error
    session = check(session)
    if lazy:
        _let_go(session)
    return session


def find(folder: Path | str) -> list[Path]:
    """Session files below `folder` (or the one file that `folder` names), sorted."""
    root = Path(folder)
    paths = [root] if root.is_file() else sorted(root.rglob("*.h5"))
    if not paths:
        raise SessionError(f"{root}: no sessions (*.h5) found; make some with `volition import`")
    return paths


def open_all(folder: Path | str) -> list[Session]:
    """Every session below `folder`, mapped; a corpus may have more than files may be open at first.

    Raises SessionError.
    """
    paths = find(folder)
    _allow_open_files(len(paths) + 256)
    return [load(path, lazy=True) for path in paths]


def _allow_open_files(count: int) -> None:
    """Raise this process' limit on open files as far as the system lets it."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


Read = Callable[[h5py.Dataset], NDArray[Any]]


def _whole(dataset: h5py.Dataset) -> NDArray[Any]:
    return np.asarray(dataset[:])


class _Mapped:
    """Reads datasets of one file by mapping it, once: every map holds a descriptor."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __call__(self, dataset: h5py.Dataset) -> NDArray[Any]:
        """A dataset's bytes in the file; read whole if it is chunked or compressed."""
        offset = dataset.id.get_offset()
        if offset is None or dataset.size == 0 or not dataset.dtype.isnative:
            return _whole(dataset)
        values = np.frombuffer(self._map, dataset.dtype, count=dataset.size, offset=offset)
        return values.reshape(dataset.shape)


def _let_go(session: Session) -> None:
    """Give back the memory that checking a mapped session took."""
    for array in (session.spike_times, session.spike_units, session.cursor_times,
                  session.cursor_pos, session.cursor_vel):  # fmt: skip
        base: Any = array
        while base is not None and not isinstance(base, mmap.mmap):
            base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
        if base is not None and hasattr(mmap, "MADV_DONTNEED"):
            base.madvise(mmap.MADV_DONTNEED)


def _from_hdf5(
    file: h5py.File,
    default_id: str,
    read: Read,
    columns: tuple[int, int] | None,
    repair: bool,
) -> Session:
    """Read torch_brain's layout: datasets of `spikes`, `units`, `cursor` and interval groups."""
    notes: list[str] = []
    name = _text(file, "session", "id") or default_id
    cursor_times, pos, vel = _kinematics(_moving(file, notes), name, notes, read, columns, repair)
    times, units = _spikes(file["spikes"], name, notes, read, repair)
    trials = _trials(file, notes)
    domain, (train, valid, test) = _domains(file, cursor_times, trials, notes)
    ours = _text(file, "brainset", "id") == "volition"
    unit_ids = _unit_ids(file["units"]["id"], name)
    return Session(
        session_id=name,
        subject_id=_text(file, "subject", "id") or "unknown",
        unit_ids=tuple(map(_unescaped, unit_ids) if ours else unit_ids),
        spike_times=times,
        spike_units=units,
        cursor_times=cursor_times,
        cursor_pos=pos,
        cursor_vel=vel,
        domain=domain,
        train_domain=train,
        valid_domain=valid,
        test_domain=test,
        trials=trials,
        recorded_at=_date(_text(file, "session", "recording_date")),
        source=_text(file, "brainset", "source") or "unknown",
        notes=tuple(notes),
    )


def _date(text: str | None) -> datetime.datetime | None:
    try:
        date = datetime.datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return None if date == NO_DATE else date


def _moving(file: h5py.File, notes: list[str]) -> h5py.Group:
    """The group of kinematics: the cursor, or what other brainsets have in its place."""
    moving = [
        name for name in CURSORS
        if name in file and any(_columns_named(file[name], kind) for kind in ("pos", "vel"))
    ]  # fmt: skip
    for name in moving[:1]:
        if name != CURSORS[0]:
            notes.append(f"no cursor in the file; its {name} was taken")
        if moving[1:]:
            notes.append(f"not taken, of others than {name}: {', '.join(moving[1:])}")
        return file[name]
    raise KeyError(f"no {', '.join(CURSORS)} with pos or vel")


def _columns_named(group: h5py.Group, kind: str) -> str | None:
    names = (kind, f"{kind}_2d", f"{kind}_xy", f"{kind}_3d")
    return next((name for name in names if name in group), None)


def _kinematics(
    cursor: h5py.Group,
    name: str,
    notes: list[str],
    read: Read,
    columns: tuple[int, int] | None,
    repair: bool,
) -> tuple[Floats, Floats, Floats]:
    """Times, position and velocity; velocity by gradient where there is none."""
    times = _timestamps(cursor, read)
    found = {kind: _columns_named(cursor, kind) for kind in ("pos", "vel")}
    values = {
        kind: _xy(_array(cursor, label, read), f"{name}: {cursor.name[1:]} {label}", columns)
        for kind, label in found.items()
        if label
    }
    times, values = _finite(times, values, notes)
    if repair and times.ndim == 1:
        times, values = _ascending(times, values, notes)
    _check_kinematics(name, times, **values)
    if "vel" not in values:
        values["vel"] = velocity_of(values["pos"], times)
        notes.append("velocity is the gradient of position")
    if "pos" not in values:
        values["pos"] = np.zeros_like(values["vel"])
        notes.append("no position recorded; stored as zero")
    peak = float(np.nanquantile(np.abs(values["vel"]), 0.99))
    if peak > FASTEST_HAND:
        notes.append(
            f"{TOO_FAST}{peak:.3g}, too fast for m/s: `volition import {name}.h5 "
            "--unit cm` makes metres of centimetres"
        )
    return times, values["pos"], values["vel"]


def _xy(values: Floats, what: str, columns: tuple[int, int] | None) -> Floats:
    """The columns x and y (n, 2). Raises SessionError if nobody knows which they are."""
    if values.ndim != 2 or values.shape[1] <= 2:
        return values
    if columns is None:
        raise SessionError(
            f"{what} has {values.shape[1]} columns; expected two, x and y. Name them: `volition "
            "import FILE --columns 1,2` (counted from 1, -2 turns one round)"
        )
    return picked(values, columns, what)


def picked(values: Floats, columns: tuple[int, int], what: str) -> Floats:
    """Two columns of (n, k), counted from 1; a negative one is turned round."""
    if any(not 1 <= abs(column) <= values.shape[1] for column in columns):
        raise SessionError(
            f"{what} has {values.shape[1]} columns; expected --columns among them, counted from 1, "
            f"got {columns[0]},{columns[1]}"
        )
    return np.stack([np.sign(c) * values[:, abs(c) - 1] for c in columns], axis=1)


def _finite(
    times: Floats, values: dict[str, Floats], notes: list[str]
) -> tuple[Floats, dict[str, Floats]]:
    """Samples that are numbers; a stretch without leaves a gap, which nothing reaches over."""
    if any(column.shape != (len(times), 2) for column in values.values()):
        return times, values  # the check says so
    good = np.logical_and.reduce([np.isfinite(column).all(axis=1) for column in values.values()])
    if good.all():
        return times, values
    notes.append(f"{int((~good).sum())} kinematics samples without numbers were left out")
    return times[good], {kind: column[good] for kind, column in values.items()}


def _ascending(
    times: Floats, values: dict[str, Floats], notes: list[str]
) -> tuple[Floats, dict[str, Floats]]:
    """Samples whose stamps ascend, as those of every import (`streaming.sessions.stamps`)."""
    from streaming.sessions.stamps import in_order

    if any(len(column) != len(times) for column in values.values()):
        return times, values  # the check says so
    timed = np.flatnonzero(np.isfinite(times))
    kept, at = in_order(times[timed], notes)
    return at, {kind: column[timed[kept]] for kind, column in values.items()}


def _spikes(
    spikes: h5py.Group, name: str, notes: list[str], read: Read, repair: bool
) -> tuple[Floats, Ints]:
    """Times and unit indices, in time order."""
    times = _timestamps(spikes, read)
    units = np.asanyarray(read(spikes["unit_index"]), dtype=np.int64)
    if times.shape == units.shape:  # else `check` refuses them
        timed = np.isfinite(times)
        if repair and not timed.all():
            notes.append(f"{int((~timed).sum())} spikes without a finite time were left out")
            times, units = times[timed], units[timed]
        times, units, was_sorted = sorted_spikes(times, units)
        if was_sorted:
            notes.append("spikes were out of order and have been sorted")
    return times, units


def _domains(
    file: h5py.File, cursor_times: Floats, trials: Trials | None, notes: list[str]
) -> tuple[Floats, list[Floats]]:
    """The stored domain and its train, valid and test parts, without gaps; cut where absent."""
    domain = _interval(file, "domain")
    stored = continuous_domain(cursor_times) if domain is None else domain
    domain = without_gaps(stored, cursor_times)
    if len(domain) > len(stored):
        notes.append(f"{len(domain) - len(stored)} gaps in the kinematics cut out of the domains")
    splits = [_interval(file, f"{name}_domain") for name in ("train", "valid", "test")]
    parts = [without_gaps(part, cursor_times) for part in splits if part is not None]
    if len(parts) < 3 or min(map(len, parts)) == 0:
        notes.append("no domains stored; cut 70/10/20 in time order")
        return domain, list(chronological_domains(domain, trials, notes))
    return domain, parts


def _array(group: h5py.Group, name: str, read: Read = _whole) -> Floats:
    return np.asanyarray(read(group[name]), dtype=np.float64)


def _timestamps(group: h5py.Group, read: Read) -> Floats:
    """Times of an irregular series, or of a regular one from its sampling rate and domain."""
    if "timestamps" in group:
        return _array(group, "timestamps", read)
    rate_hz = group.attrs.get("sampling_rate")
    if rate_hz is None:
        raise KeyError(f"{group.name} has neither timestamps nor a sampling_rate")
    n_samples = max(len(item) for item in group.values() if isinstance(item, h5py.Dataset))
    start = float(group["domain"]["start"][0])
    return np.asarray(start + np.arange(n_samples) / float(rate_hz))


def _edges(group: h5py.Group) -> Floats:
    return np.stack([_array(group, "start"), _array(group, "end")], axis=1)


def _interval(file: h5py.File, name: str) -> Floats | None:
    """One domain's intervals in time order, overlapping ones merged; None where not stored."""
    if name not in file or "start" not in file[name]:
        return None
    edges = _edges(file[name])
    if not np.isfinite(edges).all():
        raise SessionError(f"{file.filename}: {name} has NaN or infinity; expected finite times")
    edges = edges[np.argsort(edges[:, 0], kind="stable")]
    latest_end = np.maximum.accumulate(edges[:, 1])
    first = np.append(True, edges[1:, 0] >= latest_end[:-1])[: len(edges)]
    return np.stack([edges[first, 0], latest_end[np.roll(first, -1)]], axis=1)


def _trials(file: h5py.File, notes: list[str]) -> Trials | None:
    """Trials in time order; those without a finite start and end are no trials."""
    if "trials" not in file or "start" not in file["trials"]:
        return None
    edges = _edges(file["trials"])
    good = np.flatnonzero(np.isfinite(edges).all(axis=1) & (edges[:, 1] > edges[:, 0]))
    if n_bad := len(edges) - len(good):
        notes.append(f"{n_bad} trials without a start and an end were left out")
    if len(good) == 0:
        return None
    good = good[np.argsort(edges[good, 0], kind="stable")]
    if "target_pos" not in file["trials"]:
        return Trials(intervals=edges[good])
    target = _array(file["trials"], "target_pos")
    is_xy = target.ndim == 2 and target.shape[0] == len(edges) and target.shape[1] >= 2
    if not is_xy:
        notes.append(f"targets of shape {target.shape} were left out; expected two per trial")
    elif target.shape[1] > 2:
        notes.append(f"targets have {target.shape[1]} values; the first two were taken as x and y")
    return Trials(intervals=edges[good], target_pos=target[good, :2] if is_xy else None)


def _unit_ids(ids: h5py.Dataset, name: str) -> Iterator[str]:
    if ids.ndim != 1 or len(ids) > MAX_UNITS:
        raise SessionError(
            f"{name}: unit ids have the shape {ids.shape}; expected one per unit, {MAX_UNITS:,} at "
            "most"
        )
    for value in ids[:]:
        yield value.decode() if isinstance(value, bytes) else str(value)


def _text(file: h5py.File, group: str, name: str) -> str | None:
    if group not in file:
        return None
    value = file[group].attrs.get(name)
    if value is None:
        return None
    return value.decode() if isinstance(value, bytes) else str(value)


def with_domains(session: Session) -> Session:
    """`session` with its train, valid and test domains cut anew, 70/10/20 in time order."""
    notes = [*session.notes]
    train, valid, test = chronological_domains(session.domain, session.trials, notes)
    return replace(
        session, train_domain=train, valid_domain=valid, test_domain=test, notes=tuple(notes)
    )
