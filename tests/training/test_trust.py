"""The study of the promotion gate on a small scale: no harmful promotion on faulty data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clients.harness.daemon import BUNDLES
from training.studies.trust import FAULTS, study, summary, trials


@pytest.mark.soak
def test_no_promotion_on_faulty_data_is_harmful(tmp_path: Path) -> None:
    path = tmp_path / "trust.json"
    given = {"count": len(FAULTS), "steps": 2, "method": "ridge"}
    rows = study(BUNDLES / "possm.bundle", [], path, **given)  # type: ignore[arg-type]
    assert [row["fault"] for row in rows] == list(FAULTS)
    assert sum(row["harmful"] for row in rows) == 0
    wrong = {row["fault"]: row["answer"] for row in rows if row["fault"] != "none"}
    assert "promote" not in wrong.values(), wrong
    written = json.loads(path.read_text())
    assert written["summary"] == summary(rows)
    said: list[dict[str, object]] = []
    again = study(BUNDLES / "possm.bundle", [], path, say=said.append, **given)  # type: ignore[arg-type]
    assert not said, "finished calibrations were repeated"
    assert again == json.loads(json.dumps(rows))


def test_every_fault_is_combined_with_every_kind_of_active_decoder() -> None:
    met = {(trial.fault, trial.own) for trial in trials(120, 10)}
    assert len(met) == 2 * len(FAULTS)
