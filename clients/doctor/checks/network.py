"""The network's multicast, with which LSL finds streams of other machines.

Each interface is tried: a datagram to LSL's group must come back to a socket that joined it there.
Interfaces are asked for in Linux's way; elsewhere only the route is looked at.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from clients.doctor.finding import Asked, Finding, failure, ok, warning

GROUP = "239.255.172.215"  # liblsl's default for streams of a site
PORT = 16571
BACK_WITHIN_S = 1.0
GET_FLAGS, GET_ADDRESS = 0x8913, 0x8915  # SIOCGIFFLAGS, SIOCGIFADDR
UP, LOOPBACK, RUNNING, MULTICAST = 0x1, 0x8, 0x40, 0x1000
TURN_ON = "connect the rig's network, and turn multicast on: ip link set dev NAME up multicast on"
PEERS = "or list the senders in lsl_api.cfg: [lab] KnownPeers = {ADDRESS, …}"


@dataclass(frozen=True, kw_only=True)
class Interface:
    """A network interface. address: IPv4, or None."""

    name: str
    flags: int
    address: str | None

    @property
    def is_usable(self) -> bool:
        """Whether liblsl would use it, and another machine could be on it."""
        wanted = UP | RUNNING | MULTICAST
        return self.address is not None and self.flags & (wanted | LOOPBACK) == wanted

    @property
    def lacks(self) -> str:
        """What keeps it from being usable, in words."""
        missing = [
            word
            for bit, word in ((UP, "not up"), (RUNNING, "no cable"), (MULTICAST, "no multicast"))
            if not self.flags & bit
        ]
        return ", ".join(missing[:1] or ["no IPv4 address"])


def network(asked: Asked) -> list[Finding]:
    """Multicast over each interface, and the route that multicast takes."""
    if sys.platform != "linux":
        return [ok("multicast", f"interfaces aren't looked at on {sys.platform}"), _route()]
    return [_multicast(list(interfaces())), _route()]


def interfaces() -> Iterator[Interface]:
    """The network interfaces of this machine (Linux)."""
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                flags = fcntl.ioctl(probe, GET_FLAGS, request)
                bits = int(struct.unpack_from("H", flags, 16)[0])
            except OSError:  # it has just gone
                continue
            try:
                found = fcntl.ioctl(probe, GET_ADDRESS, request)
                address = socket.inet_ntoa(found[20:24])
            except OSError:
                address = None
            yield Interface(name=name, flags=bits, address=address)


def _multicast(found: list[Interface]) -> Finding:
    name = "multicast"
    usable = [each for each in found if each.is_usable]
    if not usable:
        others = [f"{each.name}: {each.lacks}" for each in found if not each.flags & LOOPBACK]
        why = f" ({'; '.join(others)})" if others else ""
        return warning(
            name,
            f"no network interface can do multicast{why}: streams of other machines won't be found",
            f"{TURN_ON}; {PEERS}",
        )
    failed = {}
    for each in usable:
        if problem := lost(str(each.address)):
            failed[each.name] = problem
    works = [f"{each.name} ({each.address})" for each in usable if each.name not in failed]
    if failed:
        broken = "; ".join(f"{interface}: {problem}" for interface, problem in failed.items())
        working = f"; it works over {', '.join(works)}" if works else ""
        do = f"let multicast to {GROUP}, UDP {PORT}, through the firewall; {PEERS}"
        return (warning if works else failure)(name, f"{broken}{working}", do)
    return ok(name, f"works over {', '.join(works)}")


def lost(address: str) -> str | None:
    """Why a datagram to LSL's group over the interface with this address doesn't come back."""
    here = socket.inet_aton(address)
    kind = (socket.AF_INET, socket.SOCK_DGRAM)
    try:
        with socket.socket(*kind) as receiver, socket.socket(*kind) as sender:
            receiver.bind(("", 0))
            receiver.settimeout(BACK_WITHIN_S)
            joined = socket.inet_aton(GROUP) + here
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, here)
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)  # stays here
            sender.sendto(b"volition doctor", (GROUP, receiver.getsockname()[1]))
            receiver.recv(100)
    except TimeoutError:
        return "a multicast datagram doesn't come back"
    except OSError as error:
        return f"multicast is refused ({error.strerror or error})"
    return None


def _route() -> Finding:
    name = "multicast route"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((GROUP, PORT))  # sends nothing
            return ok(name, f"{GROUP} by the interface with address {probe.getsockname()[0]}")
    except OSError as error:
        if error.errno != errno.ENETUNREACH:
            raise
        return warning(
            name,
            f"there is no route to {GROUP}: programs that leave the interface to the system can't "
            "send multicast",
            "ip route add 224.0.0.0/4 dev NAME, with the interface of the rig's network",
        )
