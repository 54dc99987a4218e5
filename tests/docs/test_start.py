"""The five-minute start of docs/START.md: its commands, in order, as a newcomer types them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.rig import wait_for

ROOT = Path(__file__).parent.parent.parent
PORTS = (8000, 5556, 5557)  # of the server and its daemon, if nothing else is asked for
LIMIT_S = 400  # for a busy machine; a quiet one takes less than two minutes
FENCED = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """The lines of the fenced blocks."""
    blocks = FENCED.findall((ROOT / "docs" / "START.md").read_text(encoding="utf-8"))
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the files that git knows or would add, with this environment as its `.venv`."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git, or not a clone")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True).stdout
    folder = tmp_path / "clone"
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    venv = folder / ".venv"
    venv.mkdir(exist_ok=True)
    (venv / "bin").symlink_to(Path(sys.prefix) / "bin")
    for made in (".base", ".ready"):  # so `make` installs nothing into this environment
        (venv / made).touch()
    return folder


def environment(checkout: Path, home: Path) -> dict[str, str]:
    """What a login shell has, and where this test's LSL streams are visible."""
    home.mkdir()
    kept = {name: os.environ[name] for name in ("LSLAPICFG",) if name in os.environ}
    return kept | {
        "HOME": str(home),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(checkout),  # the environment's own editable install is of another folder
    }


def own_network() -> list[str]:
    """A prefix that runs a command in a network of its own, without any other; [] if there is none.

    So the default ports are free, and nothing is downloaded unnoticed.
    """
    ip, unshare = shutil.which("ip"), shutil.which("unshare")
    if ip is None or unshare is None:
        return []
    loopback = f"{ip} link set lo up && {ip} link set lo multicast on"
    multicast = f"{ip} route add 224.0.0.0/4 dev lo"
    inside = [unshare, "--net", "--map-root-user", "bash", "-c"]
    prefix = [*inside, f'{loopback} && {multicast} && exec "$@"', "bash"]
    tried = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    return prefix if tried.returncode == 0 else []


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 60)
def test_every_command_of_the_five_minute_start_succeeds(checkout: Path, tmp_path: Path) -> None:
    if missing := [tool for tool in ("bash", "make", "curl") if shutil.which(tool) is None]:
        pytest.skip(f"no {', '.join(missing)}")
    prefix = own_network()
    if not prefix and (taken := [port for port in PORTS if not _is_free(port)]):
        pytest.skip(f"something else uses the default ports {taken}, and there is no unshare or ip")
    told = commands()
    assert "make demo" in told
    assert any(line.startswith("volition calibrate") for line in told)
    failed = "trap 'echo \"FAILED: $BASH_COMMAND\"' ERR"
    script = ["set -eo pipefail", failed, *told, "echo ALL DONE"]
    log = tmp_path / "log.txt"
    with log.open("w") as output:
        shell = subprocess.Popen(
            [*prefix, "bash", "--noprofile", "--norc", "-c", "\n".join(script)],
            cwd=checkout, env=environment(checkout, tmp_path / "home"),
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = shell.wait(LIMIT_S)
        finally:
            _end(shell)
    said = log.read_text()
    assert code == 0, said
    assert "ALL DONE" in said
    assert "is now decoding" in said, said  # the calibration was promoted
    assert _processes_of(checkout) == []  # server, daemon and replay ended with `kill` and `wait`


def _end(shell: subprocess.Popen[bytes]) -> None:
    """End whatever the commands left running; a server needs a moment to end its daemon."""
    with suppress(ProcessLookupError, AssertionError, subprocess.TimeoutExpired):
        os.killpg(shell.pid, signal.SIGTERM)
        shell.wait(30)
        wait_for("the end of all that it started", lambda: not _group_lives(shell.pid), 30.0)
    with suppress(ProcessLookupError):
        os.killpg(shell.pid, signal.SIGKILL)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _processes_of(folder: Path) -> list[str]:
    """Command lines of the processes that have a folder's path in theirs."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            found.append(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return [line for line in found if str(folder) in line]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
