"""`volition rig` is stopped: nothing goes on behind it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.rig import running, wait_for


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_rig_leaves_no_process_behind(tmp_path: Path, number: signal.Signals) -> None:
    home = tmp_path / "kept"
    with running(
        tmp_path / "rig.log", "rig", "--seed", "1", "--seed", "2", "--jobs", "2", "-o", str(home)
    ) as rig:
        tasks = [home / f"seed-{seed}" / "trials.jsonl" for seed in (1, 2)]
        wait_for("trials of both", lambda: all(task.exists() for task in tasks))
        assert len(with_argument(str(home))) >= 4  # at least a server and a task each
        assert rig.stop(number) == 130, rig.output()
    wait_for("the end of all", lambda: not with_argument(str(home)))


def with_argument(text: str) -> list[str]:
    """Command lines and environments of the processes that have it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            about = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in about:
            found.append(process.name)
    return found
