"""Hostile requests: huge or nested bodies, guessed tokens, half-open connections."""

from __future__ import annotations

import json
import os
import resource
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from clients.harness.daemon import free_port
from clients.harness.server import Server
from decoder.errors import BundleError
from server.settings import ServerSettings
from server.store.registry import FILES, Registry
from streaming.daemon.settings import DaemonSettings
from streaming.logs import open_log, shorten
from tests.rig import running, wait_for
from tests.server.conftest import POSSM

TOKEN = secrets.token_urlsafe()
OURS = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    with Server(POSSM, home, "nobody-streams-this", VOLITION_TOKEN=TOKEN) as server:
        yield server


def answer(server: Server, *lines: str, body: bytes = b"") -> bytes:
    """The response to a request with these lines and only a part of its body."""
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port), timeout=30.0) as connection:
        head = "\r\n".join((*lines, f"Host: {url.host}:{url.port}", "", "")).encode()
        connection.sendall(head + body)
        answered = b""
        while part := connection.recv(65536):  # until the server closes it
            answered += part
    return answered


def test_a_request_is_checked_before_its_body_is_read(server: Server) -> None:
    large = ("POST /v1/calibrations HTTP/1.1", "Content-Type: application/json")
    fifty = "Content-Length: 50000000"
    ours = f"Authorization: Bearer {TOKEN}"
    assert answer(server, *large, fifty).startswith(b"HTTP/1.1 401")
    assert answer(server, *large, fifty, ours).startswith(b"HTTP/1.1 413")
    endless = b"10000\r\n" + b" " * 65536 + b"\r\n2\r\n  \r\n"  # without an end
    chunked = "Transfer-Encoding: chunked"
    assert answer(server, *large, chunked, body=endless).startswith(b"HTTP/1.1 401")
    refused = answer(server, *large, chunked, ours, body=endless)
    assert refused.startswith(b"HTTP/1.1 413")
    assert b"application/problem+json" in refused


@pytest.mark.parametrize(
    "body", [b"[" * 20_000, b'{"a":' * 10_000, b"9" * 6000, b'"\xff"', b"{", b'"\\ud800"']
)
def test_an_invalid_body_is_answered_with_a_problem(server: Server, body: bytes) -> None:
    for method, path in (
        ("POST", "/v1/calibrations"), ("PUT", "/v1/input"), ("PATCH", "/v1/filters"),
        ("POST", "/v1/decoding/pause"), ("POST", "/v1/decoders"), ("PATCH", "/v1/decoders/any"),
    ):  # fmt: skip
        answered = httpx.request(
            method, server.url + path, content=body,
            headers=OURS | {"Content-Type": "application/json"},
        )  # fmt: skip
        assert answered.status_code in (400, 422), answered.text
        assert answered.headers["content-type"] == "application/problem+json"


def test_a_deeply_nested_manifest_is_answered_with_a_problem(
    server: Server, tmp_path: Path
) -> None:
    for content in ("[" * 100_000, '{"a":' * 100_000, '{"schema_version": ' + "9" * 5000 + "}"):
        (tmp_path / "manifest.json").write_text(content)
        answered = httpx.post(
            f"{server.url}/v1/decoders", json={"path": str(tmp_path)}, headers=OURS
        )
        assert answered.status_code == 409, answered.text
        # one in the registry does not hide the others
        place = server.home / "decoders" / "nested.bundle"
        place.mkdir(exist_ok=True)
        (place / "manifest.json").write_text(content)
        with server.client() as client:
            assert len(client.decoders()) == 1


def test_wrong_tokens_are_limited_and_the_right_one_is_not(server: Server) -> None:
    statuses = []
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        for _ in range(15):
            wrong = {"Authorization": f"Bearer {secrets.token_urlsafe()}"}
            statuses.append(client.get("/v1/status", headers=wrong).status_code)
        assert statuses == [401] * 10 + [429] * 5
        refused = client.get("/v1/status", headers={"Authorization": "Bearer wrong"})
        assert int(refused.headers["Retry-After"]) > 0
        assert client.get("/v1/status", headers=OURS).status_code == 200
        assert client.get("/v1/nowhere").status_code == 401  # for any path
        assert client.get("/health/live").status_code == 200


def test_a_weak_token_is_refused() -> None:
    for token in ("secret", "123456", "a" * 64, "0123456789" * 3, "deadbeef" * 2, "ab" * 40):
        with pytest.raises(ValueError, match=r"secrets\.token_urlsafe"):
            ServerSettings(token=token)  # type: ignore[arg-type]
    for make in (secrets.token_urlsafe, secrets.token_hex):
        for _ in range(500):
            assert ServerSettings(token=make(16)).token is not None  # type: ignore[arg-type]


def test_child_processes_do_not_get_the_token(server: Server) -> None:
    with server.client() as client:
        daemon = client.status().daemon.pid
        begun = client.start_calibration(client_request())
        children = wait_for("its child processes", lambda: len(p := _children(server)) > 1 and p)
        for pid in {daemon, *children}:
            # until it runs its own program, a new process has its parent's memory
            wait_for("its program", lambda pid=pid: _command(pid) != _command(server.process.pid))
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            assert TOKEN.encode() not in environment
            assert b"VOLITION_TOKEN" not in environment
        wait_for("its end", lambda: client.calibration(begun.id).state == "failed")


def client_request() -> object:
    from server.schemas import CalibrationRequest

    return CalibrationRequest(seconds=5.0)


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _children(server: Server) -> list[int]:
    path = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    tasks = path.parent.parent.glob("*/children")
    return [int(pid) for task in tasks for pid in task.read_text().split()]


