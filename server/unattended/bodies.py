"""The request and response bodies of /v1/unattended."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import ConfigDict, Field

from server.schemas import Answer, Body, CalibrationRequest, Labels, Method, Name

When = Literal["off", "alarm", "every"]
Doing = Literal["off", "waiting", "calibrating", "frozen"]


class Unattended(Body):
    """When the server recalibrates by itself, and how."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"when": "alarm"}, {"when": "every", "every_minutes": 30, "shadow": True}]
        }
    )

    when: When = Field(
        description="alarm: once the daemon's distance has been beyond its limit for a minute "
        "(`align`: four times its limit, as the gate promotes none below); every: at regular "
        "intervals"
    )
    every_minutes: float = Field(
        default=60.0, ge=1, le=1440, description="interval for `every`, minutes"
    )
    seconds: float = Field(default=120.0, ge=5, le=3600, description="data to collect, s")
    method: Method = Field(default="align", description="as in a calibration")
    labels: Labels = Field(default="kinematics", description="as in a calibration")
    shadow: bool = Field(default=False, description="as in a calibration")
    kinematics: Name | None = Field(default=None, description="as in a calibration")
    markers: Name | None = Field(default=None, description="as in a calibration")
    rest_minutes: float = Field(
        default=10.0,
        ge=1,
        le=1440,
        description="shortest time from one calibration to the next, minutes; doubled after each "
        "that was not promoted, up to an hour",
    )
    by_hand_minutes: float = Field(
        default=10.0,
        ge=0,
        le=1440,
        description="time without a calibration after somebody has changed the decoder, minutes",
    )

    @property
    def request(self) -> CalibrationRequest:
        """The calibration that is started when it is due."""
        return CalibrationRequest(
            seconds=self.seconds, method=self.method, labels=self.labels, shadow=self.shadow,
            kinematics=self.kinematics, markers=self.markers,
        )  # fmt: skip


class UnattendedState(Answer):
    """What unattended recalibration does now, and why."""

    settings: Unattended
    state: Doing
    why: str = Field(description="what it waits for, or why it is frozen")
    next_due: datetime | None = Field(
        description="when the next calibration may start; null if that is not known, as without an "
        "alarm"
    )
    rest_minutes: float = Field(description="the rest after the next calibration, minutes")
    last: str | None = Field(description="id of the last unattended calibration")


class Swap(Answer):
    """The candidate of an unattended calibration that was promoted, and the decoder before it."""

    candidate: str
    before: str | None


class Kept(Answer):
    """What the journal keeps. given: the setting that the last server was started with."""

    settings: Unattended = Unattended(when="off")
    given: str | None = None
    frozen: str | None = None
    last: str | None = None
    promoted: Swap | None = None
    rest_s: float | None = None
    rest_until: datetime | None = None
