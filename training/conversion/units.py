"""Units of length in a file: unit words, the conversion factor, and `--unit` to override them."""

from __future__ import annotations

import math
import re

from decoder.errors import ImportFailedError
from streaming.lengths import is_speed, metres_in, says_nothing

ARBITRARY = frozenset(
    (
        "a.u.", "a.u", "au", "arb", "arb.", "arbitrary", "arbitrary unit", "arbitrary units",
        "normalized", "normalised", "dimensionless", "unitless",
    )
)  # fmt: skip
EXPECTED = "m, cm, mm, another unit of length, or metres per unit (such as 0.00026 for a pixel)"
_SPIKE_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}


def parse_length_unit(unit: str) -> float:
    """Metres per unit, from the value of `--unit`: a word or a number."""
    metres = metres_in(unit)
    if metres is None:
        try:
            metres = float(unit)
        except ValueError:
            metres = math.nan
    if is_speed(unit) or not (math.isfinite(metres) and metres > 0):
        raise ImportFailedError(f"unit {unit!r}; expected {EXPECTED}")
    return metres


def parse_time_unit(unit: str) -> float:
    """Seconds per unit of spike times, from `--spike-unit`: `ms`, `us`, or samples per second."""
    try:
        seconds = _SPIKE_UNITS[unit] if unit in _SPIKE_UNITS else 1.0 / float(unit)
    except (ValueError, ZeroDivisionError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise ImportFailedError(
            f"spike unit {unit!r}; expected s, ms, us, or samples per second (such as 30000)"
        )
    return seconds


def is_arbitrary(word: str) -> bool:
    """Whether a unit word means arbitrary units."""
    plain = word.strip().strip("[]()").lower()
    return plain.partition("/")[0].strip() in ARBITRARY


def units_in(text: str) -> dict[str, float]:
    """Units of length named in a description (`where (mm)`, `in cm`), with metres per unit."""
    found = re.findall(r"[(\[]\s*([^()\[\]]+?)\s*[)\]]|\bin ([\w/]+)", text.lower())
    words = [word for pair in found for word in pair if word]
    return {word: metres for word in words if (metres := metres_in(word)) is not None}


def metres_per_unit(
    word: str, conversion: float, *, speed: bool, override: str | None, what: str, notes: list[str]
) -> float:
    """Metres (or m/s) per unit of the file, after its conversion and offset.

    word: the file's unit. override: `--unit`, which overrides it. what: the series, for messages.
    Raises ImportFailedError if neither gives the unit.
    """
    if override is not None:
        metres = parse_length_unit(override)
        if metres_in(word) != metres:
            notes.append(f"{what}: unit {override} from --unit; the file has {word!r}")
        return metres
    if is_arbitrary(word):
        notes.append(f"{what} is in arbitrary units ({word!r}); imported unchanged")
        return 1.0
    stated = metres_in(word)
    if stated is None or (is_speed(word) and not speed):
        problem = "has no unit" if says_nothing(word) else f"is in {word!r}"
        raise ImportFailedError(
            f"{what} {problem}; expected a unit of {'speed' if speed else 'length'}. "
            f"Give it with --unit: {EXPECTED}"
        )
    if conversion != 1.0 and math.isclose(conversion, stated):
        raise ImportFailedError(
            f"{what} has the unit {word!r} and a conversion of {conversion:g}, which already "
            f"converts {word} to SI units: are the converted values in SI units or in {word}? "
            "Choose with --unit"
        )
    if speed and not is_speed(word):
        notes.append(f"{what} has {word!r} as its unit of speed; read as {word} per second")
    if stated != 1.0:
        notes.append(f"{what} converted from {word}")
    return stated
