"""Conversion of torch_brain's checkpoints; a pickle that would run code is refused."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch_brain.models.poyo import POYO

from decoder.errors import TrainingError
from training.evaluation.reference import reference_inputs, reference_output
from training.exports.checkpoints import export_checkpoint, import_checkpoint, save_run
from training.pretraining import runs

SIZES = {
    "sequence_length": 1.0, "latent_step": 0.25, "num_latents_per_step": 4, "dim": 32, "depth": 1,
    "dim_head": 16, "cross_heads": 2, "self_heads": 2,
}  # fmt: skip
WORDS = [f"day/unit{i}" for i in range(12)]


def torch_brains(folder: Path) -> tuple[POYO, Path]:
    """A POYO model and its checkpoint, in the format of torch_brain's Lightning module."""
    torch.manual_seed(0)
    model = POYO(**SIZES, dim_out=2)
    model.unit_emb.initialize_vocab(WORDS)
    model.session_emb.initialize_vocab(["day"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    content = {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict(("model." + k, v) for k, v in model.state_dict().items()),
        "hyper_parameters": {"model": {"_target_": "torch_brain.models.POYO", **SIZES}, "seed": 1},
    }
    path = folder / "poyo.ckpt"
    torch.save(content, path)
    return model.eval(), path


def output_of(model: POYO, config) -> object:
    times = torch.linspace(0.0, 0.99, 50, dtype=torch.float64).numpy()
    units = (torch.arange(50) % 12).numpy()
    return reference_output(model, reference_inputs(model, config, times, units, 1.0, 12))


def test_an_imported_checkpoint_gives_equal_outputs(tmp_path: Path) -> None:
    model, path = torch_brains(tmp_path)
    record, weights = import_checkpoint(path, output_std=0.2)
    save_run(tmp_path / "run", record, weights)
    loaded, loaded_record = runs.load_model(tmp_path / "run")
    assert loaded_record.unit_words == WORDS
    assert loaded_record.output_std["day"] == (0.2, 0.2)
    config = loaded_record.config()
    assert (output_of(loaded, config) == output_of(model, config)).all()


def test_torch_brain_opens_an_exported_run(tmp_path: Path) -> None:
    model, path = torch_brains(tmp_path)
    record, weights = import_checkpoint(path)
    save_run(tmp_path / "run", record, weights)
    export_checkpoint(tmp_path / "run", tmp_path / "again.ckpt")
    loaded = POYO.load_pretrained(tmp_path / "again.ckpt").eval()
    assert list(loaded.unit_emb.vocab) == ["NA", *WORDS]
    assert (output_of(loaded, record.config()) == output_of(model, record.config())).all()


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    _, path = torch_brains(tmp_path)
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["model"]["dim"] = Malicious(tmp_path / "pwned")
    torch.save(content, path)
    with pytest.raises(TrainingError, match="would run code"):
        import_checkpoint(path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, "not a POYO of torch_brain"),
        ([1, 2], "expected a dictionary"),
        ({"hyper_parameters": {"model": SIZES}, "state_dict": {}}, "not a POYO of torch_brain"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(TrainingError, match=message):
        import_checkpoint(tmp_path / "other.ckpt")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    _, path = torch_brains(tmp_path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(TrainingError):
        import_checkpoint(path)
    with pytest.raises(TrainingError, match="no such file"):
        import_checkpoint(tmp_path / "none.ckpt")


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    _, path = torch_brains(tmp_path)
    record, weights = import_checkpoint(path)
    save_run(tmp_path / "run", record, weights)
    with pytest.raises(TrainingError, match="there is a run already"):
        save_run(tmp_path / "run", record, weights)
