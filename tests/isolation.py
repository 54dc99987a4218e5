"""Isolates tests that run at the same time: an LSL session per process, and shared files."""

from __future__ import annotations

import atexit
import configparser
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from decoder.files import replacing

Make = Callable[[Path], None]


def own_lsl_session() -> None:
    """Hide this process's streams, and its children's, from every other process.

    LSL finds only streams of its own session id. The rest of the configuration that LSLAPICFG
    names stays as it is. liblsl reads it once, when a process first uses LSL: call this before.
    """
    config = configparser.ConfigParser(interpolation=None, strict=False)
    config.optionxform = str  # type: ignore[assignment]  # liblsl tells "SessionID" from "sessionid"
    config.read(os.environ.get("LSLAPICFG", ""))
    if not config.has_section("lab"):
        config.add_section("lab")
    config["lab"]["SessionID"] = f"tests-{uuid.uuid4().hex}"
    folder = Path(tempfile.mkdtemp(prefix="volition-lsl-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with (folder / "lsl_api.cfg").open("w") as file:
        config.write(file)
    os.environ["LSLAPICFG"] = str(folder / "lsl_api.cfg")


def made_once(common: Path, name: str, make: Make) -> Path:
    """A folder made by the first worker that asks for it; the others wait."""
    folder = common / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            with replacing(folder) as partial:
                partial.mkdir()
                make(partial)
    return folder
