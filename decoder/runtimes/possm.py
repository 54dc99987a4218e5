"""The runtime of the streaming model, whose state every closed chunk of spikes advances.

A decode first closes all chunks that have ended (`decoder.memory.chunks`), with one step of the
graph for each. Then it runs the open chunk up to the decoded instant from the last closed state,
which gives the velocity. So the cost of a tick is about one chunk, however long decoding has run.
"""

from __future__ import annotations

import numpy as np

from decoder.arrays import Float32s, Floats, Ints
from decoder.bundles.bundle import Bundle
from decoder.bundles.families import PossmSizes
from decoder.errors import BundleError
from decoder.memory.chunks import EDGE_S, Chunks
from decoder.runtimes.attention import AttentionRuntime
from decoder.runtimes.base import Runtime
from decoder.runtimes.onnx import RuntimeSettings
from decoder.usual import Drift


class PossmRuntime(AttentionRuntime):
    """The streaming model."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        epoch: float,
        settings: RuntimeSettings | None = None,
        graph_from: Runtime | None = None,
    ) -> None:
        sizes = bundle.manifest.sizes
        if not isinstance(sizes, PossmSizes):
            raise BundleError(f"{bundle.path}: family {bundle.manifest.family!r} has no state")
        self._chunks = Chunks(  # before super(), which asks for `_kept_s`
            chunk_s=sizes.chunk_s,
            window_s=sizes.window_s,
            fresh=np.zeros(sizes.hidden, dtype=np.float32),
        )
        self._drift = Drift(bundle.usual, every_s=sizes.chunk_s) if bundle.usual else None
        super().__init__(bundle, epoch=epoch, settings=settings, graph_from=graph_from)
        self._whole = np.ones((), dtype=np.float32)

    @property
    def state(self) -> Float32s:
        """The state (hidden,) after the last closed chunk."""
        return self._chunks.state

    @property
    def drift(self) -> Drift | None:
        """See `Runtime.drift`."""
        return self._drift

    def append(self, times: Floats, unit_index: Ints) -> None:
        """See `Runtime.append`; chunks of late spikes are reopened."""
        super().append(times, unit_index)
        if len(times):
            self._chunks.reopen(float(times.min()))

    def decode(self, window_end: float) -> Floats:
        """See `Runtime.decode`."""
        chunks = self._chunks
        chunks.begin_decode(window_end)
        while (end := chunks.next_end) < window_end - EDGE_S:
            _, state = self._step(end - EDGE_S, self._whole)
            chunks.close(state)
            if self._drift is not None:
                self._drift.see(state)
        since = window_end - self.window_s
        self._ring.forget_before(min(since, chunks.oldest_edge))
        self.n_spikes = self._ring.window(since, window_end)[1]
        share = (window_end - chunks.end) / chunks.chunk_s
        output, _ = self._step(window_end, np.array(share, dtype=np.float32))
        return self._velocity(output)

    def continue_from(self, other: Runtime) -> None:
        """Take over the states of another decoder with the same graph, for the same movement."""
        if isinstance(other, PossmRuntime) and other.same_graph(self.bundle):
            self._chunks.take_over(other._chunks)

    def reset(self) -> None:
        """Forget every spike and the state."""
        super().reset()
        self._chunks.forget()
        if self._drift is not None:
            self._drift.forget()

    def _step(self, until: float, share: Float32s) -> list[Float32s]:
        """Output and next state for the open chunk up to `until`.

        share: how much of the chunk has passed by then, 0 to 1.
        """
        start = self._chunks.end  # spikes within EDGE_S before a chunk's end belong to the next
        rows, _ = self._ring.window(start - EDGE_S, until)
        return self._run(rows, start, state=self._chunks.state, share=share)

    def _warm_up_once(self, rows: Float32s) -> None:
        self._run(rows, self._epoch, state=self._chunks.fresh, share=self._whole)

    def _kept_s(self) -> float:
        return self.window_s + 3 * self._chunks.chunk_s
