"""Labels and pins of decoders: one JSON file next to each bundle, whose own files never change."""

from __future__ import annotations

from pathlib import Path

import msgspec

from decoder.errors import VolitionError, brief
from decoder.files import write_text

SUFFIX = ".json"
LONGEST = 10_000  # bytes of a file


class Marks(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator says about a decoder. pinned: it must not be deleted.

    problem: why the file can't be read. Until it is written again, the decoder counts as pinned.
    """

    label: str = ""
    pinned: bool = False
    problem: str | None = None


class MarksError(VolitionError):
    """The label and the pin of a decoder can't be written."""


def read_marks(bundle: Path) -> Marks:
    """The marks of a bundle; without a file, none."""
    path = file_of(bundle)
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST)
        return msgspec.structs.replace(msgspec.json.decode(text, type=Marks), problem=None)
    except FileNotFoundError:
        return Marks()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        problem = f"{path}: label and pin can't be read ({brief(error)}); set both again"
        return Marks(pinned=True, problem=problem)


def write_marks(bundle: Path, marks: Marks) -> None:
    """Write the marks of a bundle atomically. Raises MarksError."""
    text = msgspec.json.encode({"label": marks.label, "pinned": marks.pinned}).decode()
    write_text(file_of(bundle), text, MarksError)


def file_of(bundle: Path) -> Path:
    """The file of a bundle's marks: `ID.json` next to `ID.bundle`."""
    return bundle.with_name(bundle.stem + SUFFIX)
