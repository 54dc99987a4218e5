"""The runtimes of the linear decoders, where each spike adds its unit's row to output or state.

Ridge: `velocity = offset + sum over spikes of weight[unit, lag]`, over bins that end at the decoded
instant. Kalman: `state' = transition @ state + drift + sum over the bin's spikes of gain[unit]`.
Between the ends of bins the Kalman filter returns its last state, so most ticks cost nothing.
"""

from __future__ import annotations

import numpy as np

from decoder.arrays import Float32s, Floats, Ints
from decoder.bundles.bundle import Bundle
from decoder.bundles.families import KalmanSizes, KalmanTables, RidgeSizes
from decoder.memory.chunks import EDGE_S, Chunks
from decoder.runtimes.base import Runtime
from decoder.runtimes.onnx import RuntimeSettings


class LinearRuntime(Runtime):
    """The common base of both: a spike's row does not depend on its time."""

    def continue_from(self, other: Runtime) -> None:
        """See `Runtime.continue_from`; only the spikes of the last `window_s` count."""

    def _rows(self, times: Floats, unit_index: Ints) -> Float32s:
        return self.bundle.tables.tokens[unit_index]


class RidgeRuntime(LinearRuntime):
    """Ridge regression on spike counts in the last bins."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        epoch: float,
        settings: RuntimeSettings | None = None,
        graph_from: Runtime | None = None,
    ) -> None:
        sizes = bundle.manifest.sizes
        assert isinstance(sizes, RidgeSizes), "families and sizes agree in a Manifest"
        super().__init__(bundle, epoch=epoch, settings=settings, graph_from=graph_from)
        self._lags = np.arange(sizes.n_lags)
        self._edges_s = np.arange(sizes.n_lags, -1, -1) * sizes.bin_s  # before the decoded instant

    def decode(self, window_end: float) -> Floats:
        """See `Runtime.decode`."""
        edges = window_end - self._edges_s
        self._ring.forget_before(edges[0])
        first = self._ring.times.searchsorted(edges)
        self.n_spikes = int(first[-1] - first[0])
        rows = self._ring.rows[first[0] : first[-1]]
        return self._velocity(self._sum(rows, np.repeat(self._lags, np.diff(first))))

    def _sum(self, rows: Float32s, lags: Ints) -> Float32s:
        if len(rows) == 0:  # ONNX Runtime 1.31 crashes on some inputs without rows
            rows, lags = np.zeros((1, *rows.shape[1:]), dtype=np.float32), self._lags[:1]
        output: Float32s = self._session.run(None, {"tokens": rows, "lags": lags[:, None]})[0]
        return output

    def _warm_up_once(self, rows: Float32s) -> None:
        self._sum(rows, np.zeros(len(rows), dtype=np.int64))

    def _kept_s(self) -> float:
        return self.window_s


class KalmanRuntime(LinearRuntime):
    """The steady-state Kalman filter. A bin is closed `lead_bins` after its end.

    The initial state is zero; its influence is gone after `window_s`.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        epoch: float,
        settings: RuntimeSettings | None = None,
        graph_from: Runtime | None = None,
    ) -> None:
        sizes, tables = bundle.manifest.sizes, bundle.tables
        assert isinstance(sizes, KalmanSizes), "families and sizes agree in a Manifest"
        assert isinstance(tables, KalmanTables), "families and tables agree in a Bundle"
        self._chunks = Chunks(
            chunk_s=sizes.bin_s,
            window_s=sizes.window_s,
            fresh=np.zeros(sizes.dim_out, dtype=np.float32),
        )
        self._lead_s = sizes.lead_bins * sizes.bin_s
        super().__init__(bundle, epoch=epoch, settings=settings, graph_from=graph_from)
        self._constant = {"transition": tables.transition, "drift": tables.drift}

    def append(self, times: Floats, unit_index: Ints) -> None:
        """See `Runtime.append`; bins of late spikes are reopened."""
        super().append(times, unit_index)
        if len(times):
            self._chunks.reopen(float(times.min()))

    def decode(self, window_end: float) -> Floats:
        """See `Runtime.decode`."""
        chunks = self._chunks
        chunks.begin_decode(window_end)
        while (end := chunks.next_end) <= window_end - self._lead_s + EDGE_S:
            rows, _ = self._ring.window(chunks.end, end)
            chunks.close(self._step(rows, chunks.state))
        since = window_end - self.window_s
        self._ring.forget_before(min(since, chunks.oldest_edge))
        self.n_spikes = self._ring.window(since, window_end)[1]
        return self._velocity(chunks.state)

    def reset(self) -> None:
        """Forget every spike and the state."""
        super().reset()
        self._chunks.forget()

    def _step(self, rows: Float32s, state: Float32s) -> Float32s:
        if len(rows) == 0:  # ONNX Runtime 1.31 crashes on some inputs without rows
            rows = np.zeros((1, *rows.shape[1:]), dtype=np.float32)
        feeds = {"tokens": rows, "state": state, **self._constant}
        after: Float32s = self._session.run(None, feeds)[0]
        return after

    def _warm_up_once(self, rows: Float32s) -> None:
        self._step(rows, self._chunks.fresh)

    def _kept_s(self) -> float:
        return self.window_s + self._lead_s + 3 * self._chunks.chunk_s
