"""The fast forward pass equals torch_brain's module: outputs and all gradients."""

from __future__ import annotations

import pytest
import torch
from torch_brain.models.poyo import create_linspace_latent_tokens

from training.models.encoder import latent_phases, latent_queries
from training.models.families import PRESETS, build, n_parameters, preset
from training.models.poyo import forward

N_UNITS, BATCH, N_TOKENS = 30, 3, 200


@pytest.mark.parametrize("name", ["rt", "poyo-1.3m"])
def test_outputs_and_gradients_equal_torch_brain(name: str) -> None:
    torch.manual_seed(0)
    config = preset(name)
    model = build(config, [f"u{i}" for i in range(N_UNITS)], ["a", "b"]).eval()
    unit = torch.randint(1, N_UNITS + 1, (BATCH, N_TOKENS))
    kind = torch.randint(0, 3, (BATCH, N_TOKENS))
    times = torch.rand(BATCH, N_TOKENS, dtype=torch.float64)
    mask = torch.rand(BATCH, N_TOKENS) > 0.3
    session = torch.randint(1, 3, (BATCH,))
    at = torch.rand(BATCH, 5, dtype=torch.float64)
    index, grid = create_linspace_latent_tokens(
        0, config.sequence_length, step=config.latent_step,
        num_latents_per_step=config.num_latents_per_step,
    )  # fmt: skip
    expected = model(
        input_unit_index=unit, input_timestamps=times, input_token_type=kind, input_mask=mask,
        latent_index=torch.tensor(index).expand(BATCH, -1),
        latent_timestamps=torch.tensor(grid).expand(BATCH, -1),
        session_index=session, output_timestamps=at,
    )  # fmt: skip
    expected.pow(2).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    output = forward(
        model, config, token=(kind * (N_UNITS + 1) + unit)[mask], times=times[mask],
        lengths=mask.sum(dim=1), session_index=session, output_times=at,
    )  # fmt: skip
    output.pow(2).sum().backward()
    assert (output - expected).abs().max() <= 1e-5
    for parameter_name, parameter in model.named_parameters():
        gradient = gradients[parameter_name]
        assert (parameter.grad - gradient).abs().max() <= 1e-5 * max(1.0, gradient.abs().max())


@pytest.mark.parametrize(("name", "low", "high"), [
    ("rt", 0, 4e5), ("poyo-1.3m", 1.2e6, 1.35e6), ("poyo-11.8m", 11.5e6, 12e6),
])  # fmt: skip
def test_presets_have_their_published_sizes(name: str, low: float, high: float) -> None:
    assert low <= n_parameters(build(PRESETS[name], ["u"], ["s"])) <= high


def test_latent_phases_are_on_the_models_device() -> None:
    """Meta tensors refuse to mix with CPU tensors, as CUDA tensors do, so this needs no GPU."""
    config = preset("rt")
    model = build(config, ["u0", "u1"], ["s"]).to("meta")
    phases = latent_phases(model, config)
    assert phases.cos.device.type == "meta"
    assert latent_queries(model, config, phases).device.type == "meta"
