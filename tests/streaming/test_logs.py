"""Log lines as JSON: one object per line, whatever is logged, and files that stay small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from decoder.errors import SettingsError
from streaming import logs

ROOT = Path(__file__).parents[2]
EVERYTHING = """
import logging, threading, warnings
from streaming import logs

logs.set_up(as_json=True)
log = logging.getLogger("volition.test")
log.info("%d spikes, \\u00b5V\\nand a second line", 3)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("it failed")
warnings.warn("old", DeprecationWarning)
thread = threading.Thread(target=lambda: [][1])
thread.start()
thread.join()
raise RuntimeError("the end")
"""
MANY = """
import logging, pathlib, sys
from streaming import logs

logs.LIMIT_BYTES = 1000
logs.set_up(as_json=sys.argv[2] == "json", file=pathlib.Path(sys.argv[1]))
for number in range(200):
    logging.getLogger("volition.test").info("line %d", number)
"""


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "always", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
        check=False,
    )


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_every_kind_of_message_is_one_object() -> None:
    done = python("-c", EVERYTHING)
    assert done.returncode == 1
    first, failed, warned, in_thread, last = lines_of(done.stderr)
    assert (first["level"], first["logger"]) == ("info", "volition.test")
    assert first["message"] == "3 spikes, µV\nand a second line"
    assert "exception" not in first
    time = datetime.fromisoformat(first["time"])
    assert time.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - time) < timedelta(minutes=5)
    assert (failed["level"], failed["message"]) == ("error", "it failed")
    assert failed["exception"].endswith("ZeroDivisionError: division by zero")
    assert (warned["level"], warned["logger"]) == ("warning", "py.warnings")
    assert "IndexError" in in_thread["exception"]
    assert last["level"] == "critical"
    assert last["exception"].endswith("RuntimeError: the end")


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_log_file_starts_again_at_its_limit(form: str, tmp_path: Path) -> None:
    path = tmp_path / "logs" / "server.log"
    done = python("-c", MANY, str(path), form)
    assert done.returncode == 0, done.stderr
    assert sorted(path.parent.iterdir()) == [path, path.with_name("server.log.1")]
    kept = path.with_name("server.log.1").read_text() + path.read_text()
    assert len(kept) <= 2000
    assert kept == done.stderr[-len(kept) :], "the newest lines, in order"
    assert ("line 199" in lines_of(kept)[-1]["message"]) if form == "json" else (
        kept.endswith(" volition.test line 199\n")
    )  # fmt: skip


def test_a_log_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--log-file"):
        logs.set_up(file=tmp_path)


@pytest.mark.parametrize("as_json", ["true", "false"])
def test_a_daemon_that_cannot_start_says_why_in_the_same_form(as_json: str, tmp_path: Path) -> None:
    done = python("-m", "streaming.daemon", "decode", str(tmp_path), VOLITION_LOG_JSON=as_json)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    if as_json == "true":
        assert "no manifest.json" in json.loads(line)["message"]
    else:
        assert line.startswith("error: ")
        assert "no manifest.json" in line
