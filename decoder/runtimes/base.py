"""One decoder in memory: append spikes, decode at a time, reset.

Every spike becomes a token row when it arrives and waits in a ring; a row is a rotated key and
value (`decoder.memory.tokens`), or what a spike of its unit adds. What a decode does with them
depends on the family of the decoder:

- `PoyoRuntime` hands the window's slice to ONNX Runtime, which runs the latents over it.
- `decoder.runtimes.possm.PossmRuntime` hands over the open chunk's slice and a state.
- `decoder.runtimes.linear.RidgeRuntime` hands over the window's slice and the lag of each spike.
- `decoder.runtimes.linear.KalmanRuntime` hands over the slices of closed bins and a state.

`open_runtime` picks it; the daemon and the evaluation know no difference. Nothing here knows
LSL, sockets or the clock: times come in as float64 seconds.

`velocity = output * scale + offset`, in m/s, of the movement at the window's end.
"""

from __future__ import annotations

import abc
import ctypes
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from decoder.arrays import Floats, Ints
from decoder.bundles.bundle import GRAPH, Bundle
from decoder.bundles.families import UnitTables
from decoder.errors import BundleError, ProviderError, brief
from decoder.memory.ring import TokenRing
from decoder.memory.tokens import embed, phases

if TYPE_CHECKING:
    import onnxruntime as ort


CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
PROVIDERS = {"cpu": CPU, "cuda": CUDA}
MAX_RATE_HZ = 200_000  # spikes/s that the ring holds over a window
FUTURE_S = 0.1  # spikes this far ahead of the last window's end are kept for later windows
WARMUP_RUNS = 20
WARMUP_SPIKES = (0, 1, 500, 4000)


@dataclass(frozen=True, kw_only=True)
class RuntimeSettings:
    """How ONNX Runtime runs.

    provider: `auto` takes CUDA where it works and the CPU elsewhere.
    require_provider: refuse to run on anything but `provider`.
    threads: intra-op threads; one is fastest at these sizes on a shared machine.
    """

    provider: str = "auto"
    require_provider: bool = False
    threads: int = 1


class Runtime(abc.ABC):
    """A bundle, ready to decode.

    epoch: clock time, seconds, that angles are measured from; take it near the first spike.
    like: another runtime; where its graph is the same file, it is shared and not opened again.
    window_s: seconds of unbroken spikes that a decode needs before it can be trusted.
    n_spikes: spikes in the `window_s` before the last decode.
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
        self.bundle = bundle
        self.settings = settings or RuntimeSettings()
        self.window_s = sizes.window_s
        self.n_spikes = 0
        self._epoch = epoch
        shared = like is not None and like.same_graph(bundle) and like.settings == self.settings
        self._session: ort.InferenceSession = (
            like._session if like and shared else _open_graph(bundle, self.settings)
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
                self._try(rows)
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
    def _try(self, rows: NDArray[np.float32]) -> None:
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


class AttentionRuntime(Runtime):
    """A model whose latents attend to spikes; rows are keys and values, rotated to the clock."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        epoch: float,
        settings: RuntimeSettings | None = None,
        like: Runtime | None = None,
    ) -> None:
        assert isinstance(bundle.tables, UnitTables), "families and tables agree in a Bundle"
        self._tables = bundle.tables
        super().__init__(bundle, epoch=epoch, settings=settings, like=like)
        self._constant = {
            name: getattr(self._tables, name)
            for name in ("boundary_lse", "boundary_value", "session")
        }
        self._silence = _silence(self._tables)

    def _rows(self, times: Floats, unit_index: Ints) -> NDArray[np.float32]:
        tables = self._tables
        return embed(tables.tokens, unit_index, times - self._epoch, tables.omega)

    def _run(
        self, rows: NDArray[np.float32], start: float, **more: NDArray[np.float32]
    ) -> list[NDArray[np.float32]]:
        """The graph's outputs, from token rows of a window or chunk that begins at `start`."""
        cos, sin = phases(np.array([start - self._epoch]), self._tables.omega)
        feeds = {"tokens": rows, "window_cos": cos[0], "window_sin": sin[0], **self._constant}
        if len(rows) == 0:
            feeds |= self._silence
        outputs: list[NDArray[np.float32]] = self._session.run(None, feeds | more)
        return outputs


