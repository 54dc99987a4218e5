"""The addresses of daemon and server: free, or in use by whom.

An address in use by a running Volition is as it should be.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import zmq

from clients.doctor.finding import Asked, Finding, failure, ok
from clients.doctor.settings import usable_settings
from clients.subscriber import StatusSubscriber
from decoder.errors import SettingsError, VolitionError
from streaming.wire.control import ControlClient, GetStatus
from streaming.wire.messages import Status
from streaming.wire.sockets import BoundSocket

STATUS_WITHIN_S = 3.0  # it is sent once a second
ANSWER_WITHIN_S = 3.0
LISTENS = "0A"  # in /proc/net/tcp
LISTENS_UNIX = "00010000"  # in /proc/net/unix: flag of a listening socket
EVERYWHERE = ("*", "0.0.0.0", "::", "[::]")

Ask = Callable[[], str | None]
Sockets = dict[str, str]  # inode -> user, or "" if it isn't known


def ports(asked: Asked) -> list[Finding]:
    """The daemon's addresses for frames and commands, and the server's port."""
    settings = usable_settings(asked)
    publish, control = settings.daemon.address, settings.control
    return [
        _zmq_address("frames", publish, zmq.XPUB, "VOLITION_ADDRESS", lambda: _publisher(publish)),
        _zmq_address("commands", control, zmq.REP, "VOLITION_CONTROL", lambda: _daemon(control)),
        _rest(settings.host, settings.port),
    ]


def _zmq_address(name: str, address: str, kind: int, variable: str, ask: Ask) -> Finding:
    path = address.removeprefix("ipc://")
    if path != address and (sockets := _unix_sockets(path)):  # binding would take it over
        return _taken(name, address, sockets, variable, ask)
    try:
        BoundSocket(kind, address, purpose="listen").close()
    except SettingsError as error:
        cause = error.__cause__
        code = cause.errno if isinstance(cause, zmq.ZMQError) else None
        if code == errno.EADDRINUSE:
            return _taken(name, address, _listening(_port(address)), variable, ask)
        why = "" if cause is None else f" ({cause})"
        return failure(name, f"{address} can't be bound{why}", f"choose another with {variable}")
    return ok(name, f"{address} is free")


def _rest(host: str, port: int) -> Finding:
    name, url = "REST", f"http://{f'[{host}]' if ':' in host else host}:{port}"
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind(address)
            probe.listen()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            sockets = _listening(port)
            return _taken(name, url, sockets, "VOLITION_PORT", lambda: _server(host, port))
        do = "choose another with VOLITION_HOST or VOLITION_PORT"
        return failure(name, f"{url} can't be bound ({error.strerror or error})", do)
    return ok(name, f"{url} is free")


def _taken(name: str, address: str, sockets: Sockets, variable: str, ask: Ask) -> Finding:
    if who := ask():
        return ok(name, f"{address} is in use by {who}")
    owners = list(_owners(sockets))
    if not owners:
        users = sorted({user for user in sockets.values() if user})
        whose = f"user {' and '.join(users)}" if users else "another user"
        do = f"end it, or choose another with {variable}"
        return failure(name, f"{address} is taken by a process of {whose}", do)
    pids = " ".join(owner.split()[1] for owner in owners)
    return failure(
        name,
        f"{address} is taken by {' and '.join(owners)}",
        f"end it (kill {pids}), or choose another with {variable}",
    )


def _listening(port: int) -> Sockets:
    """The sockets that listen on a TCP port (Linux)."""
    found = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                    found[fields[9]] = _user(int(fields[7]))
    return found


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # of another container
        return str(uid)


def _unix_sockets(path: str) -> Sockets:
    """The Unix sockets that listen on a path (Linux)."""
    found = {}
    with suppress(OSError):
        for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
            fields = line.split(maxsplit=7)
            if len(fields) == 8 and fields[3] == LISTENS_UNIX and fields[7] == path:
                found[fields[6]] = ""
    return found


def _owners(sockets: Sockets) -> Iterator[str]:
    """The processes that hold these sockets, as far as this user may see: `pid N (COMMAND)`."""
    wanted = {f"socket:[{inode}]" for inode in sockets}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(os.readlink(file) in wanted for file in (process / "fd").iterdir()):
                words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                yield f"pid {process.name} ({' '.join(words).strip()[:80]})"


def _port(address: str) -> int:
    with suppress(ValueError):
        return int(address.rpartition(":")[2])
    return -1


def _reachable(address: str) -> str:
    """An address to connect to, for one that is bound."""
    scheme, _, rest = address.partition("://")
    host, colon, port = rest.rpartition(":")
    return f"{scheme}://127.0.0.1:{port}" if colon and host in EVERYWHERE else address


def _publisher(address: str) -> str | None:
    subscriber = StatusSubscriber(_reachable(address))
    try:
        status = subscriber.receive(STATUS_WITHIN_S)
    except (VolitionError, zmq.ZMQError):  # another program, or another version
        return None
    finally:
        subscriber.close()
    return None if status is None else _described(status)


def _daemon(address: str) -> str | None:
    client = ControlClient(_reachable(address), timeout_s=ANSWER_WITHIN_S)
    try:
        return _described(client.ask(GetStatus()).status)
    except (VolitionError, zmq.ZMQError):
        return None
    finally:
        client.close()


def _described(status: Status) -> str:
    return f"the running Volition daemon, pid {status.pid}, {status.state}"


def _server(host: str, port: int) -> str | None:
    import httpx

    where = "127.0.0.1" if host in EVERYWHERE else f"[{host}]" if ":" in host else host
    try:
        url = f"http://{where}:{port}/openapi.json"  # needs no token
        about = httpx.get(url, timeout=ANSWER_WITHIN_S, trust_env=False).json()
        title = str(about["info"]["title"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None
    return f"the running {title} server" if title.lower() == "volition" else None
