"""`volition units`: the order that its options give, and a table of the stream's units."""

from __future__ import annotations

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from decoder.errors import SettingsError, invalid_fields
from server.units import Units, UnitsPatch


def units_patch(exclude: list[str], include: list[str]) -> UnitsPatch:
    """The order to exclude and to include units. Raises SettingsError."""
    try:
        return UnitsPatch(exclude=exclude, include=include)
    except ValidationError as error:
        raise SettingsError(invalid_fields(error)) from error


def print_units(console: Console, found: Units) -> None:
    """One line per unit, and the excluded ids that the stream does not have."""
    if found.stream is None:
        console.print("no stream is open")
    else:
        n_known = sum(unit.known for unit in found.units)
        table = Table("unit", "in the decoder", "decoded", "fault", box=None)
        for unit in found.units:
            decoded = "excluded" if unit.excluded else "yes" if unit.known else "no"
            table.add_row(
                Text(unit.id),
                "yes" if unit.known else "no",
                Text(decoded, style="bold red" if unit.excluded else ""),
                Text(unit.fault or "", style="yellow"),
            )
        console.print(table)
        console.print(
            Text(f"{found.stream}: {len(found.units)} units, {n_known} known to the decoder")
        )
    here = {unit.id for unit in found.units}
    if elsewhere := [unit_id for unit_id in found.excluded if unit_id not in here]:
        console.print(Text(f"also excluded, not in the stream: {', '.join(elsewhere)}"))
