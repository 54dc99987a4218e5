"""A full disk, a damaged file or Ctrl-C gives the user one line, not a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from clients.subscriber import CursorSubscriber
from streaming.sessions import format as sessions
from tests.clients.test_cli import volition
from tests.rig import daemon, frames_until, wait_for
from tests.streaming.test_live import is_decoding, stream_of
from training.data.simulate import simulate

ROOT = Path(__file__).parents[2]
one_family = pytest.mark.parametrize("tiny", ["poyo"], indirect=True)  # any decoder will do


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


@pytest.mark.parametrize("free_kb", [pytest.param(1000, marks=pytest.mark.slow), 16])
def test_pretraining_on_a_full_disk_is_one_error(
    session: Path, full_disk: Path, free_kb: int
) -> None:
    (full_disk / "filler").write_bytes(bytes(2**20 - 2**10 * free_kb))
    done = volition("pretrain", str(session), "--steps", "2", "-o", str(full_disk / "run"))
    assert_one_clear_line(done, "No space left", "free some space")


@pytest.mark.parametrize("verb", ["simulate", "pretrain"])
def test_a_read_only_disk_is_one_error(session: Path, full_disk: Path, verb: str) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(full_disk)], check=True)
    arguments = {
        "simulate": ("--units", "8", "--minutes", "1"),
        "pretrain": (str(session), "--steps", "1"),
    }[verb]
    done = volition(verb, *arguments, "-o", str(full_disk / "out"))
    assert_one_clear_line(done, "Read-only file system")


@one_family
@pytest.mark.parametrize("disk", ["full", "read-only"])
def test_an_evaluation_whose_report_cannot_be_written_is_one_error(
    tiny, full_disk: Path, disk: str
) -> None:
    if disk == "full":
        (full_disk / "filler").write_bytes(bytes(2**20 - 2**13))
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(full_disk)], check=True)
    page = full_disk / "page.html"
    done = volition(
        "evaluate", str(tiny.bundle.path), str(tiny.session_path), "--report", str(page)
    )
    assert_one_clear_line(done, "page.html", "free some space or choose another folder")
    assert not page.exists()


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
        "from clients.cli import main as cli\n"
        "@cli.app.command('broken')\n"
        "def broken() -> None:\n"
        "    {}['missing']\n"
        "import sys; sys.argv = ['volition', 'broken']; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert "KeyError: 'missing'" in done.stderr


@pytest.mark.parametrize(
    "verb", ["simulate", pytest.param("pretrain", marks=pytest.mark.slow), "watch", "replay"]
)
def test_ctrl_c_at_any_moment_prints_no_traceback(session: Path, tmp_path: Path, verb: str) -> None:
    """Four moments, from the first import on to well into the work."""
    arguments = {
        "simulate": ("--units", "96", "--minutes", "10", "-o", str(tmp_path / "out")),
        "pretrain": (str(session), "--minutes", "5", "--workers", "1", "-o", str(tmp_path / "run")),
        "watch": ("--address", "ipc:///tmp/volition-nobody"),
        "replay": (str(session), "--score", "--address", "ipc:///tmp/volition-nobody"),
    }[verb]
    for moment in range(4):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "clients", verb, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        time.sleep(0.15 * 3**moment)  # the moment is what is tested
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        said, _ = process.communicate(timeout=300)
        ours = said.replace(f"{ROOT}/.venv/", "")  # before our first line Python prints its own
        assert str(ROOT) not in ours, (moment, said)


def test_ctrl_c_ends_a_recording_that_waits_for_its_streams(tmp_path: Path) -> None:
    absent = f"nobody-{uuid.uuid4().hex}"
    process = subprocess.Popen(
        [sys.executable, "-m", "clients", "record", "-o", str(tmp_path), "--spikes", absent],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    maps = Path(f"/proc/{process.pid}/maps")
    wait_for("the search", lambda: "liblsl" in maps.read_text() and process.poll() is None)
    time.sleep(1.0)  # into the search, which takes 10 s
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "error:" not in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_in_an_import_or_a_destructor_is_not_lost(tmp_path: Path) -> None:
    """Python drops an exception in a destructor, and an import may turn it into another."""
    (tmp_path / "slow_library.py").write_text(
        "import os, signal\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    for _ in range(1000): pass\n"
        "except BaseException:\n"
        "    os.abort()  # as a library in C++ does\n"
    )
    program = """
import os, signal, sys
from clients import __main__
from clients.cli import main as cli

class Handle:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)

def verb():
    if sys.argv[1] == "import":
        import slow_library
    else:
        handle = Handle()
        del handle
    while True:
        pass

cli.app = verb
__main__.main()
"""
    for moment in ("import", "destructor"):
        ended = subprocess.run(
            [sys.executable, "-c", program, moment], cwd=tmp_path, timeout=60,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
            capture_output=True, text=True,
        )  # fmt: skip
        assert ended.returncode == 130, (moment, ended)
        assert not ended.stderr, (moment, ended)


@one_family
def test_a_replay_prints_its_score_if_the_daemon_ends_first(tiny, tmp_path: Path) -> None:
    with (
        daemon(tmp_path, tiny.bundle.path, stream_of(tiny)) as (process, address),
        CursorSubscriber(address) as cursor,
    ):
        frames_until(cursor, lambda frame: frame.state in ("warming", "ready"))
        replay = subprocess.Popen(
            [sys.executable, "-m", "clients", "replay", str(tiny.session_path),
             "--score", "--json", "--address", address],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        first = frames_until(cursor, is_decoding)[-1]
        frames_until(cursor, lambda frame: frame.seq > first.seq + 300)
        process.popen.send_signal(signal.SIGKILL)
        said, errors = replay.communicate(timeout=300)
    assert replay.returncode == 1
    assert "the daemon ended" in errors
    assert "Traceback" not in errors
    assert json.loads(said)["scored_frames"] > 100
