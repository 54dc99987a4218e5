"""The settings that the daemon and the server would start with, from options and environment."""

from __future__ import annotations

import os

from clients.doctor.finding import Asked
from decoder.errors import SettingsError, invalid_fields
from server.settings import CONFIG_FILE, ServerSettings
from streaming.daemon.settings import DaemonSettings


def read_settings(asked: Asked) -> ServerSettings:
    """The settings of `volition serve`, which contain the daemon's.

    Raises SettingsError if a variable, the file or an option is invalid.
    """
    from pydantic import ValidationError

    if asked.config is not None:
        os.environ[CONFIG_FILE] = asked.config
    file = os.environ.get(CONFIG_FILE)
    if file and not os.path.isfile(file):  # pydantic would go on without it
        raise SettingsError(f"{file}: no such file; name the server's TOML file")
    given = {"provider": asked.provider, "tick_ms": asked.tick_ms}
    try:
        settings = ServerSettings()
        chosen = {name: value for name, value in given.items() if value is not None}
        daemon = DaemonSettings(**settings.daemon.model_dump() | chosen)
    except ValidationError as error:
        raise SettingsError(invalid_fields(error)) from error
    except (OSError, ValueError) as error:  # the file
        raise SettingsError(f"{file}: {error}") from error
    return settings.model_copy(update={"daemon": daemon})


def usable_settings(asked: Asked) -> ServerSettings:
    """`read_settings`, or the defaults: the check of the settings names what is wrong with them."""
    try:
        return read_settings(asked)
    except SettingsError:
        return ServerSettings.model_construct(daemon=DaemonSettings.model_construct())
