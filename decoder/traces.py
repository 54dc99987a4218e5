"""The velocities behind a calibration's held-out scores, on disk next to its data.

The trainer writes them when it has compared both decoders; the server reads them to be plotted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from decoder.arrays import Floats
from decoder.errors import VolitionError, brief
from decoder.files import replacing

TRACES = "traces.safetensors"  # in the folder of a calibration


class TracesError(VolitionError):
    """The file can't be read or written."""


@dataclass(frozen=True, kw_only=True)
class Traces:
    """Velocities (n, 2) m/s at times (n,), in s since the start of the data, ascending.

    true: None without labels. active: None if there was no active decoder, or it knew no unit.
    tick_s: between instants, except for gaps, such as those between trials.
    """

    times: Floats
    true: Floats | None
    candidate: Floats
    active: Floats | None
    tick_s: float

    def save(self, path: Path) -> None:
        """Write the file atomically; velocities as float32. Raises TracesError."""
        arrays: dict[str, np.ndarray] = {"times": np.ascontiguousarray(self.times, np.float64)}
        for name in ("true", "candidate", "active"):
            if (velocity := getattr(self, name)) is not None:
                arrays[name] = np.ascontiguousarray(velocity, np.float32)
        with replacing(path, TracesError) as partial:
            save_file(arrays, partial, metadata={"tick_s": repr(self.tick_s)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file. Raises TracesError if there is none, or it is damaged."""
        try:
            with safe_open(path, framework="numpy") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                tick_s = float((file.metadata() or {})["tick_s"])
            traces = cls(
                times=found["times"].astype(np.float64),
                true=_velocity(found.get("true")),
                candidate=found["candidate"].astype(np.float64),
                active=_velocity(found.get("active")),
                tick_s=tick_s,
            )
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise TracesError(f"{path}: not readable ({brief(error)})") from error
        n = len(traces.times)
        shapes = [v.shape for v in (traces.true, traces.candidate, traces.active) if v is not None]
        if traces.times.ndim != 1 or any(shape != (n, 2) for shape in shapes):
            raise TracesError(f"{path}: velocities {shapes} at {n} times, expected ({n}, 2)")
        return traces


def _velocity(array: np.ndarray | None) -> Floats | None:
    return None if array is None else array.astype(np.float64)
