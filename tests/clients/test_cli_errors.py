"""What a user meets when a disk is full or a file is damaged: one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from streaming import sessions
from tests.clients.test_cli import volition
from training.simulate import simulate

ROOT = Path(__file__).parents[2]


def assert_one_clear_line(done: subprocess.CompletedProcess[str], *said: str) -> None:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr + done.stdout, done.stderr
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1, done.stderr
    for text in said:
        assert text in errors[0]


@pytest.fixture
def session(tmp_path: Path) -> Path:
    return sessions.save(simulate(n_units=8, minutes=1.0, subject=0, seed=0), tmp_path / "in")


@pytest.mark.parametrize("free_kb", [1000, 16])
def test_pretraining_on_a_full_disk_is_one_error(
    session: Path, full_disk: Path, free_kb: int
) -> None:
    (full_disk / "filler").write_bytes(bytes(2**20 - 2**10 * free_kb))
    done = volition("pretrain", str(session), "--steps", "2", "-o", str(full_disk / "run"))
    assert_one_clear_line(done, "No space left", "make room")


@pytest.mark.parametrize("verb", ["simulate", "pretrain"])
def test_a_read_only_disk_is_one_error(session: Path, full_disk: Path, verb: str) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(full_disk)], check=True)
    arguments = {
        "simulate": ("--units", "8", "--minutes", "1"),
        "pretrain": (str(session), "--steps", "1"),
    }[verb]
    done = volition(verb, *arguments, "-o", str(full_disk / "out"))
    assert_one_clear_line(done, "Read-only file system")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"schema_version": ' + "1" * 5000 + "}", "[" * 100_000, '{"preset": 1}'],
    ids=["empty", "cut", "list", "long-number", "deep", "fields"],
)
def test_a_damaged_run_is_one_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(content)
    done = volition("export", str(tmp_path / "run"), "-o", str(tmp_path / "out.bundle"))
    assert_one_clear_line(done, "run.json")
    assert len(done.stderr) < 2000


@pytest.mark.parametrize("arguments", [
    ("score", "{folder}"),
    ("evaluate", "{folder}/x.bundle", "{folder}", "--report", "/proc/none/page.html"),
    ("bundle", "{folder}/\0"),
    ("bundle", "{long}"),
    ("import", "{folder}"),
])  # fmt: skip
def test_a_path_that_no_command_can_use_is_one_error(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    given = [a.format(folder=tmp_path, long="x" * 5000).replace("\0", "") for a in arguments]
    done = volition(*given)
    assert_one_clear_line(done)


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    code = (
        "from clients import cli\n"
        "@cli.app.command('broken')\n"
        "def broken() -> None:\n"
        "    {}['missing']\n"
        "import sys; sys.argv = ['volition', 'broken']; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert "KeyError: 'missing'" in done.stderr
