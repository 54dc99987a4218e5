"""Bundles: what is written opens again; what was damaged is refused, and says why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from decoder.bundle import GRAPH, MANIFEST, TABLES, WEIGHTS, open_bundle, write
from decoder.errors import BundleError


@pytest.fixture
def copy(tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.bundle.path, tmp_path / "copy.bundle"))


def edit_manifest(path: Path, **changes: object) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(manifest | changes))


def test_a_bundle_opens_with_its_units_and_outputs(tiny) -> None:
    opened = open_bundle(tiny.bundle.path)
    assert opened.manifest.unit_ids == tiny.session.unit_ids
    assert [output.name for output in opened.manifest.outputs] == ["vel_x", "vel_y"]
    assert opened.tables.tokens.shape[0] == tiny.session.n_units


def test_nothing_in_a_bundle_is_pickled(tiny) -> None:
    assert {p.name for p in tiny.bundle.path.iterdir()} == {GRAPH, MANIFEST, TABLES, WEIGHTS}
    assert all(not p.read_bytes().startswith(b"\x80") for p in tiny.bundle.path.iterdir())


@pytest.mark.parametrize("name", [GRAPH, TABLES, WEIGHTS])
def test_a_changed_byte_is_noticed(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} has sha256"):
        open_bundle(copy)


@pytest.mark.parametrize("name", [GRAPH, TABLES, WEIGHTS, MANIFEST])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=name):
        open_bundle(copy)


def test_another_schema_version_is_refused(copy: Path) -> None:
    edit_manifest(copy, schema_version=99)
    with pytest.raises(BundleError, match="schema version 99, this Volition reads 1"):
        open_bundle(copy)


def test_an_unknown_field_in_the_manifest_is_refused(copy: Path) -> None:
    edit_manifest(copy, surprise=1)
    with pytest.raises(BundleError, match="surprise"):
        open_bundle(copy)


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_manifest_that_is_no_manifest_is_refused(copy: Path, content: str) -> None:
    (copy / MANIFEST).write_text(content)
    with pytest.raises(BundleError):
        open_bundle(copy)


@pytest.mark.parametrize("damage", ["shape", "nan"])
def test_tables_that_do_not_fit_are_refused(copy: Path, tiny, tmp_path: Path, damage: str) -> None:
    tables = load_file(copy / TABLES)
    tokens = tables["tokens"][:-1] if damage == "shape" else np.full_like(tables["tokens"], np.nan)
    save_file(tables | {"tokens": np.ascontiguousarray(tokens)}, copy / TABLES)
    import hashlib

    sums = dict(tiny.bundle.manifest.checksums)
    sums[TABLES] = hashlib.sha256((copy / TABLES).read_bytes()).hexdigest()
    edit_manifest(copy, checksums=sums)
    with pytest.raises(BundleError, match="tokens"):
        open_bundle(copy)


def test_a_folder_that_is_no_bundle_is_never_replaced(tiny, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(BundleError, match="is not a bundle"):
        write(
            tmp_path / "thesis",
            manifest=tiny.bundle.manifest,
            graph=tiny.bundle.graph_path,
            tables=tiny.bundle.tables,
            weights={},
        )
    assert (tmp_path / "thesis" / "chapter.txt").exists()


def test_writing_over_a_bundle_replaces_it_and_leaves_no_trace(tiny, copy: Path) -> None:
    again = write(
        copy,
        manifest=tiny.bundle.manifest.model_copy(update={"decoder_id": "second"}),
        graph=tiny.bundle.graph_path,
        tables=tiny.bundle.tables,
        weights=load_file(copy / WEIGHTS),
    )
    assert again.manifest.decoder_id == "second"
    assert [p.name for p in copy.parent.iterdir()] == [copy.name]


def test_the_graph_scatters_nothing(tiny) -> None:
    """Rotations are exported as arithmetic; in-place writes make a decode three times as long."""
    import onnx

    kinds = {node.op_type for node in onnx.load(tiny.bundle.graph_path).graph.node}
    assert {"MatMul", "Softmax"} <= kinds
    assert not {kind for kind in kinds if kind.startswith("Scatter")}


def test_the_graph_says_nothing_of_the_machine_that_made_it(tiny) -> None:
    content = tiny.bundle.graph_path.read_bytes()
    assert b"site-packages" not in content
    assert str(Path(__file__).parent.parent.parent).encode() not in content
