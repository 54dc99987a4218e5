"""The lsl_api.cfg that the doctor names is the one that liblsl says it loaded."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from clients.doctor.checks.config import DEFAULTS, SYSTEM, find, parse

GOOD = "[lab]\nSessionID = {}\n"
LOAD = (
    "import pylsl; o = pylsl.StreamOutlet(pylsl.StreamInfo('config', 'Doctor', 1, 0, 1, 'config'));"
    "print(o.get_info().session_id())"
)


def loaded(environment: dict[str, str], folder: Path) -> tuple[Path | None, str]:
    """The file that liblsl says it loaded, and its session id."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD], capture_output=True, text=True, check=True, cwd=folder,
        env={k: v for k, v in os.environ.items() if k not in ("LSLAPICFG", "HOME")} | environment,
    )  # fmt: skip
    named = re.search(r"Configuration loaded from (.*)", done.stderr)
    return (folder / named[1] if named else None), done.stdout.strip()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"home": GOOD}, "home"),
        ({"home": GOOD, "here": GOOD}, "here"),
        ({"home": GOOD, "here": GOOD, "variable": GOOD}, "variable"),
        ({"home": GOOD, "variable": "[lab\nSessionID = x\n"}, "home"),
        ({"home": GOOD, "here": "[lab]\nSessionID\n"}, "home"),
        ({"home": GOOD, "here": "[lab]\nSessionID =\n"}, "home"),
        ({"home": GOOD, "here": GOOD + "SessionID = x\n"}, "home"),
        ({"home": GOOD, "here": GOOD + "# no comment\n"}, "home"),
        ({"home": GOOD, "here": GOOD + "; a comment\n\n  \n"}, "here"),
        ({"home": GOOD, "here": GOOD + "[multicast]\nResolveScope = planet\n"}, "home"),
        ({"home": GOOD, "here": "[Lab]\nSessionID = {}\n"}, "here"),
    ],
)
def test_it_is_the_file_that_liblsl_loads(
    files: dict[str, str], expected: str | None, tmp_path: Path
) -> None:
    if SYSTEM.exists():
        pytest.skip(f"this machine has {SYSTEM}")
    here, home = tmp_path / "here", tmp_path / "home"
    paths = {
        "here": here / "lsl_api.cfg",
        "home": home / "lsl_api" / "lsl_api.cfg",
        "variable": tmp_path / "named.cfg",
    }
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        paths[name].write_text(content.format(name))
    environment = {"HOME": str(home)}
    if "variable" in files:
        environment["LSLAPICFG"] = str(paths["variable"])
    path, session = loaded(environment, here)
    config, problems = find(environment, here)
    assert (config.path if config else None) == path
    assert path == (paths[expected] if expected else None)
    keys = DEFAULTS | (config.keys if config else {})
    assert keys["lab.SessionID"] == session
    passed_over = [paths[name] for name in files if name in ("variable", "here")]
    passed_over = [p for p in passed_over if config is None or p != config.path]
    if expected == "home":
        assert [p for p in passed_over if not any(str(p) in said for said in problems)] == []


def test_keys_in_the_wrong_case_are_unknown_to_liblsl(tmp_path: Path) -> None:
    (tmp_path / "lsl_api.cfg").write_text("[lab]\nsessionid = x\n[tuning]\nTimeProbeCount = 9\n")
    config, problems = find({"HOME": str(tmp_path)}, tmp_path)
    assert config is not None
    assert (config.changes, config.unknown, problems) == ({}, ["lab.sessionid"], [])


@pytest.mark.parametrize("text", ["SessionID", "= x", "[lab", "[a]\nb = 1\nb = 2"])
def test_what_liblsl_passes_over_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"line|twice"):
        parse(text)
