"""Every body of the REST interface: what is accepted, what is answered, with examples.

Units stand in the names or descriptions. Unknown fields and values of another type are refused.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from decoder.filters import LIMITS, Filters
from streaming.inlets.spikes import StreamKind
from streaming.wire import messages as wire

Method = Literal["auto", "units", "units+head", "full", "scratch", "kalman", "ridge"]
Labels = Literal["kinematics", "intention", "retrospective"]
Promote = Literal["auto", "manual", "never"]
Name = Annotated[  # of an LSL stream, or a decoder: it becomes part of a query or a path
    str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_ .:+\-]*$")
]
State = Literal[
    "collecting", "training", "shadowing", "promoting",
    "promoted", "rejected", "undecided", "ready", "failed", "cancelled", "interrupted",
]  # fmt: skip
Use = Literal["spikes", "kinematics", "markers", "nothing"]  # of an LSL stream
RUNNING: tuple[State, ...] = ("collecting", "training", "shadowing", "promoting")


def _whole(value: object) -> object:
    """1.0 is an integer in JSON; MATLAB writes it so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Body(BaseModel):
    """What a caller sends."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Answer(BaseModel):
    """What the server sends."""

    model_config = ConfigDict(extra="forbid")


class Problem(Answer):
    """What went wrong (RFC 9457)."""

    type: str = Field(description="kind of problem, for scripts", examples=["/problems/stream"])
    title: str = Field(examples=["A stream isn't there, or isn't as described"])
    status: int = Field(examples=[409])
    detail: str = Field(
        description="what was seen, what was expected, what to do",
        examples=["no kinematics stream (type 'Kinematics'); nothing would label the spikes"],
    )
    instance: str | None = Field(default=None, description="path of the request")


class Input(Body):
    """Which LSL stream the daemon reads."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"kind": "Spikes", "name": "rig-spikes"}]}
    )

    kind: StreamKind = "Spikes"
    name: Name | None = Field(default=None, description="left out: the only one of its kind")


class Stream(Answer):
    """An LSL stream on the network."""

    name: str
    type: str
    source_id: str
    host: str
    channels: int
    rate_hz: float = Field(description="0 where irregular")
    used_for: Use
    open: bool = Field(description="the daemon reads it now")


class Decoder(Answer):
    """A bundle of the registry."""

    id: str
    family: str
    preset: str
    session: str
    units: int
    added: datetime
    active: bool
    metrics: dict[str, float]
    provenance: dict[str, str | float | int]


class DecoderDetail(Decoder):
    """A bundle with its units, verified."""

    unit_ids: list[str]
    path: str
    problem: str | None = Field(description="what is wrong with the bundle's files, if anything")


