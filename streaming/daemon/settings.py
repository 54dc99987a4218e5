"""The daemon's settings, from arguments and `VOLITION_…` environment variables."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from decoder.filters import Filters
from streaming.inlets.spikes import StreamKind
from streaming.units import too_many_excluded
from streaming.wire.messages import DEFAULT_ADDRESS

# The reason for which a restarted daemon begins paused. Its server resumes it after sending the
# input, filters and decoder. Until then, the daemon must not move anything.
RESTARTED = "restarted; waiting for the server"


class DaemonSettings(BaseSettings):
    """Settings of the daemon. Every field can be set as `VOLITION_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="VOLITION_", frozen=True, extra="forbid")

    tick_ms: float = Field(default=10.0, gt=0, le=1000, description="time between decodes, ms")
    stream_type: StreamKind = "Spikes"
    stream_name: str | None = None
    address: str = Field(default=DEFAULT_ADDRESS, description="ZeroMQ address to publish on")
    control: str | None = Field(default=None, description="ZeroMQ address for commands")
    control_open: bool = Field(
        default=False, description="accept a command address that other machines can reach"
    )
    stale_after_ms: float = Field(
        default=250.0,
        gt=0,
        le=1000,
        allow_inf_nan=False,
        description="age of the newest spike at which decoding stops, ms",
    )
    fault_speed: float = Field(
        default=5.0,
        gt=0,
        le=1000,
        allow_inf_nan=False,
        description="speed after the filters above which a velocity is a fault, m/s",
    )
    provider: Literal["auto", "cpu", "cuda"] = "auto"
    require_provider: bool = False
    min_known_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="least share of the bundle's units in the stream",
    )
    threads: int = Field(default=1, ge=1, le=64, description="number of ONNX Runtime threads")
    realtime: bool = Field(default=True, description="real-time priority, if the system allows it")
    log_json: bool = Field(default=False, description="log lines as JSON")
    paused: str | None = Field(default=None, description="start paused, for this reason")
    filters: Filters = Field(default=Filters(), description="output filters, as JSON")
    excluded: tuple[str, ...] = Field(
        default=(), description="ids of units that are not decoded, as JSON"
    )

    @model_validator(mode="after")
    def _required_provider_is_named(self) -> Self:
        if self.require_provider and self.provider == "auto":
            raise ValueError("require_provider needs a provider: cpu or cuda, not auto")
        return self

    @field_validator("excluded")
    @classmethod
    def _excluded_are_few(cls, excluded: tuple[str, ...]) -> tuple[str, ...]:
        if problem := too_many_excluded(excluded):
            raise ValueError(problem)
        return excluded
