"""Every error that Volition raises on purpose.

VolitionError
├── SessionError          a recording on disk can't be read, or isn't what it says
│   └── ImportFailedError a foreign file (NWB, XDF) can't become a session
├── BundleError           a decoder bundle is missing, damaged or of another version
├── ProviderError         ONNX Runtime can't run where it was asked to run
├── StreamError           an LSL stream isn't there or isn't described as the contract says
├── TrainingError         pretraining can't start or go on
└── SettingsError         a setting is out of range or contradicts another

A message says what was seen, what was expected and what to do. In the tick loop a lost
stream is a state (`stale`), never an exception. A message is one line: `brief` makes one of what
a library says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

LONGEST = 300  # characters of somebody else's message
N_SHOWN = 3  # fields that are wrong


class VolitionError(Exception):
    """Base of every error that a user can act on. Its message is one line, whatever it quotes."""

    def __str__(self) -> str:
        return _printable(super().__str__())


class SessionError(VolitionError):
    """A recording on disk can't be read, or isn't what it says."""


class ImportFailedError(SessionError):
    """A foreign file (NWB, XDF) can't become a session."""


class BundleError(VolitionError):
    """A decoder bundle is missing, damaged or of another version."""


class ProviderError(VolitionError):
    """ONNX Runtime can't run where it was asked to run."""


class StreamError(VolitionError):
    """An LSL stream isn't there or isn't described as the contract says."""


class TrainingError(VolitionError):
    """Pretraining can't start or go on."""


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
    """The fields that pydantic refused, in one line: where, why, what was seen."""
    said = []
    for problem in error.errors(include_url=False, include_context=False)[:N_SHOWN]:
        where = brief(".".join(str(part) for part in problem["loc"]), 60)
        what = problem["msg"].removeprefix("Value error, ")
        if problem["type"] != "value_error":  # those name what they saw themselves
            what += f", got {brief(repr(problem['input']), 60)}"
        said.append(f"{where}: {what}" if where else what)
    if more := error.error_count() - N_SHOWN:
        said += [f"and {more} more"] if more > 0 else []
    return brief("; ".join(said), 3 * LONGEST)
