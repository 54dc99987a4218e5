"""A training run on disk: readable JSON and safetensors, no pickles.

    RUN/
      run.json              model sizes, vocabularies, output scales, progress, metrics
      best.safetensors      the weights with the best validation score
      last.safetensors      checkpoint: weights, their moving average, optimizer state, progress
                            (units of a day are stored as what differs from the shared ones)
      tensorboard/          loss, learning rate, tokens/s and validation R² for TensorBoard

Files are written atomically (`decoder.files`). This module does not depend on the trainer.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from decoder.bundles import bundle
from decoder.errors import TrainingError, brief, invalid_fields
from decoder.files import read_json, replacing, write_text
from training.data.identity import is_subject
from training.data.windows import OutputScale
from training.models.families import CONFIGS, Config, Model, build
from training.models.states import States

SCHEMA_VERSION = 1
LONGEST_RECORD = 2**29  # bytes; a large corpus has millions of units
BEST, LAST = "best.safetensors", "last.safetensors"


class RunRecord(BaseModel):
    """The content of `run.json`.

    session_words: session ids, and subjects with units that last (`training.data.identity`).
    unit_tuning: features of each of `unit_words` (`training.data.tuning`); empty if unknown.
    n_profile: length of the profiles that the model identifies units by; 0 if it does not.
    states: how a streaming model's states were distributed over `sessions`; None if unknown.
    """

    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="constants")

    schema_version: int = SCHEMA_VERSION
    family: str = "poyo"
    preset: str
    seed: int
    model: dict[str, float | int]
    unit_words: list[str]
    unit_tuning: list[list[float]] = []
    n_profile: int = 0
    states: States | None = None
    session_words: list[str]
    session_paths: dict[str, str]
    output_mean: dict[str, tuple[float, float]]
    output_std: dict[str, tuple[float, float]]
    step: int = 0
    seconds: float = 0.0
    best_r2: float = float("-inf")
    settings: dict[str, float | int | str | None]
    history: list[dict[str, float]] = []

    @property
    def sessions(self) -> list[str]:
        """The session ids among `session_words`; the others are subjects."""
        return [word for word in self.session_words if not is_subject(word)]

    def config(self) -> Config:
        if self.family not in CONFIGS:
            raise TrainingError(
                f"family {self.family!r} can't be trained; expected one of {', '.join(CONFIGS)}"
            )
        older = {"state_dropout": 0.0} if self.family == "possm" else {}  # than this field
        return CONFIGS[self.family](**(older | self.model))  # type: ignore[arg-type]

    def build(self) -> Model:
        """A freshly initialised model of these sizes and vocabularies."""
        return build(self.config(), self.unit_words, self.session_words, n_profile=self.n_profile)

    def scale(self, session_id: str) -> OutputScale:
        return OutputScale(
            mean=np.array(self.output_mean[session_id]), std=np.array(self.output_std[session_id])
        )


def save_record(run: Path, record: RunRecord) -> None:
    """Write `run.json`. Raises TrainingError if it can't be written."""
    text = json.dumps(record.model_dump(), indent=2, allow_nan=True) + "\n"
    write_text(run / "run.json", text, TrainingError)


def load_record(run: Path) -> RunRecord:
    """Read `run.json`. Raises TrainingError if it is missing or not a run of this version."""
    path = run / "run.json"
    if not path.is_file():
        raise TrainingError(f"{run}: no run.json; expected a folder written by `volition pretrain`")
    try:
        record = RunRecord.model_validate(read_json(path, TrainingError, at_most=LONGEST_RECORD))
    except ValidationError as error:
        raise TrainingError(
            f"{path}: not a run of this version ({invalid_fields(error)})"
        ) from error
    if record.schema_version != SCHEMA_VERSION:
        raise TrainingError(
            f"{path}: schema version {record.schema_version}, expected {SCHEMA_VERSION}"
        )
    return record


def progress_tensors(record: RunRecord) -> dict[str, Tensor]:
    """A run's progress as a tensor, to be saved in one file with its weights."""
    return {
        "progress": torch.tensor([record.step, record.seconds, record.best_r2], dtype=torch.float64)
    }


def rewind(record: RunRecord, state: dict[str, Tensor]) -> None:
    """Set a record back to the progress at which `last.safetensors` was saved."""
    step, seconds, best = state["progress"].tolist()
    record.step, record.seconds, record.best_r2 = int(step), seconds, best
    record.history = [point for point in record.history if point["step"] <= step]


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors atomically. Raises TrainingError if they can't be written."""
    with replacing(path, TrainingError) as partial:
        save_file({name: t.detach().contiguous().clone() for name, t in tensors.items()}, partial)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises TrainingError if it is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{path}: can't be read ({brief(error)}); start the run again"
        ) from error


def weights(model: Model) -> dict[str, Tensor]:
    """A model's parameters and buffers by name. Vocabularies are in `run.json`."""
    return {
        name: tensor.detach()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }


def set_weights(model: Model, tensors: dict[str, Tensor]) -> None:
    """Copy tensors into a model whose vocabularies are set.

    Raises TrainingError if a tensor is missing or has another shape.
    """
    own = weights(model)
    if missing := sorted(set(own) - set(tensors)):
        raise TrainingError(
            f"the weights lack {len(missing)} of the model's tensors, such as {missing[0]}"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            if tensor.shape != tensors[name].shape:
                raise TrainingError(
                    f"{name}: shape {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}"
                )
            tensor.copy_(tensors[name])


def portable(record: RunRecord) -> str:
    """A record as JSON for a bundle, without paths of this machine and without its history."""
    kept = record.model_copy(update={"session_paths": {}, "history": []})
    return kept.model_dump_json()


def load_model(path: Path | str) -> tuple[Model, RunRecord]:
    """Load the model and the record of a run (its best weights) or of a bundle.

    The model is in evaluation mode. Raises TrainingError if a bundle has no model: a linear decoder
    can't be adapted.
    """
    path = Path(path)
    is_bundle = (path / bundle.MANIFEST).is_file()
    record = record_of(bundle.open_bundle(path)) if is_bundle else load_record(path)
    model = record.build()
    set_weights(model, load_tensors(path / (bundle.WEIGHTS if is_bundle else BEST)))
    return model.eval(), record


def record_of(opened: bundle.Bundle) -> RunRecord:
    """The record of a bundle's model. Raises TrainingError if it has none."""
    if opened.manifest.family not in CONFIGS:
        raise TrainingError(
            f"{opened.path} is a linear decoder ({opened.manifest.family}), which is refitted and "
            f"can't be adapted; start from a bundle of family {' or '.join(CONFIGS)}"
        )
    try:
        with safe_open(opened.weights_path, framework="pt") as file:
            record = (file.metadata() or {}).get(bundle.RUN)
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{opened.weights_path}: can't be read ({brief(error)})") from error
    if record is None:
        raise TrainingError(
            f"{opened.path} has no record of the units its weights belong to; export the run again"
        )
    try:
        return RunRecord.model_validate_json(record)
    except ValidationError as error:
        raise TrainingError(
            f"{opened.path}: not a run of this version ({invalid_fields(error)})"
        ) from error
