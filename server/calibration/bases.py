"""The decoder that a calibration starts from, and whether a request fits it and itself."""

from __future__ import annotations

from contextlib import suppress

from decoder.bundles.bundle import identifies_units, open_bundle
from server.problems import ConflictError, NotFoundError
from server.schemas import CalibrationRequest, Method
from server.store.registry import Entry, Registry

PARTICULAR: tuple[Method, ...] = ("instant", "align")  # methods that not every base is fit for
# Default training time of `auto`, s. On two cores the new decoder then takes over within 10 s of
# the last sample (poyo: 30 s). Measured: docs/RECALIBRATION.md.
ALLOWED_S = {"possm": 6.0, "poyo": 20.0}


def base_of(registry: Registry, method: Method, asked: str | None, active: str | None) -> Entry:
    """The decoder that training starts from: the one asked for, or one that the active one is
    based on.

    Raises ConflictError if there is none, or it can't be trained, and NotFoundError.
    """
    if asked is not None:
        entry = registry.get(asked)
    elif active is None:
        raise ConflictError("no decoder to start training from; register one, or name a base")
    else:
        entry = _default(_lineage(registry, active), method)
    if entry.manifest.family not in ALLOWED_S:
        raise ConflictError(
            f"{entry.manifest.decoder_id} is a {entry.manifest.family} decoder, which can't be "
            f"trained further; name a base of family {' or '.join(ALLOWED_S)}"
        )
    return entry


def _lineage(registry: Registry, active: str) -> list[Entry]:
    """The active decoder, the one that it is based on, and so on, as far as they are registered."""
    lineage = {active: registry.get(active)}
    base = lineage[active].manifest.provenance.get("base")
    with suppress(NotFoundError):
        while base is not None and (name := str(base)) not in lineage:
            lineage[name] = registry.get(name)
            base = lineage[name].manifest.provenance.get("base")
    return list(lineage.values())


def _default(lineage: list[Entry], method: Method) -> Entry:
    """The pretrained decoder, the last of a lineage.

    For `align`, the last that knows its usual states, on units with the names of today's: a
    pretrained decoder of other subjects doesn't, but what was calibrated from it does.
    """
    if method == "align":
        units = set(lineage[0].manifest.unit_ids)
        for entry in reversed(lineage):
            is_same = 2 * len(units & set(entry.manifest.unit_ids)) >= len(units)
            if is_same and open_bundle(entry.path).usual is not None:
                return entry
    return lineage[-1]


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
    base = base_of(registry, method, request.base, active)
    name = base.manifest.decoder_id
    if method == "instant" and not identifies_units(base.path):
        raise ConflictError(
            f"{name} has no network that identifies units, which the method instant needs; choose "
            "the method units, or name a base that was pretrained on four sessions or more"
        )
    if method == "align" and open_bundle(base.path).usual is None:
        raise ConflictError(
            f"{name} does not know its usual states, which the method align needs; choose the "
            "method units: what that makes of a streaming decoder (possm) knows them"
        )
