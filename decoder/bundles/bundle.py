"""A bundle is a decoder on disk: one folder without pickled data, verified before use.

    NAME.bundle/
      manifest.json         schema version, sizes, outputs, unit ids, provenance, metrics, checksums
                            of the other files and of itself (`decoder.bundles.manifest`)
      graph.onnx            the streaming graph of one preset; independent of units
      tables.safetensors    graph inputs that depend on today's units; the usual states
                            (`decoder.usual`) of a streaming model that knows them
      weights.safetensors   all weights of the model, so that the bundle alone can be adapted

A bundle is written atomically (`decoder.files`). This module handles the files and their checksums;
the sizes and tables of each family are in `decoder.bundles.families`.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from decoder.bundles.families import FAMILIES, FLOAT64, AnySizes, PossmSizes, Tables
from decoder.bundles.graphs import check_whole
from decoder.bundles.manifest import (
    GRAPH,
    MANIFEST,
    TABLES,
    WEIGHTS,
    WITHOUT_READOUT,
    HistoryPoint,
    Manifest,
    Output,
    as_text,
    read_manifest,
)
from decoder.errors import BundleError, brief
from decoder.files import replacing
from decoder.usual import N_AXES, Usual

__all__ = [
    "GRAPH", "MANIFEST", "RUN", "TABLES", "WEIGHTS", "Bundle", "HistoryPoint", "Manifest", "Output",
    "identifies_units", "new_decoder_id", "open_bundle", "read_manifest", "write",
]  # fmt: skip

log = logging.getLogger("volition.bundle")

RUN = "run"  # metadata key in the weights file
IDENTIFIER = "identifier."  # prefix of the weights of the network that identifies units


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle: verified manifest and tables; the graph stays on disk.

    usual: the usual states of a streaming model; None if unknown.
    is_sealed: whether the manifest has its own checksum; bundles of earlier versions have none.
    """

    path: Path
    manifest: Manifest
    tables: Tables
    usual: Usual | None
    is_sealed: bool

    @property
    def graph_path(self) -> Path:
        return self.path / GRAPH

    @property
    def weights_path(self) -> Path:
        return self.path / WEIGHTS


def identifies_units(path: Path) -> bool:
    """Whether a bundle's model has the network that identifies new units. Raises BundleError."""
    try:
        with safe_open(path / WEIGHTS, framework="numpy") as opened:
            return any(name.startswith(IDENTIFIER) for name in opened.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path}: {WEIGHTS} can't be read ({brief(error)})") from error


def new_decoder_id(session_id: str) -> str:
    """A new, unique decoder id."""
    return f"{session_id}-{uuid.uuid4().hex[:8]}"


def write(
    path: Path | str,
    *,
    manifest: Manifest,
    graph: Path,
    tables: Tables,
    weights: Mapping[str, NDArray[np.generic]],
    usual: Usual | None = None,
    run: str | None = None,
) -> Bundle:
    """Write a bundle folder atomically and fill in the checksums.

    run: JSON that `training.pretraining.runs` needs to continue training with these weights.
    Raises BundleError if the bundle can't be written, or if `path` exists and is not a bundle:
    nothing else is ever replaced.
    """
    path = Path(path)
    if path.exists() and not (path / MANIFEST).is_file():
        raise BundleError(f"{path} exists and is not a bundle; choose another name")
    with replacing(path, BundleError) as partial:
        partial.mkdir()
        shutil.copyfile(graph, partial / GRAPH)
        save_file(tables.as_dict() | ({} if usual is None else vars(usual)), partial / TABLES)
        # safetensors writes the raw memory of an array, whatever its order
        rows = {name: np.ascontiguousarray(value) for name, value in weights.items()}
        save_file(rows, partial / WEIGHTS, metadata=None if run is None else {RUN: run})
        for name in (TABLES, WEIGHTS):  # safetensors creates files that only the owner can read
            shutil.copymode(partial / GRAPH, partial / name)
        checksums = {name: _sha256(partial / name) for name in (GRAPH, TABLES, WEIGHTS)}
        complete = manifest.model_copy(update={"checksums": checksums})
        (partial / MANIFEST).write_text(as_text(complete), encoding="utf-8")
    return open_bundle(path)


