"""Mutated bundles of every family: refused in one line, or opened and able to decode.

For half of the cases the checksums are recomputed, as by a program that writes bad bundles, so that
the content is checked too. Random bytes in a graph are left to the checksum: ONNX Runtime may crash
on them, so they must be detected before it opens the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from decoder.bundles.bundle import open_bundle
from decoder.bundles.manifest import GRAPH, MANIFEST, TABLES, WEIGHTS, checksum
from tests.fuzz.mutate import Rng, mutate_bytes, mutate_json

SHIPPED = Path(__file__).parents[2] / "clients" / "demo_data"


def prepare(folder: Path) -> None:
    """Copy the shipped bundles, and fit both linear decoders to a simulated session."""
    from training.baselines.linear import fit_linear
    from training.data.simulate import simulate

    for path in SHIPPED.glob("*.bundle"):
        shutil.copytree(path, folder / path.name)
    session = simulate(n_units=20, minutes=1.0, subject=0, seed=0)
    fit_linear(session, "ridge", folder / "ridge.bundle")
    fit_linear(session, "kalman", folder / "kalman.bundle")


def case(folder: Path, rng: Rng, scratch: Path) -> None:
    """Damage a copy of a bundle in one way, open it, decode with it."""
    from decoder.runtimes.opening import open_runtime
    from decoder.runtimes.proof import prove

    originals = sorted(folder.glob("*.bundle"))
    bundle = scratch / "damaged.bundle"
    bundle.mkdir()
    original = originals[int(rng.integers(len(originals)))]
    for file in original.iterdir():
        os.link(file, bundle / file.name)
    DAMAGE[int(rng.integers(len(DAMAGE)))](bundle, rng, originals)
    runtime = open_runtime(open_bundle(bundle), epoch=0.0)
    prove(runtime, epoch=0.0)


def _manifest_content(bundle: Path, rng: Rng, originals: list[Path]) -> None:
    content = json.loads((bundle / MANIFEST).read_text())
    own = content["checksums"].pop(MANIFEST)
    text = mutate_json(content, rng)
    try:
        changed = json.loads(text)
        sums = changed["checksums"]
        if rng.random() < 0.8:
            sums[MANIFEST] = checksum(changed)
        elif rng.random() < 0.8:
            sums[MANIFEST] = own
        text = json.dumps(changed)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass  # written as it is
    _write(bundle / MANIFEST, text.encode("utf-8", "surrogatepass"))


def _manifest_bytes(bundle: Path, rng: Rng, originals: list[Path]) -> None:
    _write(bundle / MANIFEST, mutate_bytes((bundle / MANIFEST).read_bytes(), rng))


def _tables_bytes(bundle: Path, rng: Rng, originals: list[Path]) -> None:
    content = (bundle / TABLES).read_bytes()
    if rng.random() < 0.5:  # the header, which holds the structure
        size = 8 + int.from_bytes(content[:8], "little")
        content = mutate_bytes(content[:size], rng) + content[size:]
    _write(bundle / TABLES, mutate_bytes(content, rng, at_most=2))
    _seal(bundle, rng)


def _tables_content(bundle: Path, rng: Rng, originals: list[Path]) -> None:
    from safetensors.numpy import load_file, save_file

    tables = load_file(bundle / TABLES)
    name = list(tables)[int(rng.integers(len(tables)))]
    value = tables.pop(name)
    match int(rng.integers(6)):
        case 0:
            pass
        case 1:
            tables[name] = value.astype(np.float16)
        case 2:
            tables[name] = np.ascontiguousarray(value[:-1])
        case 3:
            tables[name] = value * np.array(10.0 ** rng.uniform(0, 38), dtype=value.dtype)
        case 4:
            tables[name] = np.where(rng.random(value.shape) < 0.01, np.nan, value).astype(
                value.dtype
            )
        case _:
            tables[name] = value.reshape(-1)
    (bundle / TABLES).unlink()
    save_file(tables, bundle / TABLES)
    _seal(bundle, rng, always=True)


def _weights_bytes(bundle: Path, rng: Rng, originals: list[Path]) -> None:
    _write(bundle / WEIGHTS, mutate_bytes((bundle / WEIGHTS).read_bytes(), rng))
    _seal(bundle, rng)


def _graph_bytes(bundle: Path, rng: Rng, originals: list[Path]) -> None:
    _write(bundle / GRAPH, mutate_bytes((bundle / GRAPH).read_bytes(), rng))


def _other_graph(bundle: Path, rng: Rng, originals: list[Path]) -> None:
    other = originals[int(rng.integers(len(originals)))]
    _write(bundle / GRAPH, (other / GRAPH).read_bytes())
    _seal(bundle, rng, always=True)


def _graph_content(bundle: Path, rng: Rng, originals: list[Path]) -> None:
    """Make a graph that another exporter could have written: valid ONNX, but not a decoder."""
    import onnx

    model = onnx.load(bundle / GRAPH)
    graph = model.graph
    match int(rng.integers(7)):
        case 0:
            graph.input.pop(int(rng.integers(len(graph.input))))
        case 1:
            graph.output.pop(int(rng.integers(len(graph.output))))
        case 2:
            graph.node.pop(int(rng.integers(len(graph.node))))
        case 3:
            model.opset_import[0].version = int(rng.integers(0, 200))
        case 4:
            tensor = graph.initializer[int(rng.integers(len(graph.initializer)))]
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="/etc/hostname")
        case 5:
            tensor = graph.initializer[int(rng.integers(len(graph.initializer)))]
            tensor.dims[:] = [2**31, 2**31]
        case _:
            value = graph.input[int(rng.integers(len(graph.input)))]
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    _write(bundle / GRAPH, model.SerializeToString())
    _seal(bundle, rng, always=True)


def _files(bundle: Path, rng: Rng, originals: list[Path]) -> None:
    """Replace a file by nothing, an empty file, a folder, a link to itself or a pipe."""
    name = (MANIFEST, GRAPH, TABLES, WEIGHTS)[int(rng.integers(4))]
    (bundle / name).unlink()
    match int(rng.integers(5)):
        case 0:
            pass
        case 1:
            (bundle / name).touch()
        case 2:
            (bundle / name).mkdir()
        case 3:
            (bundle / name).symlink_to(name)
        case _:
            os.mkfifo(bundle / name)


Damage = Callable[[Path, Rng, list[Path]], None]
DAMAGE: list[Damage] = [
    _manifest_content, _manifest_content, _manifest_content, _manifest_bytes, _tables_bytes,
    _tables_content, _weights_bytes, _graph_bytes, _graph_content, _other_graph, _files,
]  # fmt: skip


def _write(file: Path, content: bytes) -> None:
    file.unlink()  # it is a hard link to the original
    file.write_bytes(content)


def _seal(bundle: Path, rng: Rng, always: bool = False) -> None:
    """Recompute the checksums, half of the time."""
    if not always and rng.random() < 0.5:
        return
    content: dict[str, Any] = json.loads((bundle / MANIFEST).read_text())
    for name in (GRAPH, TABLES, WEIGHTS):
        content["checksums"][name] = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
    content["checksums"][MANIFEST] = checksum(content)
    _write(bundle / MANIFEST, json.dumps(content).encode())
