"""Who may import whom, read from the sources (docs/ARCHITECTURE.md); no torch in the daemon."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("decoder", "streaming", "training", "server", "clients")
# importer -> what it may import of the other folders: a whole folder, or single modules.
ALLOWED = {
    "decoder": set(),
    "streaming": {"decoder"},
    "training": {
        "decoder",
        "streaming.columns",
        "streaming.lengths",
        "streaming.recording.markers",
        "streaming.recording.raw",
        "streaming.sessions",
        "streaming.units",
        "streaming.wire.lines",
    },
    "server": {"decoder", "streaming"},
    "clients": {"decoder", "streaming", "training", "server"},
}
# The training folder needs torch; clients may touch it only inside a function.
LAZY = {("clients", "training")}
NUMPY_ONLY = ("training.data.simulate",)  # that part of it needs none


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """Imported module names of a file, and whether each import stands at the top level."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names = [f"{module}.{a.name}" if module in FOLDERS else module for a in node.names]
        found += [(name, id(node) in top) for name in names]
    return found


SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_only_what_its_folder_may(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    for name, at_top in imports_of(path):
        other = name.split(".")[0]
        if other not in FOLDERS or other == folder:
            continue
        permitted = any(name == ok or name.startswith(f"{ok}.") for ok in ALLOWED[folder])
        assert permitted, f"{path.relative_to(ROOT)} imports {name}"
        lazy = (folder, other) in LAZY and not name.startswith(NUMPY_ONLY)
        assert not (at_top and lazy), f"{path}: import {name} inside a function"


def test_decoder_and_streaming_never_name_torch() -> None:
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] in ("decoder", "streaming"):
            assert not [n for n, _ in imports_of(path) if n.split(".")[0] == "torch"], path


@pytest.mark.parametrize(
    "module",
    [
        "streaming.daemon.loop",
        "streaming.recording.replay",
        "clients.watch",
        "clients.rig.command",
        "clients.participant.participant",
    ],
)
def test_what_serves_a_rig_loads_without_torch(module: str) -> None:
    code = f"import sys, {module}; assert 'torch' not in sys.modules, 'torch was loaded'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_daemon_opens_and_decodes_a_bundle_without_torch(tiny) -> None:
    code = (
        "import sys; from decoder.bundles.bundle import open_bundle; "
        "from decoder.runtimes.opening import *; "
        f"r = open_runtime(open_bundle({str(tiny.bundle.path)!r}), epoch=0.0); r.warm_up(); "
        "import streaming.daemon.loop; print(r.decode(1.0)); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
