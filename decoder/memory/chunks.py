"""Chunks of equal length that follow each other from where a state began, and their states.

A state begins `window_s` before the first decode; every chunk that has ended is closed and moves
it on. States of the last chunks are kept: a spike that arrives late opens its chunk and those
after it again, so that a state is a function of the spikes that had arrived and of where it
began. Where no decode came for longer than `window_s`, the state begins anew: what lies between
is not known.

It does not know what a state is or how a chunk moves it on.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

EDGE_S = 1e-6  # a time so close to a chunk's edge stands on it


class _Closed(NamedTuple):
    """The state after `number` chunks since the state began."""

    number: int
    state: Array


class Chunks:
    """The closed chunks of one decoder.

    fresh: the state where it begins.
    """

    def __init__(self, *, chunk_s: float, window_s: float, fresh: Array) -> None:
        self.chunk_s, self.window_s, self.fresh = chunk_s, window_s, fresh
        self._closed: deque[_Closed] = deque(maxlen=int(np.ceil(window_s / chunk_s)) + 2)
        self._began = 0.0
        self._last_decode = -np.inf

    @property
    def state(self) -> Array:
        """After the last closed chunk."""
        return self._closed[-1].state if self._closed else self.fresh

    @property
    def end(self) -> float:
        """Where the last closed chunk ends and the open one starts, s."""
        return self._end_of(self._closed[-1])

    @property
    def next_end(self) -> float:
        """Where the open chunk ends, s."""
        return self._end_of(self._closed[-1]) + self.chunk_s

    @property
    def oldest_edge(self) -> float:
        """Before it no spike is needed any more, however late another one comes, s."""
        return self._end_of(self._closed[0]) - EDGE_S

    def arrive(self, window_end: float) -> None:
        """A decode at `window_end` is wanted: begin, unless the state goes on from the last one."""
        if not self._closed or not 0 <= window_end - self._last_decode <= self.window_s:
            self._closed.clear()
            self._closed.append(_Closed(0, self.fresh))
            self._began = window_end - self.window_s
        self._last_decode = window_end

    def close(self, state: Array) -> None:
        """The open chunk has ended; `state` is that after it."""
        self._closed.append(_Closed(self._closed[-1].number + 1, state))

    def reopen(self, oldest: float) -> None:
        """A spike at `oldest` came: open its chunk and those after it again."""
        while len(self._closed) > 1 and self.end > oldest:
            self._closed.pop()

    def forget(self) -> None:
        """Forget every state."""
        self._closed.clear()

    def take_over(self, other: Chunks) -> None:
        """Go on with the states of another decoder."""
        self._closed = deque(other._closed, maxlen=self._closed.maxlen)
        self._began, self._last_decode = other._began, other._last_decode

    def _end_of(self, closed: _Closed) -> float:
        return self._began + closed.number * self.chunk_s
