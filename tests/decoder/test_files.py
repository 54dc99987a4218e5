"""Atomic writes: the new content is complete and on disk, or the old content remains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from decoder.errors import BundleError
from decoder.files import replacing, write_text


def test_replacing_a_file_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "file.txt", "first")
    write_text(tmp_path / "new" / "file.txt", "second")
    assert (tmp_path / "new" / "file.txt").read_text() == "second"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["file.txt"]


def test_replacing_a_folder_leaves_no_temporary_folder(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with replacing(tmp_path / "folder") as partial:
            partial.mkdir()
            (partial / content).write_text(content)
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["second"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_the_old_file_stays_if_the_writer_fails(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "first")
    with pytest.raises(UnicodeEncodeError), replacing(path) as partial:
        partial.write_text("half\ud800")
    assert path.read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_a_full_disk_raises_the_error_class_of_the_writer(full_disk: Path) -> None:
    path = full_disk / "file.txt"
    write_text(path, "first")
    with pytest.raises(
        BundleError, match=r"file\.txt: can't be written .*No space left.*unchanged"
    ):
        write_text(path, "x" * 4_000_000, BundleError)
    assert path.read_text() == "first"
    assert [p.name for p in full_disk.iterdir()] == ["file.txt"]


def test_the_old_file_stays_if_the_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "first")
    code = (
        "import sys, time; from pathlib import Path; from decoder.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as partial:\n"
        "    partial.write_text('half'); print('writing', flush=True); time.sleep(60)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"writing\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert path.read_text() == "first"


def test_files_are_synced_before_the_rename_and_names_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut can't be tested, so the calls that guard against it are recorded."""
    calls: list[str] = []
    fsync, rename = os.fsync, os.replace

    def listen(handle: int) -> None:
        calls.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name.split(".")[-1])
        fsync(handle)

    def also(source: Path, target: Path) -> None:
        calls.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", listen)
    monkeypatch.setattr(os, "replace", also)
    with replacing(tmp_path / "made.folder") as partial:
        partial.mkdir()
        (partial / "one.a").write_text("a")
        (partial / "two.b").write_text("b")
    assert sorted(calls[:2]) == ["a", "b"]
    assert calls[2:] == ["partial", "rename", tmp_path.name.split(".")[-1]]
