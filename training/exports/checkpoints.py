"""Convert between torch_brain's checkpoints (Lightning dictionaries) and runs.

    volition checkpoint poyo.ckpt -o runs/poyo        (torch_brain's into a run)
    volition checkpoint runs/poyo -o poyo.ckpt        (a run into torch_brain's)

A checkpoint is a pickle. It is opened with torch's `weights_only` reader, which accepts tensors and
plain containers and refuses everything else, so no foreign code runs.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from decoder.errors import TrainingError, brief
from decoder.files import replacing
from training.models.config import ModelConfig
from training.models.families import build
from training.pretraining import runs

PREFIX = "model."


def import_checkpoint(
    path: Path | str, *, output_mean: float = 0.0, output_std: float = 1.0
) -> tuple[runs.RunRecord, dict[str, Tensor]]:
    """Read the record and weights of a checkpoint of torch_brain's Lightning module.

    output_mean, output_std: the normalisation of its targets, in m/s, which a checkpoint doesn't
        contain (torch_brain's POYO recipes use 0 and 20 in cm/s, which is 0 and 0.2 here).
    Raises TrainingError if the file has no POYO, or has objects other than tensors and containers.
    """
    path = Path(path)
    content = _read(path)
    try:
        sizes = dict(content["hyper_parameters"]["model"])
        state = {k.removeprefix(PREFIX): v for k, v in content["state_dict"].items()}
        vocabularies = {name: state.pop(f"{name}.vocab") for name in ("unit_emb", "session_emb")}
        dim_out = int(state["readout.weight"].shape[0])
    except (KeyError, TypeError, AttributeError) as error:
        raise TrainingError(
            f"{path}: not a POYO of torch_brain ({error!r}); expected `state_dict` with "
            "vocabularies and `hyper_parameters.model`"
        ) from error
    known = {field.name for field in fields(ModelConfig)}
    config = ModelConfig(**{k: v for k, v in sizes.items() if k in known} | {"dim_out": dim_out})
    words = {name: _words(path, vocabulary) for name, vocabulary in vocabularies.items()}
    record = runs.RunRecord(
        preset="torch_brain",
        seed=0,
        model=asdict(config),
        unit_words=words["unit_emb"],
        session_words=words["session_emb"],
        session_paths={},
        output_mean=dict.fromkeys(words["session_emb"], (output_mean, output_mean)),
        output_std=dict.fromkeys(words["session_emb"], (output_std, output_std)),
        settings={"imported_from": path.name},
    )
    model = build(config, record.unit_words, record.session_words)
    runs.set_weights(model, state)
    return record, runs.weights(model)


def save_run(run: Path, record: runs.RunRecord, weights: dict[str, Tensor]) -> None:
    """Write a run folder, which can then be exported, evaluated and adapted."""
    if (run / "run.json").exists():
        raise TrainingError(f"{run}: there is a run already; choose another folder")
    run.mkdir(parents=True, exist_ok=True)
    runs.save_tensors(run / runs.BEST, weights)
    runs.save_record(run, record)


def export_checkpoint(run: Path | str, path: Path | str) -> None:
    """Write a run's best weights as a checkpoint for torch_brain's `POYO.load_pretrained`."""
    model, record = runs.load_model(run)
    if record.family != "poyo":
        raise TrainingError(
            f"{run} has a model of family {record.family}; torch_brain only has POYO"
        )
    sizes = {k: v for k, v in record.model.items() if k != "dim_out"}
    content = {
        "state_dict": OrderedDict(
            (PREFIX + name, tensor)
            for name, tensor in model.state_dict().items()
            if not name.startswith("identifier.")  # which torch_brain's POYO has not
        ),
        "hyper_parameters": {"model": sizes},
    }
    buffer = io.BytesIO()  # on a full disk, torch's own writer raises RuntimeError
    torch.save(content, buffer)
    with replacing(Path(path), TrainingError) as partial:
        partial.write_bytes(buffer.getbuffer())


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise TrainingError(f"{path}: no such file; expected a checkpoint (.ckpt)") from error
    except pickle.UnpicklingError as error:
        raise TrainingError(
            f"{path}: refused: it has objects other than tensors and plain containers, and loading "
            f"them would run code ({brief(error)}); save it again with plain hyper-parameters "
            "(OmegaConf.to_container) or only with its state_dict"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise TrainingError(f"{path}: not a torch checkpoint ({brief(error)})") from error
    if not isinstance(content, Mapping):
        raise TrainingError(f"{path}: contains a {type(content).__name__}; expected a dictionary")
    return content


def _words(path: Path, vocabulary: Mapping[str, int]) -> list[str]:
    """The words of a vocabulary in the order of their rows, without torch_brain's padding word."""
    words = sorted(vocabulary, key=lambda word: vocabulary[word])
    if [vocabulary[word] for word in words] != list(range(len(words))) or words[:1] != ["NA"]:
        raise TrainingError(f"{path}: a vocabulary's rows are not 0, 1, … with NA first")
    return words[1:]
