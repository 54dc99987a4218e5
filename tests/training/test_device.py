"""The graph that embeds spikes itself equals the streaming graph, on the CPU provider."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from decoder.errors import ProviderError
from decoder.runtimes.device import BucketedGraph
from decoder.runtimes.onnx import cuda_driver_present
from decoder.runtimes.opening import open_runtime
from training.evaluation.reference import random_bundle
from training.exports.device import device_tables, export_device_graph

TOLERANCE = 1e-5  # in units of the output scale, which is 1
BUCKETS = (64, 1_024)
N_UNITS = 17


class Pair(NamedTuple):
    """Both graphs of one preset. reads_s: seconds of spikes that one run reads."""

    runtime: object
    graph: BucketedGraph
    reads_s: float
    small: dict[str, np.ndarray]
    path: Path
    tables: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=[pytest.param("rt", marks=pytest.mark.slow), "stream"])
def pair(request, tmp_path_factory) -> Pair:
    folder = tmp_path_factory.mktemp("device")
    model, config, bundle = random_bundle(request.param, N_UNITS, folder, seed=3)
    path = folder / "device.onnx"
    export_device_graph(model, config, path)
    small = {}
    if bundle.manifest.family == "possm":
        state = np.random.default_rng(0).normal(size=config.hidden).astype(np.float32)
        small = {"state": state, "share": np.array(0.7, dtype=np.float32)}
    tables = device_tables(bundle.tables)
    return Pair(
        runtime=open_runtime(bundle, epoch=0.0),
        graph=BucketedGraph(path, tables=tables, small=small, device="cpu", buckets=BUCKETS),
        reads_s=getattr(config, "chunk_s", config.window_s),
        small=small,
        path=path,
        tables=tables,
    )


def test_outputs_equal_the_streaming_graph_for_any_number_of_spikes(pair: Pair) -> None:
    """Fewer spikes follow more: slots left over from the run before must not count."""
    pair.graph.warm_up()
    rng = np.random.default_rng(1)
    for n_spikes in (1_024, 700, 64, 65, 3, 1, 0, 40):
        since = rng.uniform(0.0, pair.reads_s, n_spikes)
        units = rng.integers(0, N_UNITS, n_spikes)
        expected = pair.runtime._run(pair.runtime._rows(since, units), 0.0, **pair.small)
        got = pair.graph.run(units, since, pair.small)
        for ours, theirs in zip(got, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, err_msg=str(n_spikes))


def test_more_spikes_than_slots_are_refused(pair: Pair) -> None:
    with pytest.raises(ValueError, match="1025 spikes; the largest bucket holds 1024"):
        pair.graph.run(np.zeros(1_025, dtype=np.int64), np.zeros(1_025), pair.small)


def test_unavailable_cuda_is_refused(pair: Pair) -> None:
    if cuda_driver_present():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ProviderError, match="CUDA is required, but ONNX Runtime uses CPU"):
        BucketedGraph(pair.path, tables=pair.tables, small=pair.small, device="cuda", buckets=(64,))
