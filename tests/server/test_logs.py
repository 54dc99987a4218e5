"""The logs of a server and its daemon as JSON lines."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx

from clients.harness.server import Server
from tests.server.conftest import POSSM

LSL = re.compile(r"^[-\d]+ [\d:.]+ \(\s*[\d.]+s\) \[.*\].*\| ")  # liblsl's own lines


def test_a_server_and_its_daemon_log_json(tmp_path: Path) -> None:
    file = tmp_path / "own" / "server.log"
    more = {"VOLITION_LOG_JSON": "true", "VOLITION_LOG_FILE": str(file)}
    with Server(POSSM, tmp_path / "home", "nobody", **more) as server:
        assert httpx.get(f"{server.url}/health/live").status_code == 200
    text = (tmp_path / "home" / "server.log").read_text()
    lines = [json.loads(line) for line in text.splitlines() if not LSL.match(line)]
    assert {"volition.server", "uvicorn.error"} <= {line["logger"] for line in lines}
    assert any("started daemon" in line["message"] for line in lines)
    assert [json.loads(line) for line in file.read_text().splitlines()] == lines
    text = (tmp_path / "home" / "logs" / "daemon.log").read_text()
    lines = [json.loads(line) for line in text.splitlines() if line and not LSL.match(line)]
    assert "stopped after" in lines[-1]["message"]
    assert {line["logger"] for line in lines} == {"volition.decode"}
