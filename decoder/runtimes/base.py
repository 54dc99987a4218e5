"""The runtime of a decoder: append spikes, decode at an instant, reset.

When a spike arrives, it becomes a token row in a ring. A row is a rotated key and value
(`decoder.memory.tokens`) or, for a linear decoder, what a spike of its unit adds to the output. A
decode passes a slice of the ring to ONNX Runtime:

- `decoder.runtimes.poyo.PoyoRuntime`: the window.
- `decoder.runtimes.possm.PossmRuntime`: the open chunk, and a state.
- `decoder.runtimes.linear.RidgeRuntime`: the window, and the lag of each spike.
- `decoder.runtimes.linear.KalmanRuntime`: the closed bins, and a state.

`decoder.runtimes.opening` picks the class; daemon and evaluation treat all of them alike. There is
no LSL, socket or clock here: times are float64 seconds, given by the caller.

`velocity = output * scale + offset`, in m/s, of the movement at the end of the window.
"""

from __future__ import annotations

import abc
import time
from typing import TYPE_CHECKING

import numpy as np

from decoder.arrays import Float32s, Floats, Ints
from decoder.bundles.bundle import Bundle
from decoder.bundles.manifest import GRAPH
from decoder.errors import BundleError
from decoder.memory.ring import TokenRing
from decoder.runtimes.onnx import RuntimeSettings, open_graph
from decoder.usual import Drift

if TYPE_CHECKING:
    import onnxruntime as ort


MAX_RATE_HZ = 200_000  # spikes/s that the ring holds over a window
FUTURE_S = 0.1  # spikes up to this far ahead of the last window are kept for later windows
WARMUP_RUNS = 20
WARMUP_SPIKES = (0, 1, 500, 4000)


class Runtime(abc.ABC):
    """A bundle that is ready to decode.

    epoch: clock time, s, at which token rows are not rotated; choose one near the first spike.
    graph_from: a runtime to share the ONNX Runtime session with, if its graph is the same file.
    window_s: seconds of uninterrupted spikes that a decode needs before it can be trusted.
    n_spikes: number of spikes in the `window_s` before the last decode.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        epoch: float,
        settings: RuntimeSettings | None = None,
        graph_from: Runtime | None = None,
    ) -> None:
        sizes = bundle.manifest.sizes
        self.bundle = bundle
        self.settings = settings or RuntimeSettings()
        self.window_s = sizes.window_s
        self.n_spikes = 0
        self._epoch = epoch
        shared = (
            graph_from is not None
            and graph_from.same_graph(bundle)
            and graph_from.settings == self.settings
        )
        self._session: ort.InferenceSession = (
            graph_from._session if graph_from and shared else open_graph(bundle, self.settings)
        )
        outputs = bundle.manifest.outputs
        self._scale = np.array([output.scale for output in outputs])
        self._offset = np.array([output.offset for output in outputs])
        keep_s = self._kept_s() + FUTURE_S
        self._ring = TokenRing(
            int(MAX_RATE_HZ * keep_s), bundle.tables.tokens.shape[1:], keep_s=keep_s
        )

    @property
    def provider(self) -> str:
        """The execution provider that ONNX Runtime actually uses."""
        return str(self._session.get_providers()[0])

    @property
    def drift(self) -> Drift | None:
        """How far the population is from that of the known days; None if it can't be known."""
        return None

    @property
    def n_overflowed(self) -> int:
        """Number of spikes dropped because the rate was above `MAX_RATE_HZ`."""
        return self._ring.n_overflowed

    def warm_up(self) -> float:
        """Run the graph on made-up spikes until it is warm; returns the last run's duration, s."""
        shape = self.bundle.tables.tokens.shape[1:]
        took = 0.0
        for n_spikes in WARMUP_SPIKES:
            rows = np.zeros((n_spikes, *shape), dtype=np.float32)
            for _ in range(WARMUP_RUNS):
                began = time.perf_counter()
                self._warm_up_once(rows)
                took = time.perf_counter() - began
        return took

    def append(self, times: Floats, unit_index: Ints) -> None:
        """Append spikes.

        times: (n_spikes,) float64, seconds on the clock, in any order.
        unit_index: (n_spikes,) int64, indices into the manifest's `unit_ids`.
        """
        self._ring.append(times, unit_index, self._rows(times, unit_index))

    def same_graph(self, bundle: Bundle) -> bool:
        """Whether a bundle has the same graph as this runtime, with other tables at most."""
        return bundle.manifest.checksums[GRAPH] == self.bundle.manifest.checksums[GRAPH]

    def reset(self) -> None:
        """Forget every spike."""
        self._ring.clear()
        self.n_spikes = 0

    @abc.abstractmethod
    def decode(self, window_end: float) -> Floats:
        """The velocity (2,) float64 in m/s at `window_end`, decoded from the spikes before it.

        A spike at exactly `window_end` belongs to the next window, as in torch_brain's slices.
        """

    @abc.abstractmethod
    def continue_from(self, other: Runtime) -> None:
        """Take over the state, apart from spikes, of another decoder with the same graph."""

    @abc.abstractmethod
    def _rows(self, times: Floats, unit_index: Ints) -> Float32s:
        """The token rows of spikes; arguments as in `append`."""

    @abc.abstractmethod
    def _warm_up_once(self, rows: Float32s) -> None:
        """Run the graph once on made-up token rows."""

    @abc.abstractmethod
    def _kept_s(self) -> float:
        """Seconds of spikes that the ring must hold."""

    def _velocity(self, output: Float32s) -> Floats:
        if output.shape != self._scale.shape:
            raise BundleError(
                f"{self.bundle.path}: the graph's output has shape {output.shape}, expected "
                f"{self._scale.shape}; export the run again"
            )
        return np.asarray(output.astype(np.float64) * self._scale + self._offset)
