"""Recorded sessions on disk, in torch_brain's HDF5 format, without torch.

A session is one continuous recording day: spikes, units, cursor kinematics, trials, and the
stretches of time (domains) that training, validation and test may use. What is written here
opens in `torch_brain.datasets.Dataset`; what `brainsets prepare` writes opens here.

This module does not know where a session came from (see `training.importers`), nor how it
is cut into windows (see `training.data.windows`).
"""

from __future__ import annotations

import errno
import mmap
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from decoder.errors import SessionError
from decoder.files import replacing
from streaming.sessions.checks import check
from streaming.sessions.layout import from_hdf5, to_data, whole
from streaming.sessions.session import Session

MAX_NAME = 200  # bytes of a session's id; a file's name has 255


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
                to_data(session).to_hdf5(file)
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
            session = from_hdf5(file, path.stem, _Mapped(path) if lazy else whole, columns, repair)
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


class _Mapped:
    """Reads datasets of one file by mapping it, once: every map holds a descriptor."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __call__(self, dataset: h5py.Dataset) -> NDArray[Any]:
        """A dataset's bytes in the file; read whole if it is chunked or compressed."""
        offset = dataset.id.get_offset()
        if offset is None or dataset.size == 0 or not dataset.dtype.isnative:
            return whole(dataset)
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
