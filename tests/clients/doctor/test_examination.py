"""A check that raises, hangs or crashes is a failure of its own line, and the others go on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clients.doctor.checks.__main__ import WHERE
from clients.doctor.examination import LIMITS_S, examine
from clients.doctor.finding import Asked, Finding, received
from tests.rig import wait_for


def test_every_check_has_a_limit_and_a_place() -> None:
    assert set(WHERE) == set(LIMITS_S)


def test_a_check_beyond_its_limit_is_a_failure_and_the_others_go_on() -> None:
    began = time.monotonic()
    found = examine(["timer", "cpu"], Asked(), limits_s=LIMITS_S | {"timer": 0.01})
    (late,) = found["timer"]
    assert (late.state, late.found) == ("failure", "no result within 0.01 s")
    assert found["cpu"][0].name == "processors"
    assert time.monotonic() - began < LIMITS_S["cpu"]


def test_a_check_that_raises_says_where() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RAISES], capture_output=True, text=True, check=True
    )
    (finding,) = received(done.stdout)
    assert (finding.state, finding.name) == ("failure", "cpu")
    assert "OSError: the disk [is] gone" in finding.found
    assert "failed at <string>:3" in finding.found


_RAISES = """
import os
def gone(*_): raise OSError("the disk [is] gone")
os.getloadavg = gone
from clients.doctor.checks.__main__ import findings_of
from clients.doctor.finding import Asked, send
send(findings_of("cpu", Asked()))
"""


def test_findings_survive_the_way_between_processes() -> None:
    finding = Finding(name="a", state="warning", found="é [b] \n", do="c")
    line = json.dumps([{"name": "a", "state": "warning", "found": "é [b] \n", "do": "c"}])
    assert received(f"a library says hello\n{line}\n") == [finding]
    for wrong in ("", "hello", "[1]", '[{"who": 1}]'):
        with pytest.raises(ValueError, match=r".*"):
            received(wrong)


def test_ctrl_c_ends_it_quietly_with_its_children(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "clients", "doctor"],
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    wait_for("children", lambda: len(group(process.pid)) > 2)
    os.kill(process.pid, signal.SIGINT)  # the command alone
    assert process.wait(60) == 130
    wait_for("their end", lambda: not group(process.pid))
    assert "Traceback" not in (tmp_path / "log").read_text()


def group(leader: int) -> list[int]:
    """Processes of a group that still run."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            state, _, its_group = file.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == leader and state != "Z":
                found.append(int(file.parent.name))
    return found
