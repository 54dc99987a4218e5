"""Unit ids of streams."""

from __future__ import annotations

from streaming.units import repeated_units


def test_duplicate_unit_ids_are_listed() -> None:
    assert repeated_units(["a/1", "b/1"]) is None
    problem = repeated_units(["1", "2", "1", "2", "3"])
    assert problem is not None
    assert "2 unit ids name more than one unit ('1', '2')" in problem
    assert "of their own" in problem
