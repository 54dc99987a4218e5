"""The bodies of the requests and responses about decoders."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict, Field

from server.schemas import Answer, Body

NOTHING: Any = None  # default of a field that may be omitted, but not null
Alias = Literal["active", "candidate", "previous"]  # what the daemon uses a decoder for


class Decoder(Answer):
    """A decoder in the registry."""

    id: str
    family: str
    preset: str
    session: str
    units: int
    added: datetime
    active: bool
    metrics: dict[str, float]
    provenance: dict[str, str | float | int]
    label: str = Field(default="", description="what the operators call it")
    pinned: bool = Field(default=False, description="whether it can't be deleted")
    aliases: list[Alias] = Field(
        default=[],
        description="active: decodes now; candidate: warm, ready to be activated; previous: what a "
        "rollback goes back to",
    )
    base: str | None = Field(
        default=None, description="decoder that it was trained from; null if none is known"
    )


class DecoderDetail(Decoder):
    """A decoder with its unit ids, its files verified."""

    unit_ids: list[str]
    path: str
    problem: str | None = Field(description="what is wrong with the bundle's files, or null")


class NewDecoder(Body):
    """The path of a bundle on the server's host, to be verified and copied into the registry."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"path": "/data/monkey.bundle"}]})

    path: str = Field(min_length=1, max_length=1024, pattern=r"^[^\x00]+$")


class DecoderPatch(Body):
    """The label and the pin of a decoder; what is omitted stays as it is."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"label": "after the implant", "pinned": True}]}
    )

    label: str = Field(
        default=NOTHING,
        max_length=100,
        pattern=r"^[^\x00-\x1f\x7f-\x9f]*$",
        description="what the operators call it; empty for none",
    )
    pinned: bool = Field(default=NOTHING, description="whether it can't be deleted")
