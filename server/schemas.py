"""The request and response bodies of the REST API, with examples.

Units are in the field names or descriptions. Unknown fields and values of the wrong type are
refused.
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

Method = Literal[
    "auto", "instant", "align", "units", "units+head", "full", "scratch", "kalman", "ridge"
]
Labels = Literal["kinematics", "intention", "retrospective", "targets", "decoded"]
OWN: tuple[Labels, ...] = ("targets", "decoded")  # made from the decoder's own output
Movement = Literal["recorded", "decoded", "none"]  # where that of a calibration comes from
Promote = Literal["auto", "manual", "never"]
Name = Annotated[  # of an LSL stream or a decoder; it becomes part of a query or a path
    str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_ .:+\-]*$")
]
State = Literal[
    "collecting", "training", "shadowing", "promoting",
    "promoted", "rejected", "undecided", "ready", "failed", "cancelled", "interrupted",
]  # fmt: skip
Use = Literal["spikes", "kinematics", "markers", "nothing"]  # what a stream is for
Ids = Annotated[list[Name], Field(min_length=1, max_length=100)]  # of calibrations
ANY_SUBJECT = "unknown"
RUNNING: tuple[State, ...] = ("collecting", "training", "shadowing", "promoting")


def _whole(value: object) -> object:
    """Accept 1.0 as an integer: MATLAB writes integers that way."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Body(BaseModel):
    """A request body."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Answer(BaseModel):
    """A response body."""

    model_config = ConfigDict(extra="forbid")


class Problem(Answer):
    """A problem document (RFC 9457)."""

    type: str = Field(
        description="kind of problem, for scripts to compare", examples=["/problems/stream"]
    )
    title: str = Field(examples=["A stream is missing or not as described"])
    status: int = Field(examples=[409])
    detail: str = Field(
        description="what was seen, what was expected and what to do next",
        examples=["no kinematics stream (type 'Kinematics'); nothing would label the spikes"],
    )
    instance: str | None = Field(default=None, description="path of the request")


class Input(Body):
    """The LSL stream of spikes that the daemon reads."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"kind": "Spikes", "name": "rig-spikes"}]}
    )

    kind: StreamKind = "Spikes"
    name: Name | None = Field(default=None, description="omit to take the only stream of this kind")


class Stream(Answer):
    """An LSL stream on the network."""

    name: str
    type: str
    source_id: str
    host: str
    channels: int
    rate_hz: float = Field(description="nominal sampling rate; 0 if irregular")
    used_for: Use
    open: bool = Field(description="whether the daemon reads it now")


class Pause(Body):
    """The reason for a pause."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"why": "between blocks"}]})

    why: str = Field(default="", max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")


def _limited(name: str, description: str) -> Any:
    least, most = LIMITS[name]
    return Field(default=None, ge=least, le=most, description=description)


class FiltersPatch(Body):
    """Filter settings to change; omitted settings keep their values."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"gain": 1.2, "speed_limit": 0.5}]})

    gain: float = _limited("gain", "factor applied to the velocity")
    smoothing_s: float = _limited(
        "smoothing_s", "time constant of the exponential moving average, s; 0 for no smoothing"
    )
    dead_zone: float = _limited("dead_zone", "speed below which the velocity is set to zero, m/s")
    speed_limit: float | None = _limited("speed_limit", "maximum speed, m/s; null for no limit")
    acceleration_limit: float | None = _limited(
        "acceleration_limit", "maximum acceleration, m/s²; null for no limit"
    )
    bias_s: float | None = _limited(
        "bias_s",
        "time constant, s, of the running mean of velocities above the 66th percentile of speed, "
        "which is subtracted as bias; null for no bias correction",
    )


class FiltersView(Answer):
    """The output filters in use."""

    gain: float
    smoothing_s: float
    dead_zone: float
    speed_limit: float | None
    acceleration_limit: float | None
    bias_s: float | None