@pytest.mark.parametrize("address", ["tcp://*", "tcp://[::]", "tcp://10.0.0.1", "tcp://rig-1"])
def test_a_control_address_that_other_machines_reach_is_refused(address: str) -> None:
    control = f"{address}:5557"
    with pytest.raises(ValueError, match="VOLITION_CONTROL_OPEN"):
        ServerSettings(daemon=DaemonSettings(control=control))
    ServerSettings(daemon=DaemonSettings(control=control), supervise=False)
    ServerSettings(daemon=DaemonSettings(control=control, control_open=True))


def test_a_daemon_takes_commands_from_other_machines_only_if_allowed(tmp_path: Path) -> None:
    control = f"tcp://0.0.0.0:{free_port()}"
    frames = ("--address", f"tcp://127.0.0.1:{free_port()}")
    with running(tmp_path / "log", "decode", str(POSSM), "--control", control, *frames) as refused:
        assert refused.popen.wait(60) == 1
        assert "without a token" in refused.output()
    allowed = ("--control", control, "--control-open")
    with running(tmp_path / "log", "decode", str(POSSM), *allowed, *frames) as daemon:
        wait_for("the daemon", lambda: "publishing on" in daemon.output())


def test_the_registry_copies_only_the_files_of_a_bundle(tmp_path: Path) -> None:
    bundle = tmp_path / "strange.bundle"
    bundle.mkdir()
    for name in FILES:
        (bundle / name).symlink_to(POSSM.absolute() / name)
    (bundle / "secrets.txt").write_text("not ours")
    (bundle / "everything").symlink_to("/")
    os.mkfifo(bundle / "pipe")
    entry = Registry(tmp_path / "decoders").add(bundle)
    assert sorted(path.name for path in entry.path.iterdir()) == sorted(FILES)
    assert not any(path.is_symlink() for path in entry.path.iterdir())
    assert [path.name for path in (tmp_path / "decoders").iterdir()] == [entry.path.name]


def test_a_bundle_with_a_pipe_for_a_file_is_refused(tmp_path: Path) -> None:
    bundle = tmp_path / "pipe.bundle"
    bundle.mkdir()
    for name in FILES[1:]:
        (bundle / name).symlink_to(POSSM.absolute() / name)
    os.mkfifo(bundle / FILES[0])
    with pytest.raises(BundleError):
        Registry(tmp_path / "decoders").add(bundle)
    assert list((tmp_path / "decoders").iterdir()) == []


def test_a_bundle_is_synced_to_disk_before_it_is_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    registry = Registry(tmp_path / "decoders")
    registry.add(POSSM)
    names = [Path(path).name for path in synced]
    assert set(names[:4]) == set(FILES)
    folders = [path for path in synced if Path(path).name not in FILES]
    assert str(registry.folder) in folders[-1:]  # the folder's entry is last


def test_logs_are_rotated_at_a_size_limit(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    with open_log(path) as log:  # as a daemon keeps it open
        for number in range(50):
            log.write(b"%9d\n" % number * 100)
            log.flush()
            shorten(path, limit_bytes=10_000)
            assert path.stat().st_size <= 10_000
    assert path.read_bytes().endswith(b"       49\n")
    assert path.read_bytes()[:9].strip().isdigit()  # no hole up to the old end
    assert sorted(p.name for p in tmp_path.iterdir()) == ["daemon.log", "daemon.log.1"]


HALF_OPEN = """
import resource, socket, sys, time
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
host, port, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
kept = []
while True:
    while len(kept) < number:
        connection = socket.create_connection((host, port))
        connection.sendall(b"GET /v1/status HTTP/1.1\\r\\nX-Slow: " if len(kept) % 2 else b"")
        kept.append(connection)
    print("all are open", flush=True)
    kept = kept[100:]  # and replaced all the time
    time.sleep(0.05)
"""


@contextmanager
def half_open(server: Server) -> Iterator[None]:
    """1,050 connections that send nothing or half a header, and are replaced all the time."""
    url = httpx.URL(server.url)
    command = [sys.executable, "-c", HALF_OPEN, url.host, str(url.port), "1050"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "all are open\n"
            yield
        finally:
            process.kill()


def test_half_open_connections_block_neither_supervisor_nor_operator(
    tmp_path: Path,
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))  # the usual limit, for the server
    try:
        server = Server(POSSM, tmp_path / "home", "nobody-streams-this")
        server.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with server.client() as client, half_open(server):
        pid = client.status().daemon.pid
        os.kill(pid, 9)
        wait_for(
            "the next daemon",
            lambda: (s := client.status()).answered and s.daemon.pid != pid,
        )
        with server.client() as another:
            assert another.pause("fire").daemon.paused == "fire"
        descriptors = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
        assert descriptors < 700
    server.stop()
    assert (server.home / "server.log").stat().st_size < 1_000_000


@pytest.mark.slow
def test_an_incomplete_request_is_dropped(server: Server) -> None:
    from server.access.connections import REQUEST_S

    began = time.monotonic()
    ours = (f"Authorization: Bearer {TOKEN}", "Content-Type: application/json")
    request = ("POST /v1/decoding/pause HTTP/1.1", *ours, "Content-Length: 100")
    assert b"200 OK" not in answer(server, *request, body=json.dumps({"why": ""})[:5].encode())
    assert time.monotonic() - began < 10 * REQUEST_S
