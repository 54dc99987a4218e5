"""Packages that are old, doubled or broken are named: a folder comes before the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clients.doctor.examined import ROOT, Examined, doctor


def installed(folder: Path, name: str, version: str) -> None:
    """Make a distribution look installed, as pip leaves it."""
    about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def examined(folder: Path) -> Examined:
    return doctor("--only", "packages", PYTHONPATH=f"{folder}:{ROOT}")


def test_two_builds_of_onnx_runtime_are_a_failure(tmp_path: Path) -> None:
    installed(tmp_path, "onnxruntime", "1.23.0")
    installed(tmp_path, "onnxruntime-gpu", "1.23.1")
    seen = examined(tmp_path)
    assert seen.code == 1
    found = seen.line("ONNX Runtime")["found"]
    assert "onnxruntime 1.23.0 and onnxruntime-gpu 1.23.1 are installed side by side" in found
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in seen.line("ONNX Runtime")["do"]


def test_an_old_package_is_a_failure_and_one_of_an_extra_a_warning(tmp_path: Path) -> None:
    installed(tmp_path, "pylsl", "1.16.0")
    installed(tmp_path, "scikit-learn", "0.9")
    seen = examined(tmp_path)
    assert seen.code == 1
    assert "pylsl is 1.16.0, expected >=1.18.6" in seen.line("dependencies")["found"]
    assert seen.line("extra train")["state"] == "warning"
    assert "scikit-learn is 0.9" in seen.line("extra train")["found"]
    assert "volition[train]" in seen.line("extra train")["do"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("raise ImportError('libfoo.so.2: cannot open [shared] file')", "[shared]"),
        ("import os; os.abort()", "crashed (SIGABRT)"),
        ("raise SystemExit(3)", "exit code 3"),
    ],
)
def test_a_library_that_does_not_load_is_a_failure(
    tmp_path: Path, content: str, named: str
) -> None:
    (tmp_path / "onnxruntime.py").write_text(content)
    seen = examined(tmp_path)
    assert seen.code == 1
    (line,) = [line for line in seen.about["findings"] if line["state"] == "failure"]
    assert named in line["found"]


def test_checks_that_need_a_broken_package_say_so_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('libgfortran: not found')")
    path = f"{tmp_path}:{ROOT}"
    seen = doctor("--only", "packages", "--only", "network", "--only", "lsl", PYTHONPATH=path)
    assert seen.code == 1
    assert "numpy (ImportError: libgfortran: not found)" in seen.line("libraries")["found"]
    assert "libgfortran" in seen.line("lsl")["found"]
    assert "packages" in seen.line("lsl")["do"]
    assert seen.line("multicast route")
