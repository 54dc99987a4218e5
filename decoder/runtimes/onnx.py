"""ONNX Runtime sessions: which provider runs them, and opening a graph on it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

from decoder.bundles.bundle import Bundle
from decoder.errors import BundleError, ProviderError, brief

if TYPE_CHECKING:
    import onnxruntime as ort

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
PROVIDERS = {"cpu": CPU, "cuda": CUDA}


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


def open_graph(bundle: Bundle, settings: RuntimeSettings) -> ort.InferenceSession:
    """An ONNX Runtime session on the provider asked for; ProviderError where that can't be."""
    import onnxruntime as ort

    if settings.provider not in ("auto", *PROVIDERS):
        raise ProviderError(
            f"provider {settings.provider!r}; expected auto, {', '.join(PROVIDERS)}"
        )
    wants_cuda = settings.provider in ("auto", "cuda") and cuda_driver_present()
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


def cuda_driver_present() -> bool:
    """Whether the NVIDIA driver's library loads; asking ONNX Runtime costs a failed start."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
