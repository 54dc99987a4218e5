"""Shared by all verbs: common options, consoles, and settings from options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

if TYPE_CHECKING:
    from pydantic_settings import BaseSettings

    from streaming.sessions.session import Split


S = TypeVar("S", bound="BaseSettings")

Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]

LogJson = Annotated[
    bool | None, typer.Option("--log-json", help="Log in JSON, one object per line.")
]

OutDir = Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")]

Address = Annotated[str, typer.Option(help="ZeroMQ address of the daemon.")]

CalibrationMethod = Annotated[
    str,
    typer.Option(help="auto, instant, align, units, units+head, full, scratch, kalman or ridge."),
]

ServerUrl = Annotated[str, typer.Option(help="URL of the server.")]

Token = Annotated[str | None, typer.Option(envvar="VOLITION_TOKEN", help="The server's token.")]

Kinematics = Annotated[
    str | None, typer.Option(help="Name of the LSL stream (default: the only one of its type).")
]

Markers = Annotated[
    str | None, typer.Option(help="Name of the LSL stream (default: the only one).")
]

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_ADDRESS = "tcp://127.0.0.1:5556"


def terminal(stderr: bool = False) -> Any:
    """A Rich console, imported when it is needed. It prints [brackets] in names literally."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False)


def styled(*parts: str | tuple[str, str]) -> Any:
    """A Rich text of plain parts and (text, style) pairs."""
    from rich.text import Text

    return Text.assemble(*parts)


def require_training() -> None:
    """Raise TrainingError if torch is not installed."""
    from importlib.util import find_spec

    from decoder.errors import TrainingError

    if find_spec("torch") is None:
        raise TrainingError("this verb needs torch; install it with: pip install 'volition[train]'")


def settings_from(kind: type[S], given: dict[str, Any]) -> S:
    """Settings from the given options, then from the sources of `kind`. Raises SettingsError."""
    from pydantic import ValidationError

    from decoder.errors import SettingsError, invalid_fields

    try:
        return kind(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise SettingsError(invalid_fields(error)) from error


def split_named(name: str) -> Split:
    """A split by its name. Raises SettingsError."""
    from decoder.errors import SettingsError

    if name not in ("all", "train", "valid", "test"):
        raise SettingsError(f"split {name!r}; expected all, train, valid or test")
    return cast("Split", name)
