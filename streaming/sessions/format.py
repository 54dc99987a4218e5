"""Saves and loads sessions as HDF5 files in torch_brain's format, without torch.

Files written here open in `torch_brain.datasets.Dataset`. Files of `brainsets prepare` open here.
`training.importers` makes sessions from other formats; `training.data.windows` cuts them into
windows.
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

MAX_NAME = 200  # bytes of a session id; a file name may have 255


def save(session: Session, folder: Path | str, *, overwrite: bool = True) -> Path:
    """Write `session` to `folder/<session_id>.h5` under a temporary name, then sync and rename it.

    overwrite: replace an existing file; if false, raise SessionError instead.
    """
    path = path_of(session.session_id, folder)
    if not overwrite and path.exists():
        raise SessionError(f"{path} exists and was not changed; choose another name")
    check(session)
    with replacing(path, SessionError) as partial:
        try:
            with h5py.File(partial, "w") as file:
                to_data(session).to_hdf5(file)
        except RuntimeError as error:  # from h5py, if a flush fails
            raise OSError(str(error)) from error
        except (ValueError, TypeError) as error:  # such as texts with NUL
            raise SessionError(
                f"{session.session_id[:80]!r} can't be stored as HDF5 ({error}); expected plain "
                "text for session, subject and source"
            ) from error
    return path


def path_of(session_id: str, folder: Path | str) -> Path:
    """Path of the session file. Raises SessionError if the id can't be a file name."""
    if Path(session_id).name != session_id or not _fits_a_name(session_id):
        raise SessionError(
            f"session id {session_id[:80]!r} can't be a file name; expected at most {MAX_NAME} "
            "bytes of text without slashes (choose one with `volition import --name`)"
        )
    return Path(folder) / f"{session_id}.h5"


def _fits_a_name(text: str) -> bool:
    try:
        name = text.encode()
    except UnicodeEncodeError:  # an unpaired surrogate
        return False
    return 0 < len(name) <= MAX_NAME and b"\0" not in name


def load(
    path: Path | str,
    *,
    lazy: bool = False,
    columns: tuple[int, int] | None = None,
    repair: bool = False,
) -> Session:
    """Read a session file. Raises SessionError if it can't be used.

    lazy: map spikes and kinematics into memory and read only what is used. The file must not change
        meanwhile.
    columns: the x and y columns of kinematics with more than two columns, counted from 1; a
        negative number reverses the axis.
    repair: leave out spikes without a time, and kinematics samples whose time stamps repeat, step
        back or are far off, with a note. If false, files with such samples are refused.
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
                f"{path}: too many open files; each mapped session takes one. Raise the limit "
                "(ulimit -n)"
            ) from error
        raise SessionError(
            f"{path}: not a readable HDF5 file ({error}); it may be truncated. "
            "Import the recording again"
        ) from error
    except KeyError as error:
        raise SessionError(
            f"{path}: {error.args[0]}; expected spikes, units and cursor in torch_brain's layout. "
            "`volition import` makes such files from NWB and XDF"
        ) from error
    except Exception as error:  # h5py and numpy raise many types on a foreign layout
        raise SessionError(
            f"{path}: not in torch_brain's layout ({type(error).__name__}: {error}). "
            "`volition import` makes such files"
        ) from error
    session = check(session)
    if lazy:
        _let_go(session)
    return session


def find(folder: Path | str) -> list[Path]:
    """Session files below `folder`, sorted; `folder` may also be one file."""
    root = Path(folder)
    paths = [root] if root.is_file() else sorted(root.rglob("*.h5"))
    if not paths:
        raise SessionError(f"{root}: no sessions (*.h5) found; make some with `volition import`")
    return paths


def open_all(folder: Path | str) -> list[Session]:
    """Every session below `folder`, mapped into memory.

    Raises the limit on open files if a large corpus needs it. Raises SessionError.
    """
    paths = find(folder)
    _allow_open_files(len(paths) + 256)
    return [load(path, lazy=True) for path in paths]


def _allow_open_files(count: int) -> None:
    """Raise this process's limit on open files, up to the system's hard limit."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Mapped:
    """Reads datasets of one file through a single memory map: each map holds a descriptor."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __call__(self, dataset: h5py.Dataset) -> NDArray[Any]:
        """The mapped dataset; a chunked or compressed one is read into memory."""
        offset = dataset.id.get_offset()
        if offset is None or dataset.size == 0 or not dataset.dtype.isnative:
            return whole(dataset)
        values = np.frombuffer(self._map, dataset.dtype, count=dataset.size, offset=offset)
        return values.reshape(dataset.shape)


def _let_go(session: Session) -> None:
    """Release the pages of a mapped session that its check has read."""
    for array in (session.spike_times, session.spike_units, session.cursor_times,
                  session.cursor_pos, session.cursor_vel):  # fmt: skip
        base: Any = array
        while base is not None and not isinstance(base, mmap.mmap):
            base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
        if base is not None and hasattr(mmap, "MADV_DONTNEED"):
            base.madvise(mmap.MADV_DONTNEED)
