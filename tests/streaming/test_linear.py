"""The linear decoders in the daemon, over real LSL and ZeroMQ."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import get_args
from uuid import uuid4

import numpy as np
import pytest
from safetensors.numpy import load_file

from clients.subscriber import CursorSubscriber
from decoder.bundles.bundle import Bundle
from streaming.wire import messages as wire
from tests.rig import daemon, frames_until
from tests.streaming.test_live import assert_safe, drain, heard_from_the_start, is_decoding
from training.baselines.linear import Kind, fit_linear
from training.baselines.ridge import BIN_S, N_LAGS
from training.data.simulate import simulate

N_UNITS = 40


def counts(times: np.ndarray, units: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Counts (n_bins, n_units) of spikes between edges."""
    found = [
        np.histogram(units[(times >= a) & (times < b)], np.arange(N_UNITS + 1))[0]
        for a, b in pairwise(edges)
    ]
    return np.array(found).reshape(-1, N_UNITS)


def expected(bundle: Bundle, times: np.ndarray, units: np.ndarray, began: float, at: float):
    """Velocity (2,), m/s, computed from the fitted matrices only."""
    fitted = load_file(bundle.weights_path)
    if bundle.manifest.family == "ridge":
        seen = counts(times, units, at - np.arange(N_LAGS, -1, -1) * BIN_S)
        return fitted["offset"] + np.einsum("lu,ulx->x", seen, fitted["weights"])
    n_bins = int((at - began) / BIN_S + 1e-6) - bundle.manifest.sizes.lead_bins
    state = np.zeros(2)
    for seen in counts(times, units, began + np.arange(n_bins + 1) * BIN_S):
        state = fitted["transition"] @ state
        surprise = seen - fitted["mean_count"] - fitted["observation"] @ state
        state = state + fitted["gain"] @ surprise
    return state


@pytest.mark.parametrize("kind", get_args(Kind))
def test_live_velocities_match_the_fitted_matrices(kind: Kind, tmp_path: Path) -> None:
    session = simulate(n_units=N_UNITS, minutes=1.0, subject=1, seed=2)
    session = replace(session, session_id=f"linear-{uuid4().hex[:8]}")
    bundle = fit_linear(session, kind, tmp_path / "linear.bundle")
    window_s = bundle.manifest.sizes.window_s
    stream = f"{session.session_id}-spikes"
    with (
        daemon(tmp_path, bundle.path, stream) as (_, address),
        CursorSubscriber(address, max_age_s=None) as cursor,
        heard_from_the_start(session, cursor) as (inlet, frames),
    ):
        frames += frames_until(cursor, is_decoding)
        start = frames[-1].window_end
        frames += frames_until(cursor, lambda f: f.window_end > start + 2.0)
        stamps, units = drain(inlet, frames[-1].n_drained)
    assert_safe(frames)
    valid = [frame for frame in frames if frame.valid]
    assert len(valid) > 150
    stamps = stamps + offsets(frames, len(stamps))
    for frame in valid[::7]:
        times = stamps[: frame.n_drained]
        inside = (times >= frame.window_end - window_s) & (times < frame.window_end)
        assert frame.n_spikes == inside.sum()
        wanted = expected(
            bundle, times, units[: frame.n_drained],
            began=valid[0].window_end - window_s, at=frame.window_end,
        )  # fmt: skip
        np.testing.assert_allclose(frame.velocity, wanted, atol=1e-5)


def offsets(frames: list[wire.CursorFrame], n_events: int) -> np.ndarray:
    """Clock offset (n_events,), s, of the tick that drained each event."""
    applied = np.empty(n_events)
    seen = 0
    for frame in frames:
        applied[seen : frame.n_drained] = frame.clock_offset
        seen = max(seen, frame.n_drained)
    applied[seen:] = frames[-1].clock_offset
    return applied