def _model_of(struct: type[msgspec.Struct], doc: str) -> type[BaseModel]:
    """A daemon message as a response body: the same fields, without the wire's schema version."""
    fields: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        if field.name == "schema":
            continue
        kind = field.type
        if kind == wire.Quantiles | None:
            kind = _model_of(wire.Quantiles, "Quantiles over the ticks of one second, ms.") | None
        elif kind is Filters:
            kind = FiltersView
        is_required = field.default is msgspec.NODEFAULT
        fields[field.name] = (kind, ... if is_required else field.default)
    return create_model(struct.__name__, __base__=Answer, __doc__=doc, **fields)


DaemonStatus = _model_of(
    wire.Status, "The daemon's own status message (streaming/wire/messages.py)."
)


class ServerStatus(Answer):
    """The status of the server and of its daemon."""

    answered: bool = Field(description="whether the daemon answers")
    restarting: bool = Field(description="whether a daemon should run but does not answer yet")
    restarts: int = Field(description="number of daemons that have died since the server started")
    daemon: DaemonStatus | None  # type: ignore[valid-type]
    calibration: str | None = Field(description="id of the running calibration")
    unattended: str = Field(default="off", description="see GET /v1/unattended")


class Health(Answer):
    """A health check that passed."""

    status: Literal["ok"] = "ok"


