"""Which methods a decoder can be the base of."""

from __future__ import annotations

from decoder.bundles.bundle import identifies_units, open_bundle
from server.problems import ConflictError
from server.schemas import Method
from server.store.registry import Entry

PARTICULAR: tuple[Method, ...] = ("instant", "align")  # methods that not every base is fit for


def check_base(base: Entry, method: Method) -> None:
    """Raise ConflictError if a method needs what a base does not have."""
    name = base.manifest.decoder_id
    if method == "instant" and not identifies_units(base.path):
        raise ConflictError(
            f"{name} has no network that identifies units, which the method instant needs; choose "
            "the method units, or name a base that was pretrained on four sessions or more"
        )
    if method == "align" and open_bundle(base.path).usual is None:
        raise ConflictError(
            f"{name} does not know its usual states, which the method align needs; choose the "
            "method units, or name a streaming base (possm) that was pretrained with this version"
        )
