"""`volition bench train`: training speed, ours and torch_brain's eager POYO.

Both train the same model on the same batches with the same optimizer. Their steps alternate, so
noise on the machine affects both. A step is forward, backward and AdamW; float32 on the CPU, bf16
on CUDA.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch_brain.models.poyo import create_linspace_latent_tokens

from decoder.errors import TrainingError
from training.data.simulate import simulate
from training.data.windows import Batch, OutputScale, WindowSource, unit_words
from training.models.attention import padded
from training.models.config import ModelConfig
from training.models.families import build, preset
from training.models.poyo import forward
from training.pretraining.process import keep_freed_memory

MEAN_RATE_HZ = 12.0  # of simulated units

Step = Callable[[Batch], None]


def bench_train(
    console: Console, *, presets: list[str], batch_size: int, spikes: int, steps: int
) -> list[dict[str, Any]]:
    """Time both; returns a dictionary per preset. spikes: approximate number per window."""
    keep_freed_memory()  # speeds up both
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cases = []
    for name in presets:
        with console.status(f"{name}: {steps} steps of {batch_size} windows…"):
            cases.append(_case(name, device, batch_size, spikes, steps))
    return cases


def _case(
    name: str, device: torch.device, batch_size: int, spikes: int, steps: int
) -> dict[str, Any]:
    config = preset(name)
    if not isinstance(config, ModelConfig):
        raise TrainingError(f"preset {name!r} isn't a POYO; torch_brain has no counterpart")
    rate_hz = spikes / config.sequence_length
    session = simulate(n_units=max(1, round(rate_hz / MEAN_RATE_HZ)), minutes=2.0)
    torch.manual_seed(0)
    source = None
    steppers: dict[str, Step] = {}
    for kind in ("ours", "torch_brain"):
        model = build(config, unit_words(session), [session.session_id]).to(device).train()
        source = source or WindowSource(
            [session], model.unit_emb.vocab, model.session_emb.vocab,
            layout=config,
            scales={session.session_id: OutputScale.of(session)},
        )  # fmt: skip
        output = _ours(model, config) if kind == "ours" else _torch_brains(model, config)
        steppers[kind] = _stepper(model, output, device)
    assert source is not None
    rng = np.random.default_rng(0)
    batches = [
        source.draw(rng, batch_size, keep_units=(1.0, 1.0)).to(device) for _ in range(steps + 1)
    ]
    seconds: dict[str, list[float]] = {kind: [] for kind in steppers}
    for batch in batches:
        for kind, step in steppers.items():
            _wait(device)
            began = time.perf_counter()
            step(batch)
            _wait(device)
            seconds[kind].append(time.perf_counter() - began)
    medians = {kind: float(np.median(values[1:])) for kind, values in seconds.items()}
    n_spikes = float(np.mean([b.n_tokens for b in batches])) / batch_size - 2 * session.n_units
    return {
        "preset": name,
        "device": str(device),
        "precision": "bf16-mixed" if device.type == "cuda" else "float32",
        "threads": torch.get_num_threads(),
        "batch_size": batch_size,
        "spikes_a_window": n_spikes,
        "steps": steps,
        "step_s": medians,
        "windows_per_s": {kind: batch_size / median for kind, median in medians.items()},
        "speedup": medians["torch_brain"] / medians["ours"],
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _stepper(
    model: torch.nn.Module, output: Callable[[Batch], Tensor], device: torch.device
) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(batch: Batch) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = torch.nn.functional.mse_loss(output(batch).float(), batch.target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _ours(model: Any, config: ModelConfig) -> Callable[[Batch], Tensor]:
    return lambda batch: forward(model, config, **batch.inputs())


def _torch_brains(model: Any, config: ModelConfig) -> Callable[[Batch], Tensor]:
    index, times = create_linspace_latent_tokens(
        0.0, config.sequence_length, step=config.latent_step,
        num_latents_per_step=config.num_latents_per_step,
    )  # fmt: skip
    latent_index, latent_times = torch.from_numpy(index), torch.from_numpy(times)

    def output(batch: Batch) -> Tensor:
        n_words = len(model.unit_emb.vocab)
        mask, (token, times) = padded(batch.lengths, batch.token, batch.times)
        rows, device = len(mask), mask.device
        result: Tensor = model(
            input_unit_index=token % n_words,
            input_timestamps=times,
            input_token_type=token // n_words,
            input_mask=mask,
            latent_index=latent_index.to(device).expand(rows, -1),
            latent_timestamps=latent_times.to(device).expand(rows, -1),
            session_index=batch.session_index,
            output_timestamps=batch.output_times,
        )
        return result

    return output
