"""Files and folders that are written whole or not at all, and outlive a power cut.

Everything is written under a temporary name in the same folder, synced to disk, then renamed. What
was there before stays as it was until then.
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
NAME_KEPT = 40  # characters of the name in its temporary one, which may have 255 bytes


@contextmanager
def replacing(path: Path, error: type[VolitionError] = VolitionError) -> Iterator[Path]:
    """A temporary name; the file or folder that the block writes there then takes `path`'s place.

    Raises `error` if it can't be written. If the block raises, `path` stays as it was.
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
            f"{path}: can't be written ({brief(reason)}); make room or choose another folder. "
            "What was there before is as it was"
        ) from reason
    finally:
        _remove(partial)
        if path.exists():
            _remove(old)


def write_text(path: Path, text: str, error: type[VolitionError] = VolitionError) -> None:
    """Write a file of UTF-8 text, as `replacing` does."""
    with replacing(path, error) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(
    path: Path, error: type[VolitionError] = VolitionError, *, at_most: int = LONGEST_JSON
) -> Any:
    """The content of a JSON file. Raises `error` if it can't be read, is too long or no JSON."""
    try:
        if (size := path.stat().st_size) > at_most:
            raise error(f"{path}: {size / 1e6:.0f} MB, expected at most {at_most / 1e6:.0f} MB")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as reason:  # ValueError: a number of 5,000 digits
        raise error(
            f"{path}: not readable JSON ({brief(reason)}); copy the whole folder again"
        ) from reason


def sync(path: Path) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk."""
    if path.is_dir():
        for inside in path.iterdir():
            sync(inside)
        sync_names(path)
    else:
        _fsync(path)


def sync_names(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    if os.name == "posix":  # Windows can't open a folder
        _fsync(folder)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _rename(new: Path, path: Path, old: Path) -> None:
    """Put `new` where `path` is; folders can't be replaced in one call, so the old steps aside."""
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
    """Remove what writers of `path` left that were killed."""
    for left in path.parent.glob(glob.escape(f".{path.name[:NAME_KEPT]}.") + "*.partial"):
        process = left.name.split(".")[-3]
        if process.isdigit() and not _is_alive(int(process)):
            _remove(left)


def _is_alive(process: int) -> bool:
    if os.name != "posix":
        return True  # nobody can ask there without ending it
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    """Remove what is there, if that can be done: a disk may be read-only by now."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
