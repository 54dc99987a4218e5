"""The options of an import: they supply or override what a file states."""

from __future__ import annotations

from dataclasses import dataclass

from decoder.errors import ImportFailedError
from training.conversion.units import parse_length_unit, parse_time_unit


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of an import, as `import_recording` takes them."""

    position: str | None = None
    velocity: str | None = None
    unit: str | None = None
    columns: tuple[int, int] | None = None
    spike_unit: str | None = None
    spikes_outside: bool = False

    def check(self) -> None:
        """Raise ImportFailedError if an option is invalid."""
        if self.unit is not None:
            parse_length_unit(self.unit)
        if self.spike_unit is not None:
            parse_time_unit(self.spike_unit)
        if self.columns is not None and (
            0 in self.columns or abs(self.columns[0]) == abs(self.columns[1])
        ):
            raise ImportFailedError(
                f"--columns {self.columns}; expected two different columns, counted from 1"
            )
        if self.position == self.velocity == NONE:
            raise ImportFailedError(
                "--position none and --velocity none leave no kinematics; drop one of them"
            )

    def names_anything(self) -> bool:
        """Whether the options name a series, columns or a unit of time."""
        given = (self.position, self.velocity, self.columns, self.spike_unit)
        return any(value is not None for value in given)


NONE = "none"  # value of --position and --velocity: import no such series
