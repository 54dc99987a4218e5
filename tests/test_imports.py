"""Who may import whom, read from the sources; the map in docs/ARCHITECTURE.md; no torch live."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests import rooms, twin
from tests.rooms import MAX_FILES, MAX_LINES, PACKAGES, ROOT

# package -> what it may import from other packages: a whole package, a room or a module
ALLOWED = {
    "decoder": set(),
    "streaming": {"decoder"},
    "training": {
        "decoder",
        "streaming.columns",
        "streaming.faults",
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
# In a package a room imports only from rooms on the lines above its own.
LAYERS = {
    "decoder": [
        {"decoder"},
        {"decoder.bundles", "decoder.memory"},
        {"decoder.runtimes"},
    ],
    "streaming": [
        {"streaming"},
        {"streaming.inlets", "streaming.sessions"},
        {"streaming.recording", "streaming.wire"},
        {"streaming.daemon"},
    ],
    "training": [
        {"training.baselines", "training.conversion", "training.models"},
        {"training.data", "training.importers"},
        {"training.pretraining"},
        {"training.exports"},
        {"training.evaluation"},
        {"training.calibration"},
        {"training.studies", "training.days"},
    ],
    "server": [
        {"server"},
        {"server.store", "server.access"},
        {"server.supervision"},
        {"server.calibration"},
        {"server.unattended", "server.dashboard"},
        {"server.monitoring"},
        {"server.api"},
    ],
    "clients": [
        {"clients", "clients.participant"},
        {"clients.harness", "clients.task"},
        {"clients.benches", "clients.doctor", "clients.reports", "clients.rig"},
        {"clients.doctor.checks"},
        {"clients.cli"},
    ],
}
NUMPY_ONLY = ("training.data.simulate",)  # the one module of training that needs no torch


def imports_at_top(path: Path) -> set[str]:
    """The modules that a file imports when it is loaded."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_a_package_imports_only_what_it_may() -> None:
    for module, path in rooms.modules().items():
        package = module.split(".")[0]
        for name in rooms.imported_names(path):
            other = name.split(".")[0]
            if other in PACKAGES and other != package:
                allowed = any(name == ok or name.startswith(f"{ok}.") for ok in ALLOWED[package])
                assert allowed, f"{module} imports {name}"


def test_clients_import_training_only_inside_functions() -> None:
    for module, path in rooms.modules().items():
        if module.split(".")[0] == "clients":
            heavy = {n for n in imports_at_top(path) if n.startswith("training.")}
            heavy = {name for name in heavy if not name.startswith(NUMPY_ONLY)}
            assert not heavy, f"{module}: import {heavy} inside a function"


def test_a_room_imports_only_from_the_layers_below_it() -> None:
    graph = rooms.room_graph()
    for package, layers in LAYERS.items():
        listed = set().union(*layers)
        used = {room for room in graph if room.split(".")[0] == package and rooms.files_of(room)}
        assert listed == used, package
        for number, layer in enumerate(layers):
            below = set().union(*layers[:number])
            for room in layer:
                mine = {other for other in graph[room] if other.split(".")[0] == package}
                assert mine <= below, f"{room} imports {mine - below}"


def test_modules_and_rooms_have_no_circles() -> None:
    assert rooms.circle(rooms.module_graph()) == []
    assert rooms.circle(rooms.room_graph()) == []


def test_rooms_and_files_are_small() -> None:
    for room in rooms.room_graph():
        assert len(rooms.files_of(room)) <= MAX_FILES, room
        assert rooms.sentence_of(room), f"{room}/__init__.py says what the room is for"
    for module, path in rooms.modules().items():
        assert len(path.read_text().splitlines()) <= MAX_LINES, module


def test_the_map_is_drawn_from_the_imports() -> None:
    text = rooms.PAGE.read_text()
    assert rooms.page_with_map(text) == text, "run: python -m tests.rooms"


def test_the_blocking_client_is_generated_from_the_asyncio_one() -> None:
    assert twin.TARGET.read_text() == twin.blocking(), "run: python -m tests.twin"


def test_decoder_and_streaming_never_name_torch() -> None:
    for module, path in rooms.modules().items():
        if module.split(".")[0] in ("decoder", "streaming"):
            torches = [n for n in rooms.imported_names(path) if n.split(".")[0] == "torch"]
            assert not torches, module


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
def test_the_modules_that_serve_a_rig_load_without_torch(module: str) -> None:
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
