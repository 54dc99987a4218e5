"""The lsl_api.cfg that liblsl reads: which file it is, and what it changes.

liblsl reads one file: the first that exists and can be parsed, in the order of `places`
(liblsl, src/api_config.cpp and src/util/inireader.cpp). Nothing of the others counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "LSLAPICFG"
NAME = "lsl_api.cfg"
SYSTEM = Path("/etc/lsl_api") / NAME
SCOPES = ("machine", "link", "site", "organization", "global")
DEFAULTS = {
    "lab.SessionID": "default",
    "lab.KnownPeers": "{}",
    "ports.MulticastPort": "16571",
    "ports.BasePort": "16572",
    "ports.PortRange": "32",
    "ports.AllowRandomPorts": "1",
    "ports.IPv6": "allow",
    "multicast.ResolveScope": "site",
    "multicast.ListenAddress": "",
    "multicast.IPv6MulticastGroup": "113D:6FDD:2C17:A643:FFE2:1BD1:3CD2",
    "multicast.MachineAddresses": "{127.0.0.1}",
    "multicast.LinkAddresses": "{255.255.255.255, 224.0.0.1, 224.0.0.183}",
    "multicast.SiteAddresses": "{239.255.172.215}",
    "multicast.OrganizationAddresses": "{}",
    "multicast.GlobalAddresses": "{}",
    "multicast.AddressesOverride": "{}",
    "multicast.TTLOverride": "-1",
    "multicast.Interfaces": "{}",
    "tuning.ForceDefaultTimestamps": "0",
}  # the keys that decide which streams are found, and what their time stamps are
SECTIONS = ("lab.", "ports.", "multicast.")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The file in use. origin: why liblsl looks there. keys: `section.key` and its value."""

    path: Path
    origin: str
    keys: dict[str, str]

    @property
    def changes(self) -> dict[str, str]:
        """The keys that decide what is found and differ from liblsl's defaults."""
        return {k: v for k, v in self.keys.items() if k in DEFAULTS and v != DEFAULTS[k]}

    @property
    def unknown(self) -> list[str]:
        """Keys of those sections that liblsl doesn't know, as one in the wrong case."""
        return [k for k in self.keys if k.startswith(SECTIONS) and k not in DEFAULTS]


def places(environment: Mapping[str, str], folder: Path) -> Iterator[tuple[str, Path]]:
    """Where liblsl looks, in its order. folder: the working directory."""
    if VARIABLE in environment:
        yield VARIABLE, folder / environment[VARIABLE]
    yield "the working directory", folder / NAME
    if home := environment.get("HOME") or environment.get("USERPROFILE"):
        yield "the home folder", Path(home) / "lsl_api" / NAME
    yield "the system's configuration", SYSTEM


def find(environment: Mapping[str, str], folder: Path) -> tuple[Config | None, list[str]]:
    """The file that liblsl reads, or None, and what it finds wrong with those it passes over."""
    problems = []
    for origin, path in places(environment, folder):
        if not os.access(path, os.R_OK):
            if origin == VARIABLE or path.exists():
                why = "can't be read" if path.exists() else "doesn't exist"
                problems.append(f"{path} ({origin}) {why}")
            continue
        try:
            keys = parse(path.read_text(errors="replace"))
        except (OSError, ValueError) as error:
            problems.append(f"{path} ({origin}) is passed over: {error}")
            continue
        return Config(path=path, origin=origin, keys=keys), problems
    return None, problems


def parse(text: str) -> dict[str, str]:
    """Keys as `section.key`. Raises ValueError for a file that liblsl passes over."""
    keys: dict[str, str] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith(";") or not line.strip(" \t\r\n"):
            continue
        if line.startswith("["):
            if "]" not in line:
                raise ValueError(f"no ] in line {number}")
            section = line[1 : line.index("]")] + "."
            continue
        key, equals, value = (part.strip(" \t\r\n") for part in line.partition("="))
        if not (key and equals and value):
            raise ValueError(f"expected KEY = VALUE in line {number}, got {line.strip()!r}")
        if section + key in keys:
            raise ValueError(f"{section + key} is there twice")
        keys[section + key] = value
    if (scope := keys.get("multicast.ResolveScope", "site")) not in SCOPES:
        raise ValueError(f"ResolveScope {scope!r}, expected one of {', '.join(SCOPES)}")
    return keys
