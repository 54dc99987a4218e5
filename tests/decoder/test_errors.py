"""The text of an error as a user sees it."""

from __future__ import annotations

import pytest

from decoder.errors import VolitionError, brief


@pytest.mark.parametrize("odd", ["\n", "\r", "\x1b[2J", "\u2028", "\0", "\udcff"])
def test_an_error_message_is_one_printable_line(odd: str) -> None:
    said = str(VolitionError(f"stream 'a{odd}b': no such stream"))
    assert said.startswith("stream 'a")
    assert said.endswith("b': no such stream")
    assert said.isprintable()


def test_printable_text_is_unchanged() -> None:
    said = "my  folder/Größe µm: no such file"
    assert str(VolitionError(said)) == said


def test_a_library_message_is_shortened_to_one_line() -> None:
    assert brief(ValueError("first\n   second")) == "first second"
    assert brief(ValueError()) == "ValueError"
    assert len(brief("x" * 10_000, 60)) == 61