class NewDecoder(Body):
    """A bundle on the server's host to verify and copy into the registry."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"path": "/data/monkey.bundle"}]})

    path: str = Field(min_length=1, max_length=1024, pattern=r"^[^\x00]+$")


class Pause(Body):
    """Why decoding is paused."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"why": "between blocks"}]})

    why: str = Field(default="", max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")


def _limited(name: str, description: str) -> Any:
    least, most = LIMITS[name]
    return Field(default=None, ge=least, le=most, description=description)


class FiltersPatch(Body):
    """Filter settings to change; those that are left out stay."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"gain": 1.2, "speed_limit": 0.5}]})

    gain: float = _limited("gain", "factor on the velocity")
    smoothing_s: float = _limited("smoothing_s", "time constant of an exponential mean, s; 0: none")
    dead_zone: float = _limited("dead_zone", "speeds below it, m/s, are zero")
    speed_limit: float | None = _limited("speed_limit", "m/s; null: none")
    acceleration_limit: float | None = _limited("acceleration_limit", "m/s²; null: none")
    bias_s: float | None = _limited(
        "bias_s",
        "time constant, s, of the bias that is taken off, a running mean of velocities whose speed "
        "is above the 66th percentile; null: none is taken off",
    )


class FiltersView(Answer):
    """The filters in use."""

    gain: float
    smoothing_s: float
    dead_zone: float
    speed_limit: float | None
    acceleration_limit: float | None
    bias_s: float | None


def _model_of(struct: type[msgspec.Struct], doc: str) -> type[BaseModel]:
    """A message of the daemon as an answer: the same fields, less the wire's own version."""
    fields: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        if field.name == "schema":
            continue
        kind = field.type
        if kind == wire.Quantiles | None:
            kind = _model_of(wire.Quantiles, "Quantiles of a second's ticks, ms.") | None
        elif kind is Filters:
            kind = FiltersView
        fields[field.name] = (kind, ...)
    return create_model(struct.__name__, __base__=Answer, __doc__=doc, **fields)


DaemonStatus = _model_of(
    wire.Status, "What the daemon says of itself (streaming/wire/messages.py)."
)


class ServerStatus(Answer):
    """Whether a daemon decodes, and how."""

    answered: bool = Field(description="the daemon answers")
    restarting: bool = Field(description="a daemon should run and is being started")
    restarts: int = Field(description="daemons that died since the server's start")
    daemon: DaemonStatus | None  # type: ignore[valid-type]
    calibration: str | None = Field(description="id of the calibration that runs")


class Health(Answer):
    """The server lives, or is ready to decode."""

    status: Literal["ok"] = "ok"


class CalibrationRequest(Body):
    """Data to collect, what to learn from it, and what to do with the result."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"seconds": 40.0, "method": "auto", "promote": "auto"}]}
    )

    seconds: float = Field(default=40.0, ge=5, le=3600, description="labelled data to collect")
    method: Method = Field(
        default="auto",
        description="units: today's units alone; units+head: and the readout; full: then "
        "everything; scratch: a new model; auto: units, then full while the time lasts; kalman, "
        "ridge: a velocity Kalman filter, a ridge regression, on nothing but these data",
    )
    labels: Labels = Field(default="kinematics", description="what the velocity means")
    promote: Promote = Field(
        default="auto", description="auto: decode with it if it is better; never: only score it"
    )
    shadow: bool = Field(default=False, description="first decode live beside the active one")
    shadow_s: float = Field(default=10.0, ge=2, le=600, description="for so long")
    allowed_s: float | None = Field(
        default=None, gt=0, le=3600, description="seconds of learning; null: as the model needs"
    )
    base: Name | None = Field(
        default=None, description="decoder to start from; null: the one that the active came from"
    )
    data: Name | None = Field(
        default=None,
        description="an earlier calibration; learn from its data again, and collect nothing",
    )
    spikes: Name | None = Field(default=None, description="LSL stream; null: what is decoded")
    kinematics: Name | None = Field(default=None, description="LSL stream; null: the only one")
    markers: Name | None = Field(default=None, description="LSL stream; null: the only one")
    subject: Name = "unknown"
    seed: Annotated[int, BeforeValidator(_whole)] = Field(default=0, ge=0, le=2**31 - 1)


class Scores(Answer):
    """Causal velocity R², axes taken together, of both decoders on the same data."""

    candidate: float | None = Field(description="null where it can't be said")
    active: float | None = Field(description="null where it knows none of today's units")
    seconds: float = Field(description="of data scored")
    better_by: float | None = Field(
        default=None, description="R² of the candidate less the active decoder's"
    )
    at_least: float | None = Field(
        default=None, description="lower bound of `better_by`, kept with a confidence of 95 %"
    )
    at_most: float | None = Field(default=None, description="upper bound, likewise")


class Calibration(Answer):
    """One calibration, from its first sample to the swap."""

    id: str
    state: State
    request: CalibrationRequest
    created: datetime
    ended: datetime | None = None
    collected_s: float = Field(default=0.0, description="labelled data so far")
    spikes: int = 0
    phase: str = Field(default="", description="what is being learned")
    share: float = Field(default=0.0, description="of the learning that is done, 0 to 1")
    base: str | None = Field(default=None, description="decoder that learning began from")
    before: str | None = Field(default=None, description="decoder that was active")
    candidate: str | None = Field(default=None, description="decoder that was made")
    method: str | None = Field(default=None, description="method whose result was kept")
    held_out: Scores | None = Field(
        default=None,
        description="on all labelled seconds, in turns: each decoded by a model that learned, by "
        "the same method, from the others; the candidate itself learned from all of them",
    )
    live: Scores | None = Field(default=None, description="beside each other on the live stream")
    took_s: float | None = Field(
        default=None, description="from the end of collection to the swap, or to the verdict"
    )
    verdict: str = Field(
        default="", description="why the candidate was rejected, or what could not be decided"
    )
    doubts: list[str] = Field(
        default=[], description="what to look at before the candidate decodes, however it scores"
    )
    problem: Problem | None = None


class Change(Answer):
    """Something that was changed."""

    number: int
    at: datetime
    who: str
    what: str
    detail: dict[str, Any]


def view(status: wire.Status | None) -> Any:
    """A daemon's message as its answer."""
    if status is None:
        return None
    values = msgspec.to_builtins(status)
    return DaemonStatus.model_validate({k: v for k, v in values.items() if k != "schema"})


def filters_view(filters: Filters) -> FiltersView:
    """The filters as an answer."""
    return FiltersView(**dataclasses.asdict(filters))
