"""Bundles: a written bundle opens again; a damaged one is refused with the reason."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from safetensors.numpy import load_file, save_file

from decoder.bundles.bundle import open_bundle, write
from decoder.bundles.manifest import GRAPH, MANIFEST, TABLES, WEIGHTS, checksum
from decoder.errors import BundleError, TrainingError
from training.pretraining.runs import load_model


@pytest.fixture
def copy(tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.bundle.path, tmp_path / "copy.bundle"))


def edit_manifest(path: Path, *, seal: bool = True, **changes: object) -> None:
    """Change a manifest, by default with a new checksum, as another program would."""
    content = json.loads((path / MANIFEST).read_text()) | changes
    if seal:
        content["checksums"][MANIFEST] = checksum(content)
    (path / MANIFEST).write_text(json.dumps(content))


def of_an_earlier_version(path: Path) -> Path:
    """Remove what bundles of earlier versions do not have."""
    content = json.loads((path / MANIFEST).read_text())
    del content["checksums"][MANIFEST]
    (path / MANIFEST).write_text(json.dumps(content))
    return path


def set_deep(content: dict, where: str, value: object) -> dict:
    """A copy of nested dictionaries and lists with the value at a path like `a.0.b` set."""
    content = json.loads(json.dumps(content))
    *path, last = (int(part) if part.isdigit() else part for part in where.split("."))
    inner = content
    for part in path:
        inner = inner[part]
    inner[last] = value
    return content


def test_a_bundle_opens_with_its_units_and_outputs(tiny) -> None:
    opened = open_bundle(tiny.bundle.path)
    assert opened.manifest.unit_ids == tiny.session.unit_ids
    assert [output.name for output in opened.manifest.outputs] == ["vel_x", "vel_y"]
    assert opened.tables.tokens.shape[0] == tiny.session.n_units


def test_nothing_in_a_bundle_is_pickled(tiny) -> None:
    """Every byte of each file belongs to its format, and there are no other files."""
    path = tiny.bundle.path
    assert {p.name for p in path.iterdir()} == {GRAPH, MANIFEST, TABLES, WEIGHTS}
    json.loads((path / MANIFEST).read_text())
    onnx.checker.check_model(onnx.load(path / GRAPH))
    for name in (TABLES, WEIGHTS):
        content = (path / name).read_bytes()
        header_size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + header_size])
        header.pop("__metadata__", None)
        assert header, f"{name} holds nothing"
        n_bytes = max(entry["data_offsets"][1] for entry in header.values())
        assert len(content) == 8 + header_size + n_bytes, f"{name} holds more than tensors"


@pytest.mark.parametrize("name", [TABLES, WEIGHTS])
def test_a_pickle_in_a_bundle_is_refused_and_not_executed(copy: Path, name: str) -> None:
    """Even if every checksum matches."""
    ran = copy.parent / "ran"
    (copy / name).write_bytes(pickle.dumps(_Runs(str(ran))))
    sums = json.loads((copy / MANIFEST).read_text())["checksums"]
    sums[name] = hashlib.sha256((copy / name).read_bytes()).hexdigest()
    edit_manifest(copy, checksums=sums)
    if name == TABLES:
        with pytest.raises(BundleError, match=r"tables\.safetensors: can't be read"):
            open_bundle(copy)
    else:  # weights are only read when they are adapted; until then the checksum counts
        with pytest.raises(TrainingError, match="can't be read"):
            load_model(copy)
    assert not ran.exists()


class _Runs:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", [GRAPH, TABLES, WEIGHTS])
def test_a_changed_byte_is_detected(copy: Path, name: str) -> None:
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


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("outputs.0.scale", 9.1008),
        ("outputs.1.offset", 0.25),
        ("unit_ids.3", "another"),
        ("sizes.t_min", 0.5),
        ("decoder_id", "another"),
    ],
)
def test_a_changed_value_in_the_manifest_is_detected(copy: Path, where: str, value: object) -> None:
    content = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps(set_deep(content, where, value)))
    with pytest.raises(BundleError, match=r"manifest\.json has sha256 .* changed or damaged"):
        open_bundle(copy)


def test_a_reformatted_manifest_opens(copy: Path) -> None:
    content = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps(content, indent=7, sort_keys=True))
    assert open_bundle(copy).is_sealed


def test_a_bundle_of_an_earlier_version_opens_with_a_warning(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        opened = open_bundle(of_an_earlier_version(copy))
    assert not opened.is_sealed
    assert "earlier version" in caplog.text


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("outputs.0.scale", 1e308, "outputs.0.scale.*1e.308"),
        ("outputs.0.scale", 1000.0, "outputs.0.scale"),
        ("outputs.0.scale", 0.0, "outputs.0.scale"),
        ("outputs.1.offset", -1e9, "outputs.1.offset"),
        ("outputs.0.unit", "cm/s", "outputs.0.unit.*m/s"),
        ("outputs.0.name", "vel_y", "vel_x and vel_y"),
        ("sizes.dim_out", 3, "dim_out"),
        ("sizes.dim_head", 10**9, "dim_head"),
        ("sizes.t_min", 1e-300, "t_min"),
        ("unit_ids", [f"unit{i}" for i in range(100_001)], "unit_ids"),
        ("metrics", {"r2": float("inf")}, "metrics"),
    ],
)
def test_a_value_out_of_range_is_named(copy: Path, where: str, value: object, said: str) -> None:
    content = set_deep(json.loads((copy / MANIFEST).read_text()), where, value)
    edit_manifest(copy, **content)
    with pytest.raises(BundleError, match=said) as refused:
        open_bundle(copy)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    ("family", "sizes", "said"),
    [
        ("poyo", {"sequence_length": 3600.0}, "sequence_length"),
        ("poyo", {"latent_step": 10.0}, "0 latents"),
        ("poyo", {"num_latents_per_step": 10**6}, "num_latents_per_step"),
        ("poyo", {"dim_head": 4096}, "values per spike"),
        ("possm", {"chunk_s": 1e-9}, "chunk_s"),
        ("possm", {"chunk_s": 1e-3, "warm_up_s": 9.0}, "9000 steps"),
        ("possm", {"warm_up_s": 1e-3}, "a window of 0.001 s"),
        ("possm", {"hidden": 10**7}, "hidden"),
    ],
)
def test_sizes_that_exceed_time_or_memory_are_named(
    tiny, copy: Path, family: str, sizes: dict, said: str
) -> None:
    if tiny.bundle.manifest.family != family:
        pytest.skip("for another family")
    edit_manifest(copy, sizes=tiny.bundle.manifest.sizes.model_dump() | sizes)
    with pytest.raises(BundleError, match=said):
        open_bundle(copy)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, '{"schema_version": ' + "1" * 5000 + "}", "\ud800"]
)
def test_an_unreadable_manifest_is_an_error_of_one_line(copy: Path, text: str) -> None:
    (copy / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(BundleError, match="not readable as JSON") as refused:
        open_bundle(copy)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000


def test_a_manifest_of_hundreds_of_megabytes_is_not_read(copy: Path) -> None:
    with (copy / MANIFEST).open("r+b") as file:
        file.truncate(2**40)  # a sparse file
    with pytest.raises(BundleError, match="expected at most"):
        open_bundle(copy)


@pytest.mark.parametrize("place", ["initializer", "constant", "subgraph", "function"])
def test_a_graph_with_external_data_is_refused(copy: Path, place: str) -> None:
    """ONNX Runtime would load the file, which no checksum covers."""
    model = onnx.load(copy / GRAPH)
    tensor = TensorProto(name="outside", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="outside.bin")
    np.ones(4, dtype=np.float32).tofile(copy / "outside.bin")
    constant = onnx.helper.make_node("Constant", [], ["outside"], value=tensor)
    if place == "initializer":
        model.graph.initializer.append(tensor)
    elif place == "constant":
        model.graph.node.append(constant)
    elif place == "subgraph":
        inner = onnx.helper.make_graph([constant], "inner", [], [])
        model.graph.node.append(
            onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
        )
    else:
        model.functions.append(
            onnx.helper.make_function(
                "own", "f", [], ["outside"], [constant], [onnx.helper.make_opsetid("", 23)]
            )
        )
    onnx.save(model, copy / GRAPH)
    sums = json.loads((copy / MANIFEST).read_text())["checksums"]
    sums[GRAPH] = hashlib.sha256((copy / GRAPH).read_bytes()).hexdigest()
    edit_manifest(copy, checksums=sums)
    with pytest.raises(BundleError, match="another file, which no checksum covers"):
        open_bundle(copy)


def test_a_full_disk_leaves_the_old_bundle_unchanged(tiny, copy: Path, full_disk: Path) -> None:
    earlier = shutil.copytree(copy, full_disk / "today.bundle")
    with pytest.raises(BundleError, match=r"can't be written .*No space left"):
        write(
            earlier,
            manifest=tiny.bundle.manifest,
            graph=tiny.bundle.graph_path,
            tables=tiny.bundle.tables,
            weights={"many": np.zeros(10**6)},
        )
    assert open_bundle(earlier).manifest == tiny.bundle.manifest
    assert [p.name for p in full_disk.iterdir()] == [earlier.name]


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_an_invalid_manifest_is_refused(copy: Path, content: str) -> None:
    (copy / MANIFEST).write_text(content)
    with pytest.raises(BundleError):
        open_bundle(copy)


@pytest.mark.parametrize("damage", ["shape", "nan"])
def test_tables_of_the_wrong_shape_or_with_nan_are_refused(
    copy: Path, tiny, tmp_path: Path, damage: str
) -> None:
    tables = load_file(copy / TABLES)
    tokens = tables["tokens"][:-1] if damage == "shape" else np.full_like(tables["tokens"], np.nan)
    save_file(tables | {"tokens": np.ascontiguousarray(tokens)}, copy / TABLES)
    sums = dict(tiny.bundle.manifest.checksums)
    sums[TABLES] = hashlib.sha256((copy / TABLES).read_bytes()).hexdigest()
    edit_manifest(copy, checksums=sums)
    with pytest.raises(BundleError, match="tokens"):
        open_bundle(copy)


def test_a_folder_that_is_not_a_bundle_is_never_replaced(tiny, tmp_path: Path) -> None:
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


def test_replacing_a_bundle_leaves_no_temporary_files(tiny, copy: Path) -> None:
    again = write(
        copy,
        manifest=tiny.bundle.manifest.model_copy(update={"decoder_id": "second"}),
        graph=tiny.bundle.graph_path,
        tables=tiny.bundle.tables,
        weights=load_file(copy / WEIGHTS),
    )
    assert again.manifest.decoder_id == "second"
    assert [p.name for p in copy.parent.iterdir()] == [copy.name]


def test_the_graph_has_no_scatter_nodes(tiny) -> None:
    """Rotations are exported as arithmetic; in-place writes make a decode three times slower."""
    import onnx

    kinds = {node.op_type for node in onnx.load(tiny.bundle.graph_path).graph.node}
    assert {"MatMul", "Softmax"} <= kinds
    assert not {kind for kind in kinds if kind.startswith("Scatter")}


def test_the_graph_contains_no_path_of_the_machine_that_made_it(tiny) -> None:
    content = tiny.bundle.graph_path.read_bytes()
    assert b"site-packages" not in content
    assert str(Path(__file__).parent.parent.parent).encode() not in content
