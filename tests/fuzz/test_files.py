"""A few mutated files of each kind; `python -m tests.fuzz KIND --count 20000` runs more."""

from __future__ import annotations

import pytest

from tests.fuzz import harness


@pytest.mark.parametrize("kind", ["session_files", "nwb_files", "xdf_files", "recordings"])
def test_damaged_files_are_imported_or_refused_in_one_line(kind: str) -> None:
    report = harness.run(kind, 25, seed=1)
    assert not report.failures, str(report)
    assert report.outcomes.total() == 25
