"""Faults at the daemon's sockets and the REST API: hostile input, stalled readers."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import msgspec
import zmq
from pylsl import local_clock

from clients.subscriber import CursorSubscriber
from tests.faults.checker import longest_silence
from tests.faults.fault import Fault, Seconds
from tests.faults.rig import DaemonRig, ServerRig
from tests.rig import DEADLINE_S

GOES_ON = "the daemon goes on decoding and answers the next command"
OLD_S = 0.25
HALF_OPEN = 1200
TOKEN = "a-token-of-this-campaign-0123456789"


@contextlib.contextmanager
def _dealer(address: str) -> Iterator[zmq.Socket[bytes]]:
    """A socket for arbitrary messages."""
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.connect(address)
    try:
        yield dealer
    finally:
        context.destroy(linger=500)


def _send(rig: DaemonRig, *messages: list[bytes]) -> Seconds:
    """Send messages to the control socket; then the daemon must still decode and answer."""
    pid, start = rig.status().pid, local_clock()
    with _dealer(rig.control) as dealer:
        for message in messages:
            dealer.send_multipart([b"", *message])
        rig.frames_for(0.5)
        answers = 0
        while dealer.poll(100):
            dealer.recv_multipart()
            answers += 1
    asked = local_clock()
    assert rig.status().pid == pid
    answered = local_clock() - asked
    silence = {"longest without a frame": longest_silence(rig.checker.since(start))}
    return silence | {"to answer": answered} | rig.until_valid()


def garbage(rig: DaemonRig) -> Seconds:
    return _send(rig, *([rig.rng.randbytes(rig.rng.randrange(200))] for _ in range(300)))


def invalid_utf8(rig: DaemonRig) -> Seconds:
    text = b"\x81\xa7command\xa5\xff\xfe\xfd\xfc\xfb"
    why = b"\x82\xa7command\xa5pause\xa3why\xa4\xc3\x28\xa0\xa1"
    key = b"\x81\xa4\xff\xff\xff\xff\x01"
    return _send(rig, *([rig.rng.choice([text, why, key])] for _ in range(20)))


def nested(rig: DaemonRig) -> Seconds:
    depth = rig.rng.choice([500, 5_000, 100_000])
    arrays = b"\x91" * depth + b"\x01"
    inside = b"\x82\xa7command\xa4load\xa4path" + b"\x91" * depth + b"\x01"
    maps = b"\x81\xa1a" * depth + b"\x01"
    return _send(rig, [arrays], [inside], [maps])


def huge(rig: DaemonRig) -> Seconds:
    large = msgspec.msgpack.encode({"command": "load", "path": "x" * 60_000_000})
    try:
        return _send(rig, [large], [b"\xdd\xff\xff\xff\xff"], [b"x"] * 10_000)
    finally:
        rig.until("an answer", lambda: rig.status())


def many_connections(rig: DaemonRig) -> Seconds:
    """Open connections and leave them, half of them with the start of a greeting."""
    host = urlsplit(rig.control)
    with contextlib.ExitStack() as stack:
        for _ in range(500):
            peer = stack.enter_context(socket.create_connection((host.hostname, host.port), 5.0))
            if rig.rng.random() < 0.5:
                peer.send(b"\xff\x00\x00\x00")
        return _send(rig, [b"\xc1"])


def flooded_with_commands(rig: DaemonRig) -> Seconds:
    status = msgspec.msgpack.encode({"command": "getstatus"})
    return _send(rig, *([status] for _ in range(3000)))


def stalled_subscriber(rig: DaemonRig) -> Seconds:
    """Frames that waited for a stalled reader must not be valid; other readers are not delayed."""
    with CursorSubscriber(rig.address) as cursor:
        rig.until("a frame", lambda: cursor.receive(timeout_s=1.0))
        start = local_clock()
        silence = rig.frames_for(rig.rng.uniform(1.0, 4.0))
        old, resumed = 0, local_clock()
        while local_clock() < resumed + 1.0:
            frame = cursor.receive(timeout_s=0.2)
            now = local_clock()
            old += frame is not None and frame.valid and now - frame.published > OLD_S
    assert not old, f"{old} old frames were valid for the reader"
    assert longest_silence(rig.checker.since(start)) < OLD_S + silence["longest without a frame"]
    return silence | rig.until_valid()


def many_subscriptions(rig: DaemonRig) -> Seconds:
    skipped = rig.status().skipped_ticks
    context = zmq.Context()
    subscriber = context.socket(zmq.SUB)
    subscriber.setsockopt(zmq.SNDHWM, 0)  # otherwise most subscriptions would never be sent
    subscriber.connect(rig.address)
    try:
        for i in range(200_000):
            subscriber.subscribe(b"topic-%d-%d" % (i, i % 7))
        silence = rig.frames_for(3.0)
    finally:
        context.destroy(linger=0)
    rig.until("an answer", lambda: rig.status())
    assert rig.status().skipped_ticks - skipped < 300, "no tick came for 3 s"
    return silence | rig.until_valid()


class TokenRig(ServerRig):
    """A server that requires a token."""

    settings = (("VOLITION_TOKEN", TOKEN),)


def _many_descriptors() -> str | None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * HALF_OPEN:
        return f"needs {2 * HALF_OPEN} open files"
    if soft < 2 * HALF_OPEN:
        resource.setrlimit(resource.RLIMIT_NOFILE, (2 * HALF_OPEN, hard))
    return None


def half_open(rig: ServerRig) -> Seconds:
    """Open connections with incomplete requests, and kill the daemon."""
    url = urlsplit(rig.server.url)
    log = rig.server.home / "server.log"
    pid, size = rig.pid(), log.stat().st_size
    with contextlib.ExitStack() as stack:
        for _ in range(HALF_OPEN):
            with contextlib.suppress(OSError):
                peer = stack.enter_context(socket.create_connection((url.hostname, url.port), 2.0))
                peer.send(b"POST /v1/decoding/pause HTTP/1.1\r\nHost: 127.0")
        os.kill(pid, signal.SIGKILL)
        start = local_clock()
        seconds = rig.until_valid(start + 0.02)
        rig.until("a pause", lambda: rig.orders.give("paused", "stop", rig.pause("stop")))
        seconds["to pause"] = local_clock() - start - seconds["to valid"]
        rig.never_valid(0.3)
    assert log.stat().st_size - size < 2**20, f"{log.stat().st_size - size} bytes of log"
    rig.until("a resume", lambda: rig.orders.give("paused", None, rig.resume()))
    rig.until_valid()
    return seconds


def huge_bodies(rig: TokenRig) -> Seconds:
    before = _memory_mb(rig.server.process.pid)
    paths = ("/v1/calibrations", "/v1/decoders", "/v1/decoding/pause", "/v1/filters")
    start = local_clock()
    for _ in range(4):
        headers = rig.rng.choice([{}, {"Authorization": f"Bearer {TOKEN}"}])
        method = "PATCH" if (path := rig.rng.choice(paths)) == "/v1/filters" else "POST"
        with contextlib.suppress(httpx.TransportError):  # refused during the upload
            answer = httpx.request(
                method, rig.server.url + path, content=b'{"why": "' + b"x" * 50_000_000,
                headers={"Content-Type": "application/json", **headers}, timeout=60.0,
            )  # fmt: skip
            assert 400 <= answer.status_code < 500, answer
            assert "application/problem+json" in answer.headers["content-type"], answer.text[:200]
    grown = _memory_mb(rig.server.process.pid) - before
    assert grown < 200, f"{grown:.0f} MB more"
    return {"to answer": (local_clock() - start) / 4} | rig.orders_hold()


def wrong_tokens(rig: TokenRig) -> Seconds:
    """Wrong tokens change nothing, and the right one still works."""
    start = local_clock()
    for _ in range(100):
        guess = rig.rng.randbytes(12).hex() if rig.rng.random() < 0.9 else TOKEN[:-1]
        answer = httpx.post(
            f"{rig.server.url}/v1/decoding/pause",
            headers={"Authorization": f"Bearer {guess}"}, timeout=DEADLINE_S,
        )  # fmt: skip
        assert answer.status_code in (401, 429), answer
    seconds = {"to answer": (local_clock() - start) / 100}
    assert all(frame.valid for frame in rig.checker.since(local_clock() - 0.1))
    rig.until("a pause", lambda: rig.orders.give("paused", "stop", rig.pause("stop")))
    rig.until("a resume", lambda: rig.orders.give("paused", None, rig.resume()))
    return seconds | rig.until_valid()


def strange_requests(rig: ServerRig) -> Seconds:
    """Odd paths, ids and bodies each get a problem document."""
    bodies = ["[" * 50_000, '{"seconds": 1e999}', "NaN", '{"why": "\\ud800"}', '"' + "\\u0000" * 99,
              '{"path": "/dev/zero"}', '{"path": "' + "a/" * 500 + '"}', ""]  # fmt: skip
    paths = ["/v1/calibrations", "/v1/decoders", "/v1/decoding/pause", "/v1/decoders/%2e/activate",
             "/v1/decoders/" + "x" * 300 + "/activate", "/v1/calibrations/%00/finish"]  # fmt: skip
    start = local_clock()
    for _ in range(30):
        answer = httpx.post(
            rig.server.url + rig.rng.choice(paths), content=rig.rng.choice(bodies),
            headers={"Content-Type": "application/json"}, timeout=DEADLINE_S,
        )  # fmt: skip
        assert answer.status_code < 500 or answer.status_code == 503, answer.text[:300]
        if answer.status_code == 200 and "pause" in answer.url.path:
            rig.orders.give("paused", None, rig.resume())
    return {"to answer": (local_clock() - start) / 30} | rig.orders_hold()


def _memory_mb(pid: int) -> float:
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) / 1e3 for line in file if line.startswith("VmRSS"))


FAULTS = (
    Fault(name="control-garbage", what="300 random messages to the control socket",
          must_hold=GOES_ON, rig=DaemonRig, attempt=garbage),
    Fault(name="control-utf8", what="Commands with invalid UTF-8",
          must_hold=GOES_ON, rig=DaemonRig, attempt=invalid_utf8),
    Fault(name="control-nesting", what="Commands nested up to 100,000 deep",
          must_hold=GOES_ON, rig=DaemonRig, attempt=nested),
    Fault(name="control-huge", what="A command of 60 MB, and one of 10,000 parts",
          must_hold=GOES_ON, rig=DaemonRig, attempt=huge),
    Fault(name="control-connections", what="500 half-open connections to the control socket",
          must_hold=GOES_ON, rig=DaemonRig, attempt=many_connections),
    Fault(name="control-flood", what="3,000 commands at once",
          must_hold=GOES_ON, rig=DaemonRig, attempt=flooded_with_commands),
    Fault(name="subscriber-stalled", what="A subscriber stalls for 1 to 4 s, then reads on",
          must_hold="it gets no old frame as valid; other subscribers are not delayed",
          rig=DaemonRig, attempt=stalled_subscriber),
    Fault(name="subscriptions", what="One subscriber with 200,000 topics",
          must_hold="ticks go on", rig=DaemonRig, attempt=many_subscriptions),
    Fault(name="rest-half-open",
          what=f"{HALF_OPEN:,} half-open connections, then the daemon is killed",
          must_hold="it restarts, a pause is answered, the log grows by less than 1 MiB",
          rig=ServerRig, attempt=half_open, blocked=_many_descriptors),
    Fault(name="rest-huge-bodies", what="Bodies of 50 MB, with and without the token",
          must_hold="each gets a problem document; memory grows by less than 200 MB",
          rig=TokenRig, attempt=huge_bodies),
    Fault(name="rest-wrong-tokens", what="100 wrong tokens",
          must_hold="each is refused and changes nothing; the right one works afterwards",
          rig=TokenRig, attempt=wrong_tokens),
    Fault(name="rest-strange", what="30 requests with odd paths and bodies",
          must_hold="no response with status 500; nothing changes", rig=ServerRig,
          attempt=strange_requests),
)  # fmt: skip
