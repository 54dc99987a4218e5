"""ONNX Runtime sessions: choosing a provider and opening a graph on it."""

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
    """Settings of ONNX Runtime.

    provider: `cpu`, `cuda`, or `auto` for CUDA if it works and the CPU otherwise.
    require_provider: refuse to run on any other provider.
    threads: intra-op threads; for graphs of this size one is fastest on a shared machine.
    """

    provider: str = "auto"
    require_provider: bool = False
    threads: int = 1


def open_graph(bundle: Bundle, settings: RuntimeSettings) -> ort.InferenceSession:
    """Open a bundle's graph as a session. Raises BundleError, or ProviderError for the settings."""
    import onnxruntime as ort

    if settings.provider not in ("auto", *PROVIDERS):
        raise ProviderError(
            f"provider {settings.provider!r}; expected auto, {', '.join(PROVIDERS)}"
        )
    wants_cuda = settings.provider in ("auto", "cuda") and cuda_driver_present()
    if wants_cuda:  # from pip packages, which ONNX Runtime does not find by itself
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
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise BundleError(
            f"{bundle.graph_path}: ONNX Runtime can't open it ({brief(error)}); export the run "
            "again"
        ) from error
    runs_on = session.get_providers()[0]
    wanted = PROVIDERS.get(settings.provider)
    if settings.require_provider and wanted not in (None, runs_on):
        raise ProviderError(
            f"{wanted} is required, but ONNX Runtime uses {runs_on} on this machine; install "
            "volition[cuda] and an NVIDIA driver, or drop --require-provider"
        )
    return session


def cuda_provider(*, graphs: bool = False) -> tuple[str, dict[str, str]]:
    """The CUDA provider in full float32: TF32 has errors of 2e-3 of the output scale.

    graphs: capture the session's runs as a CUDA graph.
    """
    return CUDA, {"use_tf32": "0", "enable_cuda_graph": str(int(graphs))}


def cuda_driver_present() -> bool:
    """Whether the NVIDIA driver's library loads. Asking ONNX Runtime would cost a failed start."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
