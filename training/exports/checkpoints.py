"""torch_brain's checkpoints (Lightning dictionaries) in and out of our run format.

    volition checkpoint poyo.ckpt -o runs/poyo        (torch_brain's into a run)
    volition checkpoint runs/poyo -o poyo.ckpt        (a run into torch_brain's)

Such a file is a pickle. It is opened with torch's `weights_only` reader, which makes tensors
and plain containers and refuses everything else, so that no code of a stranger runs.
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
    """Record and weights of a checkpoint that torch_brain's Lightning module saved.

    output_mean, output_std: what its targets were normalised with, in m/s; a checkpoint doesn't
        say (torch_brain's POYO recipes use 0 and 20, in cm/s: 0 and 0.2 here).
    Raises TrainingError where it holds more than tensors and plain containers, or no POYO.
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
            f"{path}: no POYO of torch_brain in it ({error!r}); expected `state_dict` with "
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
    """Write a run folder that can be exported, evaluated and adapted."""
    if (run / "run.json").exists():
        raise TrainingError(f"{run}: there is a run already; choose another folder")
    run.mkdir(parents=True, exist_ok=True)
    runs.save_tensors(run / runs.BEST, weights)
    runs.save_record(run, record)


def export_checkpoint(run: Path | str, path: Path | str) -> None:
    """Write a run's best weights so that torch_brain's `POYO.load_pretrained` opens them."""
    model, record = runs.load_model(run)
    if record.family != "poyo":
        raise TrainingError(f"{run} holds a {record.family}; torch_brain has POYO only")
    sizes = {k: v for k, v in record.model.items() if k != "dim_out"}
    content = {
        "state_dict": OrderedDict((PREFIX + k, v) for k, v in model.state_dict().items()),
        "hyper_parameters": {"model": sizes},
    }
    buffer = io.BytesIO()  # torch's own writer says RuntimeError when the disk is full
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
            f"{path}: refused: it holds objects other than tensors and plain containers, and "
            f"opening those would run code ({brief(error)}). Save it again with plain "
            "hyper-parameters (OmegaConf.to_container) or only its state_dict"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise TrainingError(f"{path}: not a torch checkpoint ({brief(error)})") from error
    if not isinstance(content, Mapping):
        raise TrainingError(f"{path}: holds a {type(content).__name__}; expected a dictionary")
    return content


def _words(path: Path, vocabulary: Mapping[str, int]) -> list[str]:
    """Words in the order of their rows, without torch_brain's padding word."""
    words = sorted(vocabulary, key=lambda word: vocabulary[word])
    if [vocabulary[word] for word in words] != list(range(len(words))) or words[:1] != ["NA"]:
        raise TrainingError(f"{path}: a vocabulary does not number its rows from 0, NA first")
    return words[1:]
