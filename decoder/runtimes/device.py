"""A decoder's graph on an accelerator: spikes are copied as 16 bytes each, the rest stays there.

The graph, which `training.exports.device` writes, embeds spikes itself, so a tick copies unit
indices and times, not token rows. It runs in buckets, which have fixed numbers of slots. A tick
uses the smallest bucket that holds its spikes and leaves the other slots empty. Each bucket is a
separate ONNX Runtime session with inputs and outputs bound once. On CUDA it may be captured as a
CUDA graph, which needs fixed shapes and addresses. The CPU provider runs the same buckets.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from decoder.arrays import Floats, Ints
from decoder.errors import ProviderError
from decoder.runtimes.onnx import CPU, CUDA, cuda_provider

if TYPE_CHECKING:
    import onnxruntime as ort

Array = NDArray[Any]

BUCKETS = (256, 1_024, 3_072, 10_240, 32_768)  # slots
EMPTY = -1.0  # the unit of a slot without a spike
SLOTS = "n_slots"  # name of the graph's free dimension
CAPTURE_RUNS = 3  # ONNX Runtime captures a graph after two ordinary runs


class BucketedGraph:
    """One graph, opened once per bucket.

    tables: inputs that stay on the device, by name. small: inputs that change with every run, by
    name, as arrays of their shape and dtype. cuda_graphs: capture each bucket (CUDA only).
    Raises ProviderError if the requested provider does not work.
    """

    def __init__(
        self,
        path: Path,
        *,
        tables: Mapping[str, Array],
        small: Mapping[str, Array],
        device: str,
        cuda_graphs: bool = False,
        buckets: tuple[int, ...] = BUCKETS,
    ) -> None:
        self._buckets = [
            _Bucket(path, n_slots, tables, small, device, cuda_graphs) for n_slots in buckets
        ]

    def warm_up(self) -> None:
        """Run every bucket until it is warm and, with `cuda_graphs`, captured."""
        for bucket in self._buckets:
            for _ in range(CAPTURE_RUNS):
                bucket.run(np.zeros(1, dtype=np.int64), np.zeros(1), {})

    def run(
        self, unit_index: Ints, since: Floats, small: Mapping[str, Array] | None = None
    ) -> list[Array]:
        """The graph's outputs.

        unit_index: (n_spikes,) int64, rows of the token table. since: (n_spikes,) float64, seconds
        since the start of the window (or chunk), in any order.
        Raises ValueError if there are more spikes than the largest bucket has slots.
        """
        for bucket in self._buckets:
            if len(unit_index) <= bucket.n_slots:
                return bucket.run(unit_index, since, small or {})
        raise ValueError(
            f"{len(unit_index)} spikes; the largest bucket holds {self._buckets[-1].n_slots}"
        )


class _Bucket:
    """A session with `n_slots` slots and bound inputs and outputs."""

    def __init__(
        self,
        path: Path,
        n_slots: int,
        tables: Mapping[str, Array],
        small: Mapping[str, Array],
        device: str,
        cuda_graphs: bool,
    ) -> None:
        import onnxruntime as ort

        self.n_slots = n_slots
        self._spikes = np.zeros((n_slots, 2))
        self._spikes[:, 0] = EMPTY
        self._n_filled = 0
        session = _open(path, n_slots, device, cuda_graphs)
        self._binding = session.io_binding()
        self._inputs: dict[str, Any] = {}
        for name, value in {"spikes": self._spikes, **tables, **small}.items():
            there = ort.OrtValue.ortvalue_from_numpy(np.asarray(value, order="C"), device, 0)
            self._inputs[name] = there
            self._binding.bind_ortvalue_input(name, there)
        self._outputs = []
        for output in session.get_outputs():
            there = ort.OrtValue.ortvalue_from_numpy(
                np.zeros(output.shape, dtype=np.float32), device, 0
            )
            self._outputs.append(there)
            self._binding.bind_ortvalue_output(output.name, there)
        self._session = session

    def run(self, unit_index: Ints, since: Floats, small: Mapping[str, Array]) -> list[Array]:
        n_spikes = len(unit_index)
        self._spikes[:n_spikes, 0] = unit_index
        self._spikes[:n_spikes, 1] = since
        self._spikes[n_spikes : self._n_filled, 0] = EMPTY
        self._n_filled = n_spikes
        self._inputs["spikes"].update_inplace(self._spikes)
        for name, value in small.items():
            self._inputs[name].update_inplace(value)
        self._session.run_with_iobinding(self._binding)
        return [output.numpy() for output in self._outputs]


def _open(path: Path, n_slots: int, device: str, cuda_graphs: bool) -> ort.InferenceSession:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name(SLOTS, n_slots)
    providers: list[Any] = [CPU]
    if device == "cuda":
        ort.preload_dlls(directory="")
        providers.insert(0, cuda_provider(graphs=cuda_graphs))
    session = ort.InferenceSession(str(path), options, providers=providers)
    runs_on = session.get_providers()[0]
    if device == "cuda" and runs_on != CUDA:
        raise ProviderError(f"CUDA is required, but ONNX Runtime uses {runs_on} on this machine")
    return session
