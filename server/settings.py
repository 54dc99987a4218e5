"""The server's settings: options override `VOLITION_…` variables, which override a TOML file.

home = "/var/lib/volition"
port = 8000

[daemon]            # streaming.daemon.settings.DaemonSettings
tick_ms = 5
stream_name = "rig-spikes"
"""

from __future__ import annotations

import json
import math
import os
import string
from pathlib import Path
from typing import Any, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from decoder.errors import SettingsError
from streaming.daemon.settings import DaemonSettings
from streaming.wire.control import check_reach

DEFAULT_CONTROL = "tcp://127.0.0.1:5557"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
CONFIG_FILE = "VOLITION_CONFIG"
TOKEN_BITS = 128
MAKE_A_TOKEN = "python3 -c 'import secrets; print(secrets.token_urlsafe())'"
ALPHABETS = (string.digits, string.hexdigits, string.ascii_letters + string.digits)


class _File(TomlConfigSettingsSource):
    """The TOML file, without those daemon settings that environment variables override."""

    def __call__(self) -> dict[str, Any]:
        values = dict(super().__call__())
        section = values.get("daemon")
        if isinstance(section, dict):
            variables = {name.upper() for name in os.environ}
            values["daemon"] = {
                name: value
                for name, value in section.items()
                if f"VOLITION_{name.upper()}" not in variables
            }
        return values


class ServerSettings(BaseSettings):
    """The server's settings. Every field can be set as `VOLITION_<NAME>`.

    The daemon's settings come from the `daemon` section of the file, or from the environment
    variables that `volition decode` reads.
    """

    model_config = SettingsConfigDict(env_prefix="VOLITION_", frozen=True, extra="forbid")

    home: Path = Field(
        default=Path("volition"),
        description="folder of all persistent data",
    )
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535)
    token: SecretStr | None = Field(default=None, description="bearer token that callers must send")
    allowed_hosts: tuple[str, ...] = Field(
        default=(), description="additional host names of the server"
    )
    allowed_origins: tuple[str, ...] = Field(
        default=(), description="additional origins whose pages may call the server"
    )
    supervise: bool = Field(
        default=True, description="start and restart the daemon; false: only adopt one"
    )
    keep_daemon: bool = Field(
        default=False, description="leave the daemon running when the server stops"
    )
    log_file: Path | None = Field(
        default=None, description="file to log to as well, rotated at 10 MB"
    )
    trainer_threads: int = Field(default=1, ge=1, le=64)
    keep_decoders: int | None = Field(
        default=None, ge=1, description="newest decoders that calibrations leave; null: all"
    )
    unattended: str | None = Field(
        default=None, description="off, alarm, or minutes between calibrations; null: as before"
    )
    daemon: DaemonSettings = Field(default_factory=DaemonSettings)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = os.environ.get(CONFIG_FILE)
        toml = [_File(settings_cls, Path(file))] if file else []
        return init_settings, env_settings, *toml

    @field_validator("unattended", mode="before")
    @classmethod
    def _alarm_or_minutes(cls, value: object) -> object:
        if value is None or value in ("off", "alarm"):
            return value
        try:
            minutes = float(str(value))
        except ValueError:
            minutes = math.nan
        if not 1 <= minutes <= 1440:
            raise ValueError(f"{value!r} is neither off, alarm, nor minutes from 1 to 1440")
        return f"{minutes:g}"

    @model_validator(mode="after")
    def _others_need_a_token(self) -> Self:
        if self.token is not None:
            bits = most_bits(self.token.get_secret_value())
            if bits < TOKEN_BITS:
                raise ValueError(
                    f"the token has at most {bits:.0f} bits, expected at least {TOKEN_BITS}, so "
                    f"that it can't be guessed; make one with: {MAKE_A_TOKEN}"
                )
        if self.host not in LOOPBACK and self.token is None:
            raise ValueError(
                f"host {self.host} is reachable from other machines; set a token "
                "(VOLITION_TOKEN) or listen on 127.0.0.1"
            )
        return self

    @model_validator(mode="after")
    def _only_we_give_commands(self) -> Self:
        if self.supervise:  # otherwise another supervisor starts the daemon and chooses its address
            try:
                check_reach(self.control, anyone=self.daemon.control_open)
            except SettingsError as error:
                raise ValueError(str(error)) from error
        return self

    @property
    def control(self) -> str:
        """Address of the daemon's control socket."""
        return self.daemon.control or DEFAULT_CONTROL

    @property
    def decoders(self) -> Path:
        return self.home / "decoders"

    @property
    def calibrations(self) -> Path:
        return self.home / "calibrations"

    @property
    def logs(self) -> Path:
        return self.home / "logs"


def most_bits(token: str) -> float:
    """An upper bound on a token's bits: its characters drawn from the smallest usual alphabet.

    A token with fewer than 8 different characters is not random and gets one bit for each of them.
    """
    different = len(set(token))
    if different < 8:
        return float(different)
    size = next((len(set(a)) for a in ALPHABETS if set(token) <= set(a)), 64)
    size = 16 if size == len(set(string.hexdigits)) else size  # hex has one case
    return len(token) * math.log2(size)


def environment() -> dict[str, str]:
    """The environment for child processes, without the server's own variables (its token)."""
    own = {f"VOLITION_{name.upper()}" for name in ServerSettings.model_fields} | {CONFIG_FILE}
    return {name: value for name, value in os.environ.items() if name.upper() not in own}


def daemon_environment(settings: DaemonSettings) -> dict[str, str]:
    """The environment for a daemon: `environment`, with these settings as variables."""
    names = {name: f"VOLITION_{name.upper()}" for name in type(settings).model_fields}
    others = {n: value for n, value in environment().items() if n.upper() not in names.values()}
    values = settings.model_dump(mode="json", exclude_none=True)
    return others | {
        names[name]: json.dumps(value) if isinstance(value, dict | list) else str(value)
        for name, value in values.items()
    }
