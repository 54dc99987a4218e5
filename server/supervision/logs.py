"""Log files of processes that write by themselves, kept from growing without end.

A daemon goes on writing through its own descriptor, opened for appending, whatever happens to its
server. So a log is copied aside and emptied; a few lines written in between may be lost.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger("volition.server")

LIMIT_BYTES = 10_000_000


def open_log(path: Path) -> BinaryIO:
    """A log to append to, shortened first if it is too long."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shorten(path)
    return path.open("ab")


def shorten(path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
    """Move what is in a log that is too long to `NAME.1`, over what is there."""
    try:
        if path.stat().st_size <= limit_bytes:
            return
        shutil.copyfile(path, path.with_name(f"{path.name}.1"))
    except FileNotFoundError:
        return
    except OSError as error:  # emptied all the same: a full disk is what this prevents
        log.error("%s can't be kept: %s", path, error)
    with path.open("r+b") as file:
        file.truncate(0)
