"""The content of `manifest.json`, with its valid ranges and its own checksum.

The checksum is the SHA-256 of the manifest's content: its JSON with sorted keys, without spaces and
without the checksum itself. So a manifest may be reformatted, but none of its values changed.
Bundles of earlier versions have no such checksum and still open.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, model_validator

from decoder.bundles.families import FAMILIES, AnySizes, Strict
from decoder.errors import BundleError, invalid_fields
from decoder.files import read_json

SCHEMA_VERSION = 2
WITHOUT_READOUT = 1  # the version whose graphs have their output layer as constants
MANIFEST = "manifest.json"
GRAPH, TABLES, WEIGHTS = "graph.onnx", "tables.safetensors", "weights.safetensors"

OUTPUTS = ("vel_x", "vel_y")  # the axes of a cursor frame
MAX_UNITS = 100_000
MAX_SPEED = 100.0  # m/s, for an output's scale and offset; ten times the speed of an arm
MIN_WINDOW_S, MAX_WINDOW_S = 0.01, 10.0
MAX_LATENTS = 16_384
MAX_STEPS = 1000  # of the state within one window, which the first decode runs at once
MAX_ROW_S = 1000  # values in a token row times seconds of window; a ring of 1.6 GB

Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Text = Annotated[str, StringConstraints(max_length=2000)]


class Output(Strict):
    """One decoded quantity; `value = model output * scale + offset`, in `unit`."""

    name: Name
    unit: Literal["m/s"]
    scale: float = Field(ge=1e-6, le=MAX_SPEED)
    offset: float = Field(ge=-MAX_SPEED, le=MAX_SPEED)


class HistoryPoint(Strict):
    """One validation during training: step, seconds since the start, loss if known, causal R²."""

    step: int
    seconds: float
    loss: float | None
    r2: float


class Manifest(Strict):
    """The content of `manifest.json`, without its own checksum."""

    schema_version: int = SCHEMA_VERSION
    decoder_id: Name
    family: Name = "poyo"
    preset: Name
    sizes: AnySizes
    outputs: tuple[Output, ...] = Field(max_length=16)
    session_id: Name
    unit_ids: tuple[Name, ...] = Field(max_length=MAX_UNITS)
    provenance: dict[Name, Text | float | int]
    metrics: dict[Name, float]
    history: tuple[HistoryPoint, ...] = ()
    checksums: dict[Name, Name]

    @model_validator(mode="before")
    @classmethod
    def _sizes_of_its_family(cls, content: Any) -> Any:
        """Validate the sizes as those of their family, so that an error names the wrong field."""
        if not isinstance(content, dict) or not isinstance(content.get("sizes"), dict):
            return content
        if (family := FAMILIES.get(str(content.get("family", "poyo")))) is None:
            return content
        try:
            return content | {"sizes": family.sizes.model_validate(content["sizes"])}
        except ValidationError as error:
            raise ValueError(f"sizes: {invalid_fields(error)}") from error

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Manifest:
        if len(set(self.unit_ids)) != len(self.unit_ids) or not self.unit_ids:
            raise ValueError("unit_ids must be distinct and not empty")
        family = FAMILIES.get(self.family)
        if family is None:
            raise ValueError(f"family {self.family!r}, expected one of {', '.join(FAMILIES)}")
        if not isinstance(self.sizes, family.sizes):
            raise ValueError(f"the sizes do not belong to family {self.family!r}")
        if tuple(output.name for output in self.outputs) != OUTPUTS:
            raise ValueError(f"the outputs must be {' and '.join(OUTPUTS)}, in this order")
        return self

    @model_validator(mode="after")
    def _can_be_decoded_in_time(self) -> Manifest:
        sizes = self.sizes
        if sizes.n_latents < 1 or sizes.n_latents > MAX_LATENTS:
            raise ValueError(f"{sizes.n_latents} latents, expected 1 to {MAX_LATENTS:,}")
        if not MIN_WINDOW_S <= sizes.window_s <= MAX_WINDOW_S:
            raise ValueError(
                f"a window of {sizes.window_s:g} s, expected {MIN_WINDOW_S:g} to {MAX_WINDOW_S:g} s"
            )
        if sizes.n_steps > MAX_STEPS:
            raise ValueError(
                f"{sizes.n_steps} steps of the state in a window, expected at most {MAX_STEPS}"
            )
        if sizes.row_size * sizes.window_s > MAX_ROW_S:
            raise ValueError(
                f"{sizes.row_size} values per spike in a window of {sizes.window_s:g} s, expected "
                f"a product of at most {MAX_ROW_S}"
            )
        return self


def read_manifest(bundle: Path) -> tuple[Manifest, bool]:
    """Read a bundle's manifest; returns it, and whether it has its own checksum.

    Raises BundleError.
    """
    file = bundle / MANIFEST
    if not file.is_file():
        raise BundleError(
            f"{bundle}: no {MANIFEST}; expected a folder written by `volition export`"
        )
    content = read_json(file, BundleError)
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version not in (WITHOUT_READOUT, SCHEMA_VERSION):
        raise BundleError(
            f"{bundle}: bundle schema version {version!r:.40}, this Volition reads "
            f"{WITHOUT_READOUT} and {SCHEMA_VERSION}; export the run again, or install a newer "
            "Volition"
        )
    own = checksum(content)
    written = _without_own(content)
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise BundleError(f"{file}: not a valid manifest ({invalid_fields(error)})") from error
    if written is not None and written != own:
        raise BundleError(
            f"{file} has sha256 {own[:12]}…, expected {str(written)[:12]}…; it was changed or "
            "damaged, export or copy the bundle again"
        )
    return manifest, written is not None


def as_text(manifest: Manifest) -> str:
    """A manifest as JSON, with its own checksum."""
    content = json.loads(manifest.model_dump_json())
    content["checksums"][MANIFEST] = checksum(content)
    return json.dumps(content, indent=2) + "\n"


def checksum(content: dict[str, Any]) -> str:
    """The SHA-256 of a manifest's content without its own checksum."""
    sums = content.get("checksums")
    if isinstance(sums, dict):
        content = content | {"checksums": {k: v for k, v in sums.items() if k != MANIFEST}}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _without_own(content: dict[str, Any]) -> Any:
    """Remove a manifest's own checksum from its content and return it; None if there is none."""
    sums = content.get("checksums")
    return sums.pop(MANIFEST, None) if isinstance(sums, dict) else None
