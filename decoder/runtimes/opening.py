"""Opening a bundle as the runtime of its family."""

from __future__ import annotations

from decoder.bundles.bundle import Bundle
from decoder.runtimes.base import Runtime
from decoder.runtimes.linear import KalmanRuntime, RidgeRuntime
from decoder.runtimes.onnx import RuntimeSettings
from decoder.runtimes.possm import PossmRuntime
from decoder.runtimes.poyo import PoyoRuntime


def open_runtime(
    bundle: Bundle,
    *,
    epoch: float,
    settings: RuntimeSettings | None = None,
    graph_from: Runtime | None = None,
) -> Runtime:
    """Open a bundle as the runtime of its family. Raises BundleError or ProviderError."""
    kinds: dict[str, type[Runtime]] = {
        "poyo": PoyoRuntime,
        "possm": PossmRuntime,
        "ridge": RidgeRuntime,
        "kalman": KalmanRuntime,
    }
    kind = kinds[bundle.manifest.family]
    return kind(bundle, epoch=epoch, settings=settings, graph_from=graph_from)
