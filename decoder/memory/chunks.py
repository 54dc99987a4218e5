"""Consecutive chunks of equal length, and the state after each of them.

A state starts `window_s` before the first decode, and every closed chunk advances it. The states of
the last chunks are kept, so that a late spike can reopen its chunk and those after it. So a state
depends only on its start and on the spikes that have arrived. After more than `window_s` without a
decode the state starts again, because the spikes in between are not known.

What a state is, and how a chunk advances it, is up to the caller.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np

from decoder.arrays import Float32s

EDGE_S = 1e-6  # times this close to a chunk's edge count as on the edge


class _Closed(NamedTuple):
    """The state after `number` chunks since its start."""

    number: int
    state: Float32s


class Chunks:
    """The closed chunks of one decoder.

    fresh: the initial state.
    """

    def __init__(self, *, chunk_s: float, window_s: float, fresh: Float32s) -> None:
        self.chunk_s, self.window_s, self.fresh = chunk_s, window_s, fresh
        self._closed: deque[_Closed] = deque(maxlen=int(np.ceil(window_s / chunk_s)) + 2)
        self._began = 0.0
        self._last_decode = -np.inf

    @property
    def state(self) -> Float32s:
        """The state after the last closed chunk."""
        return self._closed[-1].state if self._closed else self.fresh

    @property
    def end(self) -> float:
        """End of the last closed chunk and start of the open one, s."""
        return self._end_of(self._closed[-1])

    @property
    def next_end(self) -> float:
        """End of the open chunk, s."""
        return self._end_of(self._closed[-1]) + self.chunk_s

    @property
    def oldest_edge(self) -> float:
        """Time before which spikes are never needed again, even if others arrive late, s."""
        return self._end_of(self._closed[0]) - EDGE_S

    def begin_decode(self, window_end: float) -> None:
        """Prepare for a decode at `window_end`; start again if it does not follow the last one."""
        if not self._closed or not 0 <= window_end - self._last_decode <= self.window_s:
            self._closed.clear()
            self._closed.append(_Closed(0, self.fresh))
            self._began = window_end - self.window_s
        self._last_decode = window_end

    def close(self, state: Float32s) -> None:
        """Close the open chunk, with `state` as the state after it."""
        self._closed.append(_Closed(self._closed[-1].number + 1, state))

    def reopen(self, oldest: float) -> None:
        """Reopen the chunk of a late spike at `oldest`, and all chunks after it."""
        while len(self._closed) > 1 and self.end > oldest:
            self._closed.pop()

    def forget(self) -> None:
        """Forget every state."""
        self._closed.clear()

    def take_over(self, other: Chunks) -> None:
        """Continue with the states of another decoder."""
        self._closed = deque(other._closed, maxlen=self._closed.maxlen)
        self._began, self._last_decode = other._began, other._last_decode

    def _end_of(self, closed: _Closed) -> float:
        return self._began + closed.number * self.chunk_s
