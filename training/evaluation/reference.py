"""Reference outputs for runtimes: torch_brain's POYO, and the streaming model run in parallel."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_brain.models.poyo import (
    POYO,
    create_linspace_latent_tokens,
    create_start_end_unit_tokens,
)

from decoder.arrays import Floats, Ints
from decoder.bundles.bundle import Bundle
from training.exports.export import export_model
from training.models import possm
from training.models.config import ModelConfig, PossmConfig
from training.models.encoder import SPIKE, START
from training.models.families import Config, Model, build, family, preset
from training.models.possm import Possm
from training.pretraining import runs


def reference_inputs(
    model: POYO,
    config: ModelConfig,
    times: Floats,
    unit_index: Ints,
    window_end: float,
    n_units: int,
) -> dict[str, Tensor]:
    """Arguments of `POYO.forward` for one window, laid out as by torch_brain's tokenizer.

    times: (n_spikes,) float64 s, all in the window. The session is the first in the vocabulary;
    its units are the first `n_units`, in order.
    """
    end = config.sequence_length
    token_type, token_unit, token_time = create_start_end_unit_tokens(np.arange(n_units), 0.0, end)
    latent_index, latent_times = create_linspace_latent_tokens(
        0.0, end, step=config.latent_step, num_latents_per_step=config.num_latents_per_step
    )
    n_spikes = len(times)
    return {
        "input_unit_index": torch.from_numpy(np.concatenate([token_unit, unit_index]) + 1)[None],
        "input_timestamps": torch.from_numpy(
            np.concatenate([token_time, times - (window_end - end)])
        )[None],
        "input_token_type": torch.from_numpy(
            np.concatenate([token_type, np.zeros(n_spikes, dtype=np.int64)])
        )[None],
        "latent_index": torch.from_numpy(latent_index)[None],
        "latent_timestamps": torch.from_numpy(latent_times)[None],
        "session_index": torch.tensor([1]),
        "output_timestamps": torch.tensor([[end]], dtype=torch.float64),
    }


@torch.no_grad()
def reference_output(model: POYO, inputs: dict[str, Tensor]) -> Floats:
    """`POYO.forward` at the window's end: (dim_out,) float64, in units of the output scale."""
    return np.asarray(model(**inputs)[0, 0].double().numpy())


@torch.no_grad()
def parallel_output(
    model: Possm,
    config: PossmConfig,
    times: Floats,
    unit_index: Ints,
    asked: Floats,
    n_units: int,
) -> Floats:
    """Output of the training code for one window: (n_asked, dim_out) float64, in the output scale.

    times: (n_spikes,) float64 s since the state began, ascending. asked: (n_asked,) float64 s,
    the output times. The session is the first in the vocabulary; its units are the first `n_units`.
    """
    n_words = len(model.unit_emb.weight)
    starts = START * n_words + 1 + np.arange(n_units)
    n_chunks = 1 + int(asked.max() / config.chunk_s)
    output = possm.forward(
        model,
        replace(config, train_s=n_chunks * config.chunk_s),
        token=torch.from_numpy(np.concatenate([starts, SPIKE * n_words + 1 + unit_index])),
        times=torch.from_numpy(np.concatenate([np.zeros(n_units), times])),
        lengths=torch.tensor([n_units + len(times)]),
        session_index=torch.tensor([1]),
        output_times=torch.from_numpy(asked)[None],
    )
    return np.asarray(output[0].double().numpy())


def expected_output(
    model: Model,
    config: Config,
    times: Floats,
    unit_index: Ints,
    *,
    began: float,
    at: float,
    n_units: int,
) -> Floats:
    """Expected output of a decode at `at`: (dim_out,) float64, in the output scale.

    times: (n_spikes,) float64 s, all spikes so far. began: s, the start of the state.
    """
    start = at - config.sequence_length if isinstance(config, ModelConfig) else began
    inside = (times >= start) & (times < at)
    times, unit_index = times[inside], unit_index[inside]
    if isinstance(config, ModelConfig):
        inputs = reference_inputs(model, config, times, unit_index, at, n_units)
        return reference_output(model, inputs)
    order = np.argsort(times, kind="stable")
    since = times[order] - began
    asked = np.array([at - began])
    output: Floats = parallel_output(model, config, since, unit_index[order], asked, n_units)[0]
    return output


def random_model(name: str, n_units: int, *, seed: int) -> tuple[Model, Config, runs.RunRecord]:
    """A preset with random weights that knows one session `random`; output scale 1."""
    torch.manual_seed(seed)
    config = preset(name)
    words = [f"random/unit{index}" for index in range(n_units)]
    model = build(config, words, ["random"]).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # move away from the small, regular initial values
            parameter.add_(0.05 * torch.randn_like(parameter))
    record = runs.RunRecord(
        family=family(config),
        preset=name,
        seed=seed,
        model=asdict(config),
        unit_words=words,
        session_words=["random"],
        session_paths={},
        output_mean={"random": (0.0, 0.0)},
        output_std={"random": (1.0, 1.0)},
        settings={},
    )
    return model, config, record


def random_bundle(
    name: str, n_units: int, folder: Path, *, seed: int
) -> tuple[Model, Config, Bundle]:
    """A `random_model` with its exported bundle."""
    model, config, record = random_model(name, n_units, seed=seed)
    return model, config, export_model(model, record, "random", folder / f"{name}.bundle")
