"""The scores that a calibration reports, from the gate's evidence."""

from __future__ import annotations

import math

from decoder.gate import Evidence, Unlabelled
from server.schemas import Distances, Scores


def scores_of(evidence: Evidence) -> Scores:
    """The scores that the gate's evidence amounts to."""
    better, r2, active = evidence.better_by(), evidence.r2().value, evidence.active_r2()
    return Scores(
        candidate=_known(r2),
        active=_known(active),
        seconds=evidence.compared_s,
        better_by=_known(better.value) if better else None,
        at_least=_known(better.low) if better else None,
        at_most=_known(better.high) if better else None,
    )


def live_doubts(evidence: Evidence, asked_s: float) -> list[str]:
    """A doubt if less of the live stream could be compared than was asked for."""
    if evidence.compared_s >= asked_s:
        return []
    return [
        f"only {evidence.compared_s:.1f} s of {asked_s:g} s could be compared on the live stream; "
        "check that spikes and kinematics still arrive, and that something other than the daemon "
        "moves the cursor"
    ]


def distances_of(found: Unlabelled) -> Distances:
    """What was found without labels."""
    values = {name: _known(value) for name, value in vars(found).items()}
    return Distances.model_validate(values)


def _known(value: float | None) -> float | None:
    """A finite number, or None, because JSON has neither NaN nor infinity."""
    return value if value is not None and math.isfinite(value) else None
