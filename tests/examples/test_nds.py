"""A stranger's stack: neural-data-simulator's spikes, behaviour stream and centre-out task."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def nds_python() -> str:
    """An interpreter that has neural-data-simulator (docs/NDS.md)."""
    python = os.environ.get("VOLITION_NDS_PYTHON", "")
    if not Path(python).is_file():
        pytest.skip("no neural-data-simulator; VOLITION_NDS_PYTHON names no interpreter with it")
    return python


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_its_task_is_steered_after_a_calibration_from_its_streams(
    nds_python: str, tmp_path: Path
) -> None:
    loop = [sys.executable, "examples/nds/loop.py", nds_python, "-o", str(tmp_path)]
    ran = subprocess.run(
        [*loop, "--trials", "8"], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)
    assert result["calibration"]["state"] == "promoted", result["calibration"]
    assert result["live"]["r2"] > 0.5, result["live"]
    steered = result["steered"]
    assert steered["valid"] > 0.9, steered
    assert steered["reaches"] == 8
    assert steered["acquired"] >= 5, steered
