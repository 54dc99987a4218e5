"""Names of units of length, as people write them."""

from __future__ import annotations

import pytest

from streaming.lengths import is_speed, metres_in, says_nothing


@pytest.mark.parametrize(
    ("words", "metres"),
    [
        (("m", "M", "meter", "meters", "metre", "Metres", " [m] "), 1.0),
        (("cm", "CM", "centimeter", "centimeters", "centimetre", "Centimetres", "(cm)"), 1e-2),
        (("mm", "millimeters", "millimetre"), 1e-3),
        (("um", "µm", "μm", "microns"), 1e-6),
        (("m/s", "m / s", "meters/second", "metres per second", "m*s^-1", "m s-1", "m·s⁻¹"), 1.0),
        (("cm/s", "centimeters/sec", "cm.s^-1", "cm per s", "cm s**-1"), 1e-2),
        (("mm/s", "millimetres per second"), 1e-3),
        (("mm/ms",), 1.0),
        (("inches",), 0.0254),
    ],
)
def test_units_of_length_and_speed_are_recognised(words: tuple[str, ...], metres: float) -> None:
    assert {word: metres_in(word) for word in words} == pytest.approx(dict.fromkeys(words, metres))


@pytest.mark.parametrize("word", ["pixels", "px", "deg", "furlong", "m/fortnight", "a.u.", "ms"])
def test_other_words_are_not_lengths(word: str) -> None:
    assert metres_in(word) is None
    assert not says_nothing(word)


@pytest.mark.parametrize("word", ["", " ", "unknown", "Unknown", "N/A", "none"])
def test_placeholders_name_no_unit(word: str) -> None:
    assert metres_in(word) is None
    assert says_nothing(word)


def test_speeds_are_distinguished_from_lengths() -> None:
    assert is_speed("cm/s")
    assert is_speed("m s-1")
    assert not is_speed("cm")
    assert not is_speed("pixels/s")
