"""The routes of /v1/units: list the stream's units, exclude some, include them again."""

from __future__ import annotations

from fastapi import APIRouter

from server.access.gate import Operator
from server.api.routes import On, Parts
from server.problems import documented
from server.units import Unit, Units, UnitsPatch

router = APIRouter(prefix="/v1/units", tags=["decoding"])


@router.get("", responses=documented(409, 503))
def get_units(on: On) -> Units:
    """The open stream's units in its order: known, excluded, faulty. Also all excluded ids."""
    return _view(on)


@router.patch("", responses=documented(409, 503))
def patch_units(body: UnitsPatch, on: On, who: Operator) -> Units:
    """Exclude units from decoding from the next tick on, or include them again.

    This holds for other decoders and streams, and when server or daemon restart. At least one unit
    that the decoder knows must remain.
    """
    on.supervisor.exclude(body.exclude, body.include, who=who)
    return _view(on)


def _view(on: Parts) -> Units:
    """Without a running daemon, the list of units is empty."""
    excluded = sorted(on.supervisor.wanted.excluded)
    stream, units = on.supervisor.units()
    listed = [
        Unit(
            index=index,
            id=unit.id,
            known=unit.known,
            excluded=unit.excluded,
            fault=unit.fault,
        )
        for index, unit in enumerate(units)
    ]
    return Units(stream=stream, units=listed, excluded=excluded)
