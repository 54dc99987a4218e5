"""Verbs that act on a running server: units, note."""

from __future__ import annotations

from typing import Annotated

import typer

from clients.cli.options import DEFAULT_URL, Json, ServerUrl, Token, terminal

verbs = typer.Typer()


@verbs.command(epilog="Example: volition units --exclude probe1/7 --include probe1/3")
def units(
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Leave this unit's spikes out; repeatable."),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Decode this unit's spikes again; repeatable."),
    ] = None,
    url: ServerUrl = DEFAULT_URL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """List the stream's units; exclude some from decoding, or include them again."""
    from clients.control import ControlClient
    from clients.reports.units import print_units, units_patch

    body = units_patch(exclude or [], include or [])
    with ControlClient(url, token=token) as client:
        found = client.change_units(body) if exclude or include else client.units()
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        print_units(terminal(), found)


@verbs.command(epilog='Example: volition note "electrode 12 came loose, fixed"')
def note(
    text: Annotated[str, typer.Argument(help="At most 500 characters.")],
    url: ServerUrl = DEFAULT_URL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Write a note into the journal and, over LSL, into every recording."""
    from pydantic import ValidationError

    from clients.control import ControlClient
    from decoder.errors import SettingsError, invalid_fields

    with ControlClient(url, token=token) as client:
        try:
            written = client.note(text)
        except ValidationError as error:
            raise SettingsError(invalid_fields(error)) from error
    if as_json:
        print(written.model_dump_json(indent=2))
    else:
        terminal().print(f"noted at {written.at.astimezone():%H:%M:%S}")
