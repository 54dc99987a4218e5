"""The request and response bodies of /v1/units."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from server.schemas import Answer, Body
from streaming.units import MAX_EXCLUDED

UnitIds = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=MAX_EXCLUDED)
]


class Unit(Answer):
    """A unit of the open stream."""

    index: int = Field(description="position in the stream, from 0")
    id: str
    known: bool = Field(description="whether the decoder in use knows it")
    excluded: bool = Field(description="whether its spikes are left out")
    fault: str | None = Field(
        description="silent, noisy, doubled or artifact (docs/STREAMS.md); null for none"
    )


class Units(Answer):
    """The units of the open stream in its order, and the excluded ones."""

    stream: str | None = Field(description="name of the open stream; null if none is open")
    units: list[Unit]
    excluded: list[str] = Field(description="ids, also of units that the stream does not have")


class UnitsPatch(Body):
    """Units to exclude and to include again, by id; others stay as they are."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"exclude": ["probe1/7"], "include": ["probe1/3"]}]}
    )

    exclude: UnitIds = Field(default=[], description="their spikes are left out from now on")
    include: UnitIds = Field(default=[], description="their spikes are decoded again")

    @model_validator(mode="after")
    def _not_both(self) -> Self:
        if both := sorted({*self.exclude} & {*self.include}):
            raise ValueError(f"{both[0]!r} is in exclude and in include; expected it in one")
        return self