class CalibrationRequest(Body):
    """What data to collect, how to train on them, and what to do with the result."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"seconds": 40.0, "method": "auto", "promote": "auto"},
                {"data": ["cal-20260301-093000-1f2e", "cal-20260302-091500-77aa"]},
                {"seconds": 20.0, "with_data": ["cal-20260302-091500-77aa"]},
            ]
        }
    )

    seconds: float = Field(default=40.0, ge=5, le=3600, description="labelled data to collect, s")
    method: Method = Field(
        default="auto",
        description="what to train. instant: nothing, units are identified in closed form, if the "
        "base was pretrained on four sessions or more; align: the units, without labels, if the "
        "base is a streaming model that knows their names; units: only today's units; "
        "units+head: the units, then the readout too; full: the units, then all weights; "
        "scratch: a new model; auto: units, then full within the allowed time; kalman, ridge: a "
        "velocity Kalman filter or a ridge regression, fitted to these data alone",
    )
    labels: Labels = Field(
        default="kinematics",
        description="velocity to train on. kinematics: as recorded; intention: turned toward the "
        "target; retrospective: toward the target that was acquired; targets: the active decoder's "
        "own output, corrected to end at the targets; decoded: its own output",
    )
    promote: Promote = Field(
        default="auto",
        description="auto: activate the candidate if it is better; manual, never: only score it",
    )
    shadow: bool = Field(
        default=False,
        description="first compare the candidate with the active decoder on the live stream",
    )
    shadow_s: float = Field(
        default=10.0,
        ge=2,
        le=600,
        description="length of the live comparison, s; up to four times as long while undecided",
    )
    allowed_s: float | None = Field(
        default=None,
        gt=0,
        le=3600,
        description="time allowed for training, s; null for the default of the base's family",
    )
    base: Name | None = Field(
        default=None,
        description="decoder to start training from; null for the pretrained decoder that the "
        "active one is based on (align: if that knows neither its usual states nor today's units, "
        "for the decoder between them that does)",
    )
    data: Name | Ids | None = Field(
        default=None,
        description="one or several ids of earlier calibrations; train on their data, newer ones "
        "counting more, and collect nothing",
    )
    with_data: Ids | None = Field(
        default=None,
        description="ids of earlier calibrations; train on their data as well as those collected "
        "now; not together with data",
    )
    spikes: Name | None = Field(
        default=None, description="LSL stream of spikes; null for the one that the daemon reads"
    )
    kinematics: Name | None = Field(
        default=None, description="LSL stream of kinematics; null for the only one"
    )
    markers: Name | None = Field(
        default=None, description="LSL stream of markers; null for the only one"
    )
    subject: Name = ANY_SUBJECT
    seed: Annotated[int, BeforeValidator(_whole)] = Field(default=0, ge=0, le=2**31 - 1)

    @property
    def earlier(self) -> list[str]:
        """The ids of the earlier calibrations whose data are trained on."""
        data = [self.data] if isinstance(self.data, str) else self.data
        return [*(data or ()), *(self.with_data or ())]


class Scores(Answer):
    """Causal velocity R², both axes pooled, of two decoders on the same data."""

    candidate: float | None = Field(description="R² of the candidate; null if undefined")
    active: float | None = Field(
        description="R² of the active decoder; null if it knows none of today's units"
    )
    seconds: float = Field(description="data scored, s")
    better_by: float | None = Field(
        default=None, description="R² of the candidate minus R² of the active decoder"
    )
    at_least: float | None = Field(
        default=None, description="lower bound of `better_by`, at 95 % confidence"
    )
    at_most: float | None = Field(
        default=None, description="upper bound of `better_by`, at 95 % confidence"
    )


class Distances(Answer):
    """What the spikes alone tell about two decoders, on seconds that the candidate has not seen.

    Distances, in nats, are of a decoder's states from those of its known days; null if unknown.
    """

    candidate: float | None
    candidate_limit: float | None = Field(description="beyond it, the neurons count as changed")
    active: float | None
    active_all: float | None = Field(description="on all of the data; above its limit for an alarm")
    active_limit: float | None
    agreement: float | None = Field(description="correlation of both velocities, both axes pooled")
    speed_ratio: float | None = Field(description="mean speed of the candidate, of the active's")
    seconds: float = Field(description="data judged, s")


class Calibration(Answer):
    """One calibration, from its first sample to the swap."""

    id: str
    state: State
    request: CalibrationRequest
    who: str = Field(default="", description="who started it")
    created: datetime
    ended: datetime | None = None
    collected_s: float = Field(
        default=0.0, description="labelled data collected so far, or named by data, s"
    )
    earlier_s: float = Field(default=0.0, description="labelled data named by with_data, s")
    spikes: int = 0
    movement: Movement | None = Field(
        default=None, description="decoded: it was mostly the daemon's own output"
    )
    phase: str = Field(default="", description="current phase of the training")
    share: float = Field(default=0.0, description="completed fraction of the training, 0 to 1")
    base: str | None = Field(default=None, description="decoder that training started from")
    before: str | None = Field(default=None, description="decoder that was active before")
    candidate: str | None = Field(default=None, description="decoder that training produced")
    method: str | None = Field(default=None, description="training method whose result was kept")
    held_out: Scores | None = Field(
        default=None,
        description="cross-validated scores on all labelled data: each fold is decoded by a model "
        "trained on the others by the same method; the candidate itself has seen all folds",
    )
    distances: Distances | None = Field(
        default=None, description="what the gate judges `align` by, if no labels can"
    )
    live: Scores | None = Field(
        default=None, description="scores of both decoders on the live stream"
    )
    took_s: float | None = Field(
        default=None, description="time from the end of collection to the swap or the verdict, s"
    )
    phases_s: dict[str, float] = Field(
        default={},
        description="what `took_s` was spent on, s: processes that work at the same time are all "
        "in it",
    )
    verdict: str = Field(default="", description="why the candidate was rejected or left undecided")
    doubts: list[str] = Field(
        default=[], description="what to check before activating the candidate, whatever its score"
    )
    notes: list[str] = Field(
        default=[], description="which units were left out: excluded, or copies of others"
    )
    problem: Problem | None = None


class Change(Answer):
    """A journal entry: who changed what, and when."""

    number: int
    at: datetime
    who: str
    what: str
    detail: dict[str, Any]


def view(status: wire.Status | None) -> Any:
    """The daemon's status as a response body."""
    if status is None:
        return None
    values = msgspec.to_builtins(status)
    return DaemonStatus.model_validate({k: v for k, v in values.items() if k != "schema"})


def filters_view(filters: Filters) -> FiltersView:
    """The output filters as a response body."""
    return FiltersView(**dataclasses.asdict(filters))