def open_bundle(path: Path | str) -> Bundle:
    """Open and verify a bundle: schema version, ranges, checksums, shapes. Raises BundleError."""
    path = Path(path)
    try:
        manifest, is_sealed = read_manifest(path)
        for name in (GRAPH, TABLES, WEIGHTS):
            _verify_checksum(path, name, manifest.checksums.get(name))
        check_whole(path / GRAPH)
        tables, usual = _read_tables(path / TABLES, manifest)
    except (OSError, ValueError) as error:  # ValueError: an impossible path
        raise BundleError(f"{str(path)!r} can't be read ({brief(error)})") from error
    if not is_sealed:
        log.warning(
            "%s is of an earlier version: its manifest has no checksum, so changes to it go "
            "unnoticed; export the run again",
            path,
        )
    return Bundle(path=path, manifest=manifest, tables=tables, usual=usual, is_sealed=is_sealed)


def _verify_checksum(path: Path, name: str, expected: str | None) -> None:
    if not (path / name).is_file():
        raise BundleError(f"{path}: {name} is missing; copy the whole folder again")
    seen = _sha256(path / name)
    if seen != expected:
        raise BundleError(
            f"{path}: {name} has sha256 {seen[:12]}…, the manifest has "
            f"{(expected or 'none')[:12]}…; the file was changed or damaged, export or copy the "
            "bundle again"
        )


def _read_tables(file: Path, manifest: Manifest) -> tuple[Tables, Usual | None]:
    """Read the tables of the expected shapes, and the usual states if the file has them.

    Other content of the file is ignored.
    """
    expected = manifest.sizes.table_shapes(len(manifest.unit_ids))
    if manifest.schema_version == WITHOUT_READOUT:
        expected.pop("readout", None)
    try:
        with safe_open(file, framework="numpy") as opened:
            names = set(opened.keys())
            tables = {
                name: _read_table(opened, file, name, shape, name in names)
                for name, shape in expected.items()
            }
            usual = _read_usual(opened, file, manifest.sizes) if "axes" in names else None
    except SafetensorError as error:
        raise BundleError(
            f"{file}: can't be read ({brief(error)}); export or copy the bundle again"
        ) from error
    return FAMILIES[manifest.family].tables(**tables), usual


def _read_usual(opened: Any, file: Path, sizes: AnySizes) -> Usual | None:
    """Read the usual states, if it is a decoder with a state."""
    if not isinstance(sizes, PossmSizes):
        return None
    names, n_axes = set(opened.keys()), min(N_AXES, sizes.hidden)
    days = opened.get_slice("day_means").get_shape() if "day_means" in names else []
    n_days = days[0] if len(days) == 2 else 1
    shapes = {
        "mean": (sizes.hidden,), "axes": (n_axes, sizes.hidden), "limit": (),
        "day_means": (n_days, n_axes), "day_covariances": (n_days, n_axes, n_axes),
    }  # fmt: skip
    return Usual(
        **{name: _read_table(opened, file, name, s, name in names) for name, s in shapes.items()}
    )


def _read_table(
    opened: Any, file: Path, name: str, shape: tuple[int, ...], is_there: bool
) -> NDArray[Any]:
    wanted = "F64" if name in FLOAT64 else "F32"
    what = "nothing"
    if is_there:
        part = opened.get_slice(name)
        seen = tuple(part.get_shape())
        if (seen, part.get_dtype()) == (shape, wanted):
            table: NDArray[Any] = opened.get_tensor(name)
            if not np.isfinite(table).all():
                raise BundleError(f"{file}: {name} contains NaN or infinity; export the run again")
            return table
        what = f"{part.get_dtype()} {seen}"
    raise BundleError(
        f"{file}: {name} is {brief(what)}, expected {wanted} {shape}; export the run again"
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