class PoyoRuntime(AttentionRuntime):
    """The window model: every decode reads the last `window_s` seconds again."""

    def decode(self, window_end: float) -> Floats:
        """See `Runtime.decode`."""
        start = window_end - self.window_s
        self._ring.forget_before(start)
        rows, self.n_spikes = self._ring.window(start, window_end)
        return self._velocity(self._run(rows, start)[0])

    def continue_from(self, other: Runtime) -> None:
        """See `Runtime.continue_from`; a window is nothing but spikes."""

    def _try(self, rows: NDArray[np.float32]) -> None:
        self._run(rows, self._epoch)

    def _kept_s(self) -> float:
        return self.window_s


def open_runtime(
    bundle: Bundle,
    *,
    epoch: float,
    settings: RuntimeSettings | None = None,
    like: Runtime | None = None,
) -> Runtime:
    """The runtime for a bundle's family. Raises BundleError or ProviderError."""
    from decoder.runtimes.linear import KalmanRuntime, RidgeRuntime
    from decoder.runtimes.possm import PossmRuntime

    kinds: dict[str, type[Runtime]] = {
        "poyo": PoyoRuntime,
        "possm": PossmRuntime,
        "ridge": RidgeRuntime,
        "kalman": KalmanRuntime,
    }
    kind = kinds[bundle.manifest.family]
    return kind(bundle, epoch=epoch, settings=settings, like=like)


def _silence(tables: UnitTables) -> dict[str, NDArray[np.float32]]:
    """Inputs for a window without spikes.

    Zero keys make ONNX Runtime 1.31 die of a division by zero. One zero row is given instead,
    and start and end tokens are weighted so much more that its weight underflows to exactly 0.
    """
    return {
        "tokens": np.zeros((1, *tables.tokens.shape[1:]), dtype=np.float32),
        "boundary_lse": tables.boundary_lse + np.float32(1e4),
    }


def _open_graph(bundle: Bundle, settings: RuntimeSettings) -> ort.InferenceSession:
    """An ONNX Runtime session on the provider asked for; ProviderError where that can't be."""
    import onnxruntime as ort

    if settings.provider not in ("auto", *PROVIDERS):
        raise ProviderError(
            f"provider {settings.provider!r}; expected auto, {', '.join(PROVIDERS)}"
        )
    wants_cuda = settings.provider in ("auto", "cuda") and _cuda_driver_present()
    if wants_cuda:  # of a pip install, which ONNX Runtime doesn't find by itself
        ort.preload_dlls(directory="")
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(
            str(bundle.graph_path),
            options,
            providers=[cuda_provider(), CPU] if wants_cuda else [CPU],
        )
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise BundleError(
            f"{bundle.graph_path}: ONNX Runtime can't open it ({brief(error)})"
        ) from error
    runs_on = session.get_providers()[0]
    wanted = PROVIDERS.get(settings.provider)
    if settings.require_provider and wanted not in (None, runs_on):
        raise ProviderError(
            f"{wanted} was required, but ONNX Runtime runs {runs_on} on this machine; install "
            "volition[cuda] and an NVIDIA driver, or drop --require-provider"
        )
    return session


def cuda_provider(*, graphs: bool = False) -> tuple[str, dict[str, str]]:
    """CUDA in full float32, as ONNX Runtime takes it: TF32 is off by 2e-3 of the output scale.

    graphs: capture the session's runs as a CUDA graph.
    """
    return CUDA, {"use_tf32": "0", "enable_cuda_graph": str(int(graphs))}


def _cuda_driver_present() -> bool:
    """Whether the NVIDIA driver's library loads; asking ONNX Runtime costs a failed start."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
