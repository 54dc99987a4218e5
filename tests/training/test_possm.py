"""The streaming model: parallel training, single steps and the exported graph agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from decoder.runtimes.opening import open_runtime
from training.evaluation.reference import parallel_output, random_model
from training.exports.export import export_model
from training.models import families, possm
from training.models.config import PossmConfig
from training.models.encoder import SPIKE, START
from training.models.families import PRESETS, same_sizes

TOLERANCE = 1e-5  # in units of the output scale, which is 1 here


def window(config: PossmConfig, n_units: int, per_chunk: int, rng: np.random.Generator):
    """Spike times (ascending, s) and units of one training window."""
    n_spikes = per_chunk * config.n_chunks
    times = np.sort(rng.uniform(0.0, config.train_s, n_spikes))
    return times, rng.integers(0, n_units, n_spikes)


@pytest.mark.parametrize(
    ("n_units", "per_chunk"), [(1, 0), (1, 3), (40, 80), (300, 5_000), (300, 0)]
)
def test_parallel_equals_stepwise_equals_onnx(n_units: int, per_chunk: int, tmp_path: Path) -> None:
    model, _, record = random_model("stream", n_units, seed=n_units)
    config = PossmConfig(train_s=0.8 if per_chunk > 1000 else 2.0)
    rng = np.random.default_rng(per_chunk)
    times, units = window(config, n_units, per_chunk, rng)
    query_times = np.sort(rng.uniform(config.warm_up_s, config.train_s, 30))
    query_times = np.concatenate([[config.warm_up_s], query_times, [config.train_s]])
    query_times[5] = 15 * config.chunk_s  # exactly on an edge
    query_times = np.sort(query_times)
    expected = parallel_output(model, config, times, units, query_times, n_units)
    assert expected.std() > 1e-3
    bundle = export_model(model, record, "random", tmp_path / "random.bundle")
    for clock_s in (0.0, 1e6):
        runtime = open_runtime(bundle, epoch=clock_s + 0.3)
        done = 0
        for at, output in zip(query_times, expected, strict=True):
            stop = int(np.searchsorted(times, at))
            runtime.append(clock_s + times[done:stop], units[done:stop])
            done = stop
            np.testing.assert_allclose(runtime.decode(clock_s + at), output, atol=TOLERANCE)


def test_a_late_spike_goes_to_its_chunk(tmp_path: Path) -> None:
    """Decodes after it arrives are the same as if it had arrived in time."""
    model, config, record = random_model("stream", 30, seed=1)
    bundle = export_model(model, record, "random", tmp_path / "random.bundle")
    rng = np.random.default_rng(2)
    times = np.sort(rng.uniform(0.0, 2.0, 3000))
    units = rng.integers(0, 30, len(times))
    late = rng.uniform(size=len(times)) < 0.2
    arrives = times + np.where(late, rng.uniform(0.0, 0.3, len(times)), 0.0)
    runtime = open_runtime(bundle, epoch=0.0)
    last, query_times = -1.0, np.arange(config.warm_up_s, 1.99, 0.013)
    for at in query_times:
        came = (arrives >= last) & (arrives < at)
        runtime.append(times[came], units[came])
        last = at
        seen = (arrives < at) & (times < at)
        expected = parallel_output(
            model, config, times[seen], units[seen], np.array([at]), 30
        )[0]  # fmt: skip
        np.testing.assert_allclose(runtime.decode(float(at)), expected, atol=TOLERANCE)


def test_a_pause_resets_the_state(tmp_path: Path) -> None:
    model, _, record = random_model("stream", 10, seed=1)
    bundle = export_model(model, record, "random", tmp_path / "random.bundle")
    rng = np.random.default_rng(2)
    times, units = np.sort(rng.uniform(0.0, 3.0, 900)), rng.integers(0, 10, 900)
    going, fresh = (open_runtime(bundle, epoch=0.0) for _ in range(2))
    going.append(times, units)
    for at in (0.5, 0.6):
        going.decode(at)
    going.append(times[:0], units[:0])
    fresh.append(times, units)
    np.testing.assert_array_equal(going.decode(2.5), fresh.decode(2.5))
    going.reset()
    silent = open_runtime(bundle, epoch=0.0)
    np.testing.assert_array_equal(going.decode(2.6), silent.decode(2.6))


def test_windows_of_a_batch_are_independent() -> None:
    """Windows of one batch, each with its own kept units, give the same outputs as alone."""
    model, config, _ = random_model("stream", 20, seed=3)
    rng = np.random.default_rng(0)
    parts, n_words = [], 21
    for row in range(3):
        kept = np.sort(rng.permutation(20)[: 8 + row])
        times = np.sort(rng.uniform(0.0, config.train_s, 100 * row))
        units = rng.choice(kept, len(times))
        parts.append(
            {
                "token": torch.from_numpy(
                    np.concatenate([START * n_words + 1 + kept, SPIKE * n_words + 1 + units])
                ),
                "times": torch.from_numpy(np.concatenate([np.zeros(len(kept)), times])),
                "output_times": torch.from_numpy(np.sort(rng.uniform(0.0, config.train_s, (1, 9)))),
            }
        )
    together = families.forward(
        model, config,
        token=torch.cat([part["token"] for part in parts]),
        times=torch.cat([part["times"] for part in parts]),
        lengths=torch.tensor([len(part["token"]) for part in parts]),
        session_index=torch.ones(3, dtype=torch.int64),
        output_times=torch.cat([part["output_times"] for part in parts]),
    )  # fmt: skip
    for row, part in enumerate(parts):
        alone = families.forward(
            model, config, lengths=torch.tensor([len(part["token"])]),
            session_index=torch.ones(1, dtype=torch.int64), **part,
        )  # fmt: skip
        torch.testing.assert_close(together[row], alone[0], rtol=1e-5, atol=1e-5)


def test_gradients_equal_those_of_a_plain_softmax(monkeypatch) -> None:
    """Compares the hand-written gradient of `attend_chunks` with autograd."""
    model, config, _ = random_model("stream", 12, seed=5)
    rng = np.random.default_rng(1)
    times, units = window(config, 12, 9, rng)
    query_times = np.sort(rng.uniform(0.0, config.train_s, 20))
    token = torch.from_numpy(np.concatenate([START * 13 + 1 + np.arange(12), 1 + units]))
    inputs = {
        "token": token,
        "times": torch.from_numpy(np.concatenate([np.zeros(12), times])),
        "lengths": torch.tensor([len(token)]),
        "session_index": torch.tensor([1]),
        "output_times": torch.from_numpy(query_times)[None],
    }

    def gradients() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        output = families.forward(model, config, **inputs)
        output.pow(2).sum().backward()
        return output, {
            n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
        }

    output, ours = gradients()
    monkeypatch.setattr(possm, "attend_chunks", _plain)
    expected, plain = gradients()
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    assert set(ours) == set(plain) == {name for name, _ in model.named_parameters()}
    for name, gradient in plain.items():
        scale = max(1.0, float(gradient.abs().max()))
        assert float((ours[name] - gradient).abs().max()) <= 1e-5 * scale, name


def _plain(queries, table, *, silence_lse, silence_value, token, rotation, lengths):
    """`attend_chunks` in plain torch, chunk by chunk."""
    gathered = []
    for chunk, (rows, rotations) in enumerate(
        zip(table[token].split(lengths.tolist()), rotation.split(lengths.tolist()), strict=True)
    ):
        n_rotary = rotations.shape[-1]
        pairs = torch.view_as_complex(
            rows[..., : 2 * n_rotary].unflatten(-1, (n_rotary, 2)).contiguous()
        )
        rotated = torch.view_as_real(pairs * rotations[:, None, None]).flatten(-2)
        rows = torch.cat([rotated, rows[..., 2 * n_rotary :]], dim=-1)
        logit = torch.einsum("hmd,lhd->hml", queries, rows[:, 0]) * queries.shape[-1] ** -0.5
        weight = torch.cat([silence_lse[chunk][..., None], logit], dim=-1).softmax(-1)
        value = torch.einsum("hml,lhd->hmd", weight[..., 1:], rows[:, 1])
        gathered.append(value + weight[..., :1] * silence_value[chunk])
    return torch.stack(gathered)


def test_streaming_presets_have_their_sizes() -> None:
    for name, low, high in (("stream", 2e5, 5e5), ("stream-8m", 6e6, 1e7)):
        model = families.build(families.preset(name), ["u"], ["s"])
        assert low <= families.n_parameters(model) <= high, families.n_parameters(model)


def test_training_queries_come_after_the_warm_up() -> None:
    config = replace(PossmConfig(), train_s=1.0)
    query_times = config.training_queries(np.random.default_rng(0))
    assert query_times.min() >= config.warm_up_s - 1e-9
    assert query_times.max() == pytest.approx(config.train_s)
    walked = config.walked_queries(0.05)
    np.testing.assert_allclose(np.diff(walked), 0.05)
    assert walked[0] >= config.warm_up_s - 1e-9


def test_a_carried_state_never_saw_its_own_window() -> None:
    """Three windows of one session, one of another: no initial state depends on its own window."""
    model, config, _ = random_model("stream", 5, seed=1)
    width = config.num_latents * config.dim + possm.N_AGES
    inputs = torch.randn(4, config.n_chunks, width, generator=torch.Generator().manual_seed(0))
    session = torch.tensor([1, 2, 1, 1])

    def begins(given: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(2)  # draws the same fresh windows
        return possm._carried(model, config, given, session)

    before = begins(inputs)
    assert (before[1] == 0).all(), "the only window of its session has nothing to carry"
    assert (before != 0).any(dim=1).sum() >= 1
    for window in range(4):
        changed = inputs.clone()
        changed[window] += 1.0
        after = begins(changed)
        assert torch.equal(after[window], before[window])


@pytest.mark.parametrize(("lengths", "train_s", "batch"), [
    ((600.0,), 8.0, 4),
    ((5.0, 6.0, 6.0), 4.0, 8),
    ((2.5, 3.0, 3.5, 8.0), 2.0, 16),
    ((1.2, 1.3, 3.0, 3.0), 1.0, 32),
    ((0.5, 0.6, 0.7, 3.0), 1.0, 32),
])  # fmt: skip
def test_training_windows_are_as_long_as_most_intervals_allow(
    lengths: tuple[float, ...], train_s: float, batch: int
) -> None:
    intervals = np.array([[10.0 * i, 10.0 * i + length] for i, length in enumerate(lengths)])
    chosen = PRESETS["stream"].training_on([intervals])
    assert (chosen.train_s, chosen.usual_batch) == (train_s, batch)
    old = replace(PRESETS["stream"], train_s=1.0, n_carried=4)
    assert old.training_on([intervals]) == old, "an older run trains as it did"
    assert PRESETS["rt"].training_on([intervals]) == PRESETS["rt"]
    short = np.array([[0.0, 4.0]])  # of one session's validation
    assert PRESETS["stream"].training_on([intervals, short]).train_s <= 2.0


def test_models_that_train_on_other_windows_have_the_same_sizes() -> None:
    stream = PRESETS["stream"]
    assert same_sizes(stream, replace(stream, train_s=1.0, n_carried=2))
    assert not same_sizes(stream, replace(stream, hidden=64))
    assert not same_sizes(stream, PRESETS["rt"])
