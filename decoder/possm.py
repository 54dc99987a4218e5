"""The streaming model in memory: a state that every closed chunk of spikes moves on.

Chunks follow each other from where the state began. At a decode all chunks that have ended are
closed, one step of the graph each; then the open chunk, as far as it has come, is run from the
last closed state, and that is the answer. So a tick costs one chunk, whatever came before.

States of the last chunks are kept: a spike that arrives late goes back to the chunk it belongs
to, and those after it are closed again. A decode is thus a function of the spikes that had
arrived and of where the state began, as with the window model.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from decoder.bundle import Bundle, PossmSizes
from decoder.errors import BundleError
from decoder.runtime import Floats, Ints, Runtime, RuntimeSettings

EDGE_S = 1e-6  # a time so close to a chunk's edge stands on it; spikes there belong to the next


class _Closed(NamedTuple):
    """The state after `number` chunks since the state began."""

    number: int
    state: NDArray[np.float32]


class PossmRuntime(Runtime):
    """The streaming model. A fresh state begins `window_s` before the first decode after a reset.

    Where no decode came for longer than `window_s`, the state begins anew: what lies between is
    not known.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        epoch: float,
        settings: RuntimeSettings | None = None,
        like: Runtime | None = None,
    ) -> None:
        sizes = bundle.manifest.sizes
        if not isinstance(sizes, PossmSizes):
            raise BundleError(f"{bundle.path}: family {bundle.manifest.family!r} has no state")
        self._chunk_s = sizes.chunk_s
        super().__init__(bundle, epoch=epoch, settings=settings, like=like)
        self._fresh = np.zeros(sizes.hidden, dtype=np.float32)
        self._whole = np.ones((), dtype=np.float32)
        n_kept = int(np.ceil(self.window_s / self._chunk_s)) + 2
        self._closed: deque[_Closed] = deque(maxlen=n_kept)
        self._began = 0.0
        self._last_decode = -np.inf

    @property
    def state(self) -> NDArray[np.float32]:
        """(hidden,) of the last closed chunk."""
        return self._closed[-1].state if self._closed else self._fresh

    def append(self, times: Floats, unit_index: Ints) -> None:
        """See `Runtime.append`; chunks that late spikes belong to are opened again."""
        super().append(times, unit_index)
        if len(times) and self._closed:
            oldest = float(times.min())
            while len(self._closed) > 1 and self._end_of(self._closed[-1]) - EDGE_S > oldest:
                self._closed.pop()

    def decode(self, window_end: float) -> Floats:
        """See `Runtime.decode`."""
        if not self._closed or not 0 <= window_end - self._last_decode <= self.window_s:
            self._begin(window_end - self.window_s)
        self._last_decode = window_end
        while (end := self._end_of(self._closed[-1]) + self._chunk_s) < window_end - EDGE_S:
            _, state = self._step(end - EDGE_S, self._whole)
            self._closed.append(_Closed(self._closed[-1].number + 1, state))
        since = window_end - self.window_s
        self._ring.forget_before(min(since, self._end_of(self._closed[0]) - EDGE_S))
        self.n_spikes = self._ring.window(since, window_end)[1]
        passed = (window_end - self._end_of(self._closed[-1])) / self._chunk_s
        output, _ = self._step(window_end, np.array(passed, dtype=np.float32))
        return self._velocity(output)

    def continue_from(self, other: Runtime) -> None:
        """Take over the states of another decoder of the same graph: it was the same movement."""
        if isinstance(other, PossmRuntime) and other.same_graph(self.bundle):
            self._closed = deque(other._closed, maxlen=self._closed.maxlen)
            self._began, self._last_decode = other._began, other._last_decode

    def reset(self) -> None:
        """Forget every spike and the state."""
        super().reset()
        self._closed.clear()

    def _begin(self, at: float) -> None:
        self._closed.clear()
        self._closed.append(_Closed(0, self._fresh))
        self._began = at

    def _end_of(self, closed: _Closed) -> float:
        return self._began + closed.number * self._chunk_s

    def _step(self, until: float, share: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Output and next state over the chunk after the last closed one, up to `until`."""
        last = self._closed[-1]
        start = self._end_of(last)
        rows, _ = self._ring.window(start - EDGE_S, until)
        return self._run(rows, start, state=last.state, share=share)

    def _try(self, rows: NDArray[np.float32]) -> None:
        self._run(rows, self._epoch, state=self._fresh, share=self._whole)

    def _kept_s(self) -> float:
        return self.window_s + 3 * self._chunk_s
