"""A live calibration by `instant`: the new decoder takes over soon after the last sample."""

from __future__ import annotations

from pathlib import Path

import pytest

from clients.benches.recalibration import identifying, recalibrate
from server.schemas import CalibrationRequest
from streaming.sessions import format as sessions
from tests.rig import Pace

SECONDS = 20.0
WITHIN_S = 3.0  # on a machine that does nothing else, see docs/RECALIBRATION.md


@pytest.mark.slow  # pretrains for minutes
@pytest.mark.timing
def test_an_instant_calibration_takes_over_within_seconds_and_costs_no_tick(
    tmp_path: Path,
) -> None:
    bundle, today = identifying(tmp_path, "stream")
    with Pace() as pace:
        flow = recalibrate(
            bundle, sessions.load(today), CalibrationRequest(seconds=SECONDS, method="instant"),
            tmp_path / "flow", before_s=SECONDS, after_s=1.0,
        )  # fmt: skip
    result = flow.as_dict()
    assert result["state"] == "promoted", flow.calibration
    assert result["took_s"] < WITHIN_S + 2 * pace.worst_s, result["phases_s"]
    before, during = result["ticks_before"], result["ticks_during"]
    assert during["missed"] <= max(3, 2 * before["missed"]), (during, before)
    assert result["changes_of_decoder"] == 1
