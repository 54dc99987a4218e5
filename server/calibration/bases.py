"""The decoder that a calibration starts from, and whether a request fits it and itself."""

from __future__ import annotations

from decoder.bundles.bundle import identifies_units, open_bundle
from server.problems import ConflictError, NotFoundError
from server.schemas import CalibrationRequest, Method
from server.store.registry import Entry, Registry

PARTICULAR: tuple[Method, ...] = ("instant", "align")  # methods that not every base is fit for
# Default training time of `auto`, s. On two cores the new decoder then takes over within 10 s of
# the last sample (poyo: 30 s). Measured: docs/RECALIBRATION.md.
ALLOWED_S = {"possm": 6.0, "poyo": 20.0}


def base_of(registry: Registry, asked: str | None, active: str | None) -> Entry:
    """The decoder that training starts from: the one asked for, or the active one's base.

    Raises ConflictError if there is none, or it can't be trained, and NotFoundError.
    """
    entry = _pretrained(registry, active) if asked is None else registry.get(asked)
    if entry.manifest.family not in ALLOWED_S:
        raise ConflictError(
            f"{entry.manifest.decoder_id} is a {entry.manifest.family} decoder, which can't be "
            f"trained further; name a base of family {' or '.join(ALLOWED_S)}"
        )
    return entry


def _pretrained(registry: Registry, active: str | None) -> Entry:
    """The pretrained decoder that the active one is based on.

    If it is not registered, the active decoder itself, which has all weights too.
    """
    if active is None:
        raise ConflictError("no decoder to start training from; register one, or name a base")
    entry = registry.get(active)
    base = entry.manifest.provenance.get("base")
    if base is None:
        return entry
    try:
        return registry.get(str(base))
    except NotFoundError:
        return entry


def check_shadow(request: CalibrationRequest) -> None:
    """Raise ConflictError if a request asks for a shadow that nothing could score."""
    if request.shadow and request.labels != "kinematics":
        raise ConflictError(
            f"shadow is scored by kinematics, not by {request.labels}; omit shadow or use "
            "labels=kinematics"
        )


def check_base(registry: Registry, request: CalibrationRequest, active: str | None) -> None:
    """Raise ConflictError if the method needs what its base does not have, and as `base_of`."""
    method = request.method
    if method not in PARTICULAR:
        return
    base = base_of(registry, request.base, active)
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
