"""The common base of the window model and the streaming model: latents that attend to spikes."""

from __future__ import annotations

import numpy as np

from decoder.arrays import Float32s, Floats, Ints
from decoder.bundles.bundle import Bundle
from decoder.bundles.families import AttentionTables
from decoder.memory.tokens import embed, phases
from decoder.runtimes.base import Runtime
from decoder.runtimes.onnx import RuntimeSettings


class AttentionRuntime(Runtime):
    """A model whose latents attend to spikes; token rows are keys and values, rotated by time."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        epoch: float,
        settings: RuntimeSettings | None = None,
        graph_from: Runtime | None = None,
    ) -> None:
        assert isinstance(bundle.tables, AttentionTables), "families and tables agree in a Bundle"
        self._tables = bundle.tables
        super().__init__(bundle, epoch=epoch, settings=settings, graph_from=graph_from)
        self._constant = {
            name: getattr(self._tables, name)
            for name in ("boundary_lse", "boundary_value", "session", "readout")
            if getattr(self._tables, name) is not None
        }
        self._silence = _silence(self._tables)

    def _rows(self, times: Floats, unit_index: Ints) -> Float32s:
        tables = self._tables
        return embed(tables.tokens, unit_index, times - self._epoch, tables.omega)

    def _run(self, rows: Float32s, start: float, **more: Float32s) -> list[Float32s]:
        """The graph's outputs for the token rows of a window or chunk that starts at `start`."""
        cos, sin = phases(np.array([start - self._epoch]), self._tables.omega)
        feeds = {"tokens": rows, "window_cos": cos[0], "window_sin": sin[0], **self._constant}
        if len(rows) == 0:
            feeds |= self._silence
        outputs: list[Float32s] = self._session.run(None, feeds | more)
        return outputs


def _silence(tables: AttentionTables) -> dict[str, Float32s]:
    """Inputs for a window without spikes.

    Without a key, ONNX Runtime 1.31 crashes with a division by zero. So there is one zero row, and
    the start and end tokens get so much weight that its own underflows to exactly 0.
    """
    return {
        "tokens": np.zeros((1, *tables.tokens.shape[1:]), dtype=np.float32),
        "boundary_lse": tables.boundary_lse + np.float32(1e4),
    }
