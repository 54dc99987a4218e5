"""A decoder on disk: one folder, nothing pickled, checked before use.

    NAME.bundle/
      manifest.json         schema version, sizes, outputs, unit ids, provenance, metrics, checksums
      graph.onnx            the streaming graph of one preset or kind; knows no unit
      tables.safetensors    what depends on today's units: inputs of the graph
      weights.safetensors   all weights of the model, so that the bundle alone can be adapted

A bundle is written whole or not at all (`decoder.files`). This module knows the files and their
checksums; sizes and tables of each family stand in `decoder.families`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from decoder.errors import BundleError
from decoder.families import FAMILIES, FLOAT64, AnySizes, Strict, Tables
from decoder.files import replacing

SCHEMA_VERSION = 1
GRAPH, TABLES, WEIGHTS, MANIFEST = (
    "graph.onnx",
    "tables.safetensors",
    "weights.safetensors",
    "manifest.json",
)
RUN = "run"  # key of the metadata in the weights' file


class Output(Strict):
    """One decoded quantity; `value = model output * scale + offset`, in `unit`."""

    name: str
    unit: str
    scale: float = Field(gt=0)
    offset: float


class HistoryPoint(Strict):
    """One validation of the training: step, seconds since its start, loss if known, causal R²."""

    step: int
    seconds: float
    loss: float | None
    r2: float


class Manifest(Strict):
    """What `manifest.json` holds."""

    schema_version: int = SCHEMA_VERSION
    decoder_id: str
    family: str = "poyo"
    preset: str
    sizes: AnySizes
    outputs: tuple[Output, ...]
    session_id: str
    unit_ids: tuple[str, ...]
    provenance: dict[str, str | float | int]
    metrics: dict[str, float]
    history: tuple[HistoryPoint, ...] = ()
    checksums: dict[str, str]

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Manifest:
        if len(set(self.unit_ids)) != len(self.unit_ids) or not self.unit_ids:
            raise ValueError("unit_ids must be distinct, and at least one")
        family = FAMILIES.get(self.family)
        if family is None:
            raise ValueError(f"family {self.family!r}; this Volition decodes {', '.join(FAMILIES)}")
        if not isinstance(self.sizes, family.sizes):
            raise ValueError(f"the sizes are not those of family {self.family!r}")
        if len(self.outputs) != self.sizes.dim_out:
            raise ValueError(f"{len(self.outputs)} outputs for dim_out {self.sizes.dim_out}")
        return self


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle: verified manifest and tables; the graph stays a file."""

    path: Path
    manifest: Manifest
    tables: Tables

    @property
    def graph_path(self) -> Path:
        return self.path / GRAPH

    @property
    def weights_path(self) -> Path:
        return self.path / WEIGHTS


def new_decoder_id(session_id: str) -> str:
    """An id that no other decoder has."""
    return f"{session_id}-{uuid.uuid4().hex[:8]}"


def write(
    path: Path | str,
    *,
    manifest: Manifest,
    graph: Path,
    tables: Tables,
    weights: Mapping[str, NDArray[np.generic]],
    run: str | None = None,
) -> Bundle:
    """Write a bundle folder, whole or not at all; checksums are filled in.

    run: what `training.runs` has to know of the weights to go on with them, as JSON.
    Raises BundleError if `path` exists and is not a bundle, so that nothing else is replaced, and
    if it can't be written.
    """
    path = Path(path)
    if path.exists() and not (path / MANIFEST).is_file():
        raise BundleError(f"{path} exists and is not a bundle; choose another name")
    with replacing(path, BundleError) as partial:
        partial.mkdir()
        shutil.copyfile(graph, partial / GRAPH)
        save_file(tables.as_dict(), partial / TABLES)
        # safetensors writes an array of another order as its memory lies
        rows = {name: np.ascontiguousarray(value) for name, value in weights.items()}
        save_file(rows, partial / WEIGHTS, metadata=None if run is None else {RUN: run})
        for name in (TABLES, WEIGHTS):  # safetensors lets only the owner read
            shutil.copymode(partial / GRAPH, partial / name)
        checksums = {name: _sha256(partial / name) for name in (GRAPH, TABLES, WEIGHTS)}
        complete = manifest.model_copy(update={"checksums": checksums})
        (partial / MANIFEST).write_text(complete.model_dump_json(indent=2) + "\n")
    return open_bundle(path)


def open_bundle(path: Path | str) -> Bundle:
    """Open and verify a bundle: schema version, checksums, shapes. Raises BundleError."""
    path = Path(path)
    manifest = _read_manifest(path)
    for name in (GRAPH, TABLES, WEIGHTS):
        _verify_checksum(path, name, manifest.checksums.get(name))
    return Bundle(path=path, manifest=manifest, tables=_read_tables(path / TABLES, manifest))


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    if not file.is_file():
        raise BundleError(f"{path}: no {MANIFEST}; expected a folder that `volition export` made")
    try:
        content = json.loads(file.read_text())
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise BundleError(
                f"{path}: bundle schema version {version}, this Volition reads {SCHEMA_VERSION}; "
                "export the run again"
            )
        return Manifest.model_validate(content)
    except (ValidationError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{file}: not a valid manifest ({error})") from error


def _verify_checksum(path: Path, name: str, expected: str | None) -> None:
    if not (path / name).is_file():
        raise BundleError(f"{path}: {name} is missing; copy the whole folder again")
    seen = _sha256(path / name)
    if seen != expected:
        raise BundleError(
            f"{path}: {name} has sha256 {seen[:12]}…, the manifest says "
            f"{(expected or 'none')[:12]}…; the file was changed or damaged, export or copy the "
            "bundle again"
        )


def _read_tables(file: Path, manifest: Manifest) -> Tables:
    try:
        tables = load_file(file)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{file}: can't be read ({error})") from error
    expected = manifest.sizes.table_shapes(len(manifest.unit_ids))
    for name, shape in expected.items():
        dtype = "float64" if name in FLOAT64 else "float32"
        seen = tables.get(name)
        if seen is None or seen.shape != shape or seen.dtype != dtype:
            what = "nothing" if seen is None else f"{seen.dtype} {seen.shape}"
            raise BundleError(f"{file}: {name} is {what}, expected {dtype} {shape}")
        if not np.isfinite(seen).all():
            raise BundleError(f"{file}: {name} has NaN or infinity; export the run again")
    return FAMILIES[manifest.family].tables(**{name: tables[name] for name in expected})


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
