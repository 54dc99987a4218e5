"""What a user reads of an error."""

from __future__ import annotations

import pytest

from decoder.errors import VolitionError, brief


@pytest.mark.parametrize("odd", ["\n", "\r", "\x1b[2J", "\u2028", "\0", "\udcff"])
def test_an_error_is_one_line_that_can_be_printed_whatever_it_quotes(odd: str) -> None:
    said = str(VolitionError(f"stream 'a{odd}b': no such stream"))
    assert said.startswith("stream 'a")
    assert said.endswith("b': no such stream")
    assert said.isprintable()


def test_what_can_be_printed_is_left_as_it_is() -> None:
    said = "my  folder/Größe µm: no such file"
    assert str(VolitionError(said)) == said


def test_a_librarys_message_is_short_and_one_line() -> None:
    assert brief(ValueError("first\n   second")) == "first second"
    assert brief(ValueError()) == "ValueError"
    assert len(brief("x" * 10_000, 60)) == 61
