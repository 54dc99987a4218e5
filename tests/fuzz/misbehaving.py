"""A target that breaks every rule, to test the harness itself."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

import numpy as np

from decoder.errors import BundleError

KINDS = ("passes", "refuses", "raises", "talks", "crashes", "hangs", "grows")


def prepare(folder: Path) -> None:
    """Write one file for each kind of case."""
    for number, kind in enumerate(KINDS):
        (folder / str(number)).write_text(kind)


def case(folder: Path, rng: np.random.Generator, scratch: Path) -> None:
    number = int(rng.integers(len(KINDS)))
    match (folder / str(number)).read_text():
        case "refuses":
            raise BundleError("one line")
        case "raises":
            raise KeyError("a bug")
        case "talks":
            raise BundleError("a line without end, " * 100)
        case "crashes":
            ctypes.string_at(0)
        case "hangs":
            time.sleep(600)
        case "grows":
            np.ones(2**29)
