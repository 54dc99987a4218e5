"""Log files of child processes, rotated at a size limit.

A daemon writes to its log through its own file descriptor, opened for appending, and outlives its
server. So a log is rotated by copying and truncating it; a few lines written in between may be
lost.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger("volition.server")

LIMIT_BYTES = 10_000_000


def open_log(path: Path) -> BinaryIO:
    """Open a log for appending; rotate it first if it is too large."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shorten(path)
    return path.open("ab")


def shorten(path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
    """Move the content of a log that is too large to `NAME.1`, which is overwritten."""
    try:
        if path.stat().st_size <= limit_bytes:
            return
        shutil.copyfile(path, path.with_name(f"{path.name}.1"))
    except FileNotFoundError:
        return
    except OSError as error:  # truncated all the same, to free the disk
        log.error("%s can't be copied before it is truncated: %s", path, error)
    with path.open("r+b") as file:
        file.truncate(0)
