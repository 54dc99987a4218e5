"""Names of units of length and speed, as streams and files write them.

Each reader decides whether a unit may be missing, and what to do about pixels.
"""

from __future__ import annotations

import re

_METRES = {
    1.0: "m meter meters metre metres mtr",
    1e3: "km kilometer kilometers kilometre kilometres",
    1e-1: "dm decimeter decimeters decimetre decimetres",
    1e-2: "cm centimeter centimeters centimetre centimetres",
    1e-3: "mm millimeter millimeters millimetre millimetres",
    1e-6: "um µm μm micron microns micrometer micrometers micrometre micrometres",
    0.0254: "in inch inches",
    0.3048: "ft foot feet",
}
_SECONDS = {
    1.0: "s sec secs second seconds",
    1e-3: "ms msec msecs millisecond milliseconds",
    60.0: "min minute minutes",
}
_METRES_OF = {word: metres for metres, words in _METRES.items() for word in words.split()}
_SECONDS_OF = {word: seconds for seconds, words in _SECONDS.items() for word in words.split()}
_NOTHING = frozenset(
    ("", "unknown", "unspecified", "undefined", "none", "null", "nan", "na", "n/a", "-", "?")
)
KNOWN = "m, cm, mm, m/s, cm/s, mm/s (or written out)"  # for messages


def metres_in(word: str) -> float | None:
    """Metres, or metres per second, in one `word` (`cm`, `Metres`, `mm/s`, `meters per second`).

    Returns None if the word is not a unit of length or speed: `pixels`, `deg`, `unknown`, or empty.
    """
    length, rate = _parts(word)
    metres = _METRES_OF.get(length)
    if metres is None or rate is None:
        return metres
    seconds = _SECONDS_OF.get(rate)
    return None if seconds is None else metres / seconds


def is_speed(word: str) -> bool:
    """Whether `word` is a unit of speed."""
    return metres_in(word) is not None and _parts(word)[1] is not None


def says_nothing(word: str) -> bool:
    """Whether `word` means that the unit is unknown (empty, `unknown`, `n/a`)."""
    return _plain(word) in _NOTHING


def _plain(word: str) -> str:
    return " ".join(word.strip().strip("[]()").lower().split())


def _parts(word: str) -> tuple[str, str | None]:
    """The unit of length, and the unit of time that it is divided by, if any."""
    plain = _plain(word).replace("⁻¹", "^-1").replace("−", "-")
    if match := re.fullmatch(r"(\w+)(?:[ ·*.]|\\cdot )*?(s|sec|ms)\*{0,2}\^?\(?-1\)?", plain):
        return match[1].rstrip("_"), match[2]
    length, slash, rate = re.sub(r"\s*(/|\bper\b)\s*", "/", plain).partition("/")
    return length, rate if slash else None
