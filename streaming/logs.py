"""Log lines as text or JSON, and log files of child processes, rotated at a size limit.

A daemon writes to its log through its own file descriptor, opened for appending, and outlives its
server. So a log is rotated by copying and truncating it; a few lines written in between may be
lost.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import threading
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import BinaryIO, NoReturn

from decoder.errors import SettingsError

log = logging.getLogger("volition.server")

LIMIT_BYTES = 10_000_000
TEXT = "%(asctime)s %(name)s %(message)s"


class JsonLines(logging.Formatter):
    """One JSON object per line: `time` (ISO 8601, UTC), `level`, `logger`, `message`, `exception`.

    `exception` is the traceback, if there is one.
    """

    def format(self, record: logging.LogRecord) -> str:
        """See `JsonLines`."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up(*, as_json: bool = False, file: Path | None = None) -> None:
    """Log to standard error, from this process's first line on; call it in an entry point.

    as_json: `JsonLines`, also for warnings and uncaught exceptions.
    file: also log to this file. At `LIMIT_BYTES` it becomes `NAME.1`, and a new one begins.
    Raises SettingsError if the file can't be opened.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(RotatingFileHandler(file, maxBytes=LIMIT_BYTES, backupCount=1))
        except OSError as error:
            raise SettingsError(
                f"the log {file} can't be opened ({error}); choose another --log-file"
            ) from error
    for handler in handlers:
        handler.setFormatter(JsonLines() if as_json else logging.Formatter(TEXT))
    logging.basicConfig(level=logging.INFO, handlers=handlers)
    if as_json:
        logging.captureWarnings(True)
        sys.excepthook = lambda kind, error, trace: logging.critical(
            "uncaught exception", exc_info=(kind, error, trace)
        )
        threading.excepthook = lambda gone: logging.critical(
            "uncaught exception in a thread", exc_info=gone.exc_value
        )


def end(problem: str) -> NoReturn:
    """End the process with exit code 1 and this problem as its last log line."""
    if any(isinstance(one.formatter, JsonLines) for one in logging.getLogger().handlers):
        logging.getLogger("volition").critical("%s", problem)
        sys.exit(1)
    sys.exit(f"error: {problem}")


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
