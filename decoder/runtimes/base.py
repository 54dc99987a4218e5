"""One decoder in memory: append spikes, decode at a time, reset.

Every spike becomes a token row when it arrives and waits in a ring; a row is a rotated key and
value (`decoder.memory.tokens`), or what a spike of its unit adds. What a decode does with them
depends on the family of the decoder:

- `decoder.runtimes.poyo.PoyoRuntime` hands the window's slice to ONNX Runtime.
- `decoder.runtimes.possm.PossmRuntime` hands over the open chunk's slice and a state.
- `decoder.runtimes.linear.RidgeRuntime` hands over the window's slice and the lag of each spike.
- `decoder.runtimes.linear.KalmanRuntime` hands over the slices of closed bins and a state.

`decoder.runtimes.opening` picks the class; daemon and evaluation treat all of them alike. Nothing
here knows LSL, sockets or the clock: times come in as float64 seconds.

`velocity = output * scale + offset`, in m/s, of the movement at the window's end.
"""

from __future__ import annotations

import abc
import time
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from decoder.arrays import Floats, Ints
from decoder.bundles.bundle import Bundle
from decoder.bundles.manifest import GRAPH
from decoder.errors import BundleError
from decoder.memory.ring import TokenRing
from decoder.runtimes.onnx import RuntimeSettings, open_graph

if TYPE_CHECKING:
    import onnxruntime as ort


MAX_RATE_HZ = 200_000  # spikes/s that the ring holds over a window
FUTURE_S = 0.1  # spikes this far ahead of the last window's end are kept for later windows
WARMUP_RUNS = 20
WARMUP_SPIKES = (0, 1, 500, 4000)


class Runtime(abc.ABC):
    """A bundle, ready to decode.

    epoch: clock time, seconds, that angles are measured from; take it near the first spike.
    graph_from: a runtime to share the ONNX Runtime session with, if its graph is the same file.
    window_s: seconds of unbroken spikes that a decode needs before it can be trusted.
    n_spikes: spikes in the `window_s` before the last decode.
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
        """The execution provider that really runs, as ONNX Runtime says."""
        return str(self._session.get_providers()[0])

    @property
    def n_overflowed(self) -> int:
        """Spikes left out because more than `MAX_RATE_HZ` came."""
        return self._ring.n_overflowed

    def warm_up(self) -> float:
        """Run the graph on made-up spikes until it is warm; returns the last run's seconds."""
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
        """Add spikes.

        times: (n_spikes,) float64 seconds on the clock, any order.
        unit_index: (n_spikes,) int64, positions in the manifest's `unit_ids`.
        """
        self._ring.append(times, unit_index, self._rows(times, unit_index))

    def same_graph(self, bundle: Bundle) -> bool:
        """Whether a bundle differs from this runtime's in its tables alone."""
        return bundle.manifest.checksums[GRAPH] == self.bundle.manifest.checksums[GRAPH]

    def reset(self) -> None:
        """Forget every spike."""
        self._ring.clear()
        self.n_spikes = 0

    @abc.abstractmethod
    def decode(self, window_end: float) -> Floats:
        """Velocity (2,) float64 in m/s at `window_end`, from spikes before it.

        A spike at exactly `window_end` belongs to the next window, as in torch_brain's slices.
        """

    @abc.abstractmethod
    def continue_from(self, other: Runtime) -> None:
        """Take over what another decoder of the same graph remembers besides spikes."""

    @abc.abstractmethod
    def _rows(self, times: Floats, unit_index: Ints) -> NDArray[np.float32]:
        """Token rows of spikes, arguments as of `append`."""

    @abc.abstractmethod
    def _warm_up_once(self, rows: NDArray[np.float32]) -> None:
        """Run the graph once on made-up token rows."""

    @abc.abstractmethod
    def _kept_s(self) -> float:
        """Seconds of spikes that the ring has to hold."""

    def _velocity(self, output: NDArray[np.float32]) -> Floats:
        if output.shape != self._scale.shape:
            raise BundleError(
                f"{self.bundle.path}: its graph gives an output of shape {output.shape}, expected "
                f"{self._scale.shape}"
            )
        return np.asarray(output.astype(np.float64) * self._scale + self._offset)
