"""Atomic writes of files and folders that survive a power cut.

Everything is written under a temporary name in the same folder, synced to disk, then renamed. Until
then the old file or folder stays as it is.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from decoder.errors import VolitionError, brief

LONGEST_JSON = 2**25  # bytes; room for 100,000 unit ids
NAME_KEPT = 40  # characters of the name that the temporary name keeps; the limit is 255 bytes


@contextmanager
def replacing(path: Path, error: type[VolitionError] = VolitionError) -> Iterator[Path]:
    """A temporary path; the file or folder that the block writes there then replaces `path`.

    Raises `error` if it can't be written. If the block raises, `path` is unchanged.
    """
    mark = f".{path.name[:NAME_KEPT]}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    partial, old = path.with_name(f"{mark}.partial"), path.with_name(f"{mark}.old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_up(path)
        yield partial
        sync(partial)
        _rename(partial, path, old)
        sync_names(path.parent)
    except (OSError, SafetensorError) as reason:
        raise error(
            f"{path}: can't be written ({brief(reason)}); free some space or choose "
            "another folder. The old content is unchanged"
        ) from reason
    finally:
        _remove(partial)
        if path.exists():
            _remove(old)


def write_text(path: Path, text: str, error: type[VolitionError] = VolitionError) -> None:
    """Write a file of UTF-8 text atomically, as `replacing` does."""
    with replacing(path, error) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(
    path: Path, error: type[VolitionError] = VolitionError, *, at_most: int = LONGEST_JSON
) -> Any:
    """The content of a JSON file. Raises `error` if it is unreadable, too large or not JSON."""
    try:
        if (size := path.stat().st_size) > at_most:
            raise error(
                f"{path}: {size / 1e6:.0f} MB, expected at most {at_most / 1e6:.0f} MB; copy the "
                "whole folder again"
            )
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as reason:  # ValueError: a number of 5,000 digits
        raise error(
            f"{path}: not readable as JSON ({brief(reason)}); copy the whole folder again"
        ) from reason


def sync(path: Path) -> None:
    """Sync a file, or a folder with all its content, to disk."""
    if path.is_dir():
        for inside in path.iterdir():
            sync(inside)
        sync_names(path)
    else:
        _fsync(path)


def sync_names(folder: Path) -> None:
    """Sync the names in a folder to disk."""
    if os.name == "posix":  # Windows can't open a folder
        _fsync(folder)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rename(new: Path, path: Path, old: Path) -> None:
    """Rename `new` to `path`. A folder can't be replaced in one call, so it becomes `old` first."""
    if not (new.is_dir() and path.is_dir()):
        os.replace(new, path)
        return
    os.rename(path, old)
    try:
        os.rename(new, path)
    except OSError:
        os.rename(old, path)
        raise


def _clear_up(path: Path) -> None:
    """Delete the temporary files of writers of `path` that were killed."""
    for left in path.parent.glob(glob.escape(f".{path.name[:NAME_KEPT]}.") + "*.partial"):
        process = left.name.split(".")[-3]
        if process.isdigit() and not _is_alive(int(process)):
            _remove(left)


def _is_alive(process: int) -> bool:
    if os.name != "posix":
        return True  # on Windows, os.kill would end the process
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    """Delete a file or folder; errors are ignored, as on a disk that has become read-only."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
