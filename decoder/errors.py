"""The exceptions that Volition raises.

VolitionError
├── SessionError          a recording on disk is unreadable or not what it claims to be
│   └── ImportFailedError an NWB or XDF file can't be converted to a session
├── BundleError           a decoder bundle is missing, damaged or of another version
├── ProviderError         ONNX Runtime can't use the requested provider
├── StreamError           an LSL stream is missing or violates the stream contract
├── TrainingError         training can't start or continue
└── SettingsError         a setting is out of range or contradicts another

A message has what was seen, what was expected and what to do next, in one line; `brief` shortens a
library's message to one line. In the tick loop a lost stream is a state (`stale`), never an
exception.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

LONGEST = 300  # characters of a library's message
N_SHOWN = 3  # invalid fields


class VolitionError(Exception):
    """Base of every error that a user can act on. Its message is always printable, in one line."""

    def __str__(self) -> str:
        return _printable(super().__str__())


class SessionError(VolitionError):
    """A recording on disk is unreadable or not what it claims to be."""


class ImportFailedError(SessionError):
    """An NWB or XDF file can't be converted to a session."""


class BundleError(VolitionError):
    """A decoder bundle is missing, damaged or of another version."""


class ProviderError(VolitionError):
    """ONNX Runtime can't use the requested provider."""


class StreamError(VolitionError):
    """An LSL stream is missing or violates the stream contract."""


class TrainingError(VolitionError):
    """Training can't start or continue."""


class SettingsError(VolitionError):
    """A setting is out of range or contradicts another."""


def brief(error: Exception | str, longest: int = LONGEST) -> str:
    """A library's message in one line, cut off at `longest` characters."""
    text = " ".join(str(error).split())
    if not text and isinstance(error, Exception):
        text = type(error).__name__
    text = _printable(text[:longest])
    return text if len(text) < longest else f"{text[:longest]}…"


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(map(_printable_character, text))


def _printable_character(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]


def invalid_fields(error: ValidationError) -> str:
    """The fields that pydantic refused, in one line, each with its location, reason and value."""
    said = []
    for problem in error.errors(include_url=False, include_context=False)[:N_SHOWN]:
        where = brief(".".join(str(part) for part in problem["loc"]), 60)
        what = problem["msg"].removeprefix("Value error, ")
        if problem["type"] != "value_error":  # our own validators include the value
            what += f", got {brief(repr(problem['input']), 60)}"
        said.append(f"{where}: {what}" if where else what)
    if more := error.error_count() - N_SHOWN:
        said += [f"and {more} more"] if more > 0 else []
    return brief("; ".join(said), 3 * LONGEST)
