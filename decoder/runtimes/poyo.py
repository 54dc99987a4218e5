"""The runtime of the window model, which reads the whole window of spikes at every decode."""

from __future__ import annotations

from decoder.arrays import Float32s, Floats
from decoder.runtimes.attention import AttentionRuntime
from decoder.runtimes.base import Runtime


class PoyoRuntime(AttentionRuntime):
    """The window model: every decode reads the last `window_s` seconds."""

    def decode(self, window_end: float) -> Floats:
        """See `Runtime.decode`."""
        start = window_end - self.window_s
        self._ring.forget_before(start)
        rows, self.n_spikes = self._ring.window(start, window_end)
        return self._velocity(self._run(rows, start)[0])

    def continue_from(self, other: Runtime) -> None:
        """See `Runtime.continue_from`; a window model has no state but its spikes."""

    def _warm_up_once(self, rows: Float32s) -> None:
        self._run(rows, self._epoch)

    def _kept_s(self) -> float:
        return self.window_s
