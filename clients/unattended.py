"""`volition unattended`: shows, sets or freezes the recalibration that no operator asks for."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from clients.control import ControlClient
from decoder.errors import SettingsError, invalid_fields
from server.unattended.bodies import Unattended, UnattendedState

STYLES = {"off": "bold", "waiting": "bold green", "calibrating": "bold cyan", "frozen": "bold red"}


def unattended(
    console: Console, client: ControlClient, what: str | None, given: dict[str, Any], *,
    as_json: bool,
) -> None:  # fmt: skip
    """Carry out one order and print the state.

    what: `off`, `alarm`, a number of minutes, `freeze`, or None to change nothing.
    given: further settings; None for the defaults. Raises SettingsError.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if given and what in (None, "freeze"):
        raise SettingsError(f"{', '.join(given)}: give alarm, or a number of minutes, as well")
    if what is None:
        state = client.unattended()
    elif what == "freeze":
        state = client.freeze_unattended()
    else:
        state = client.set_unattended(settings_from(what, given))
    if as_json:
        print(state.model_dump_json(indent=2))
    else:
        print_state(console, state)


def settings_from(what: str, given: dict[str, Any]) -> Unattended:
    """The settings that an order asks for. Raises SettingsError."""
    when: dict[str, Any] = {"when": what}
    if what not in ("off", "alarm"):
        try:
            when = {"when": "every", "every_minutes": float(what)}
        except ValueError:
            raise SettingsError(
                f"{what!r}; expected alarm, a number of minutes, off or freeze"
            ) from None
    try:
        return Unattended(**(when | given))
    except ValidationError as error:
        raise SettingsError(invalid_fields(error)) from error


def print_state(console: Console, state: UnattendedState) -> None:
    """What it does, why, and when it is due."""
    settings = state.settings
    when = f"every {settings.every_minutes:g} min" if settings.when == "every" else settings.when
    console.print(Text.assemble((state.state, STYLES[state.state]), f": {state.why}"))
    console.print(f"{when}: {settings.seconds:g} s, method {settings.method}")
    if state.next_due is not None:
        console.print(f"next due {state.next_due.astimezone():%H:%M:%S}")
    if state.last is not None:
        console.print(f"last calibration {state.last}")
