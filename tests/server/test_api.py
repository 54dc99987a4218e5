"""Valid requests are answered as documented; all others with a problem document."""

from __future__ import annotations

import json
import resource
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import httpx
import numpy as np
import pytest
from pydantic import SecretStr
from schemathesis import engine
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events
from schemathesis.openapi import from_asgi, from_url
from schemathesis.python import asgi
from schemathesis.schemas import BaseSchema

from clients.harness.daemon import free_port
from clients.harness.server import Server
from decoder.errors import SettingsError
from server.access.gate import OPEN_TO_ALL
from server.api.app import assemble, build_app
from server.schemas import CalibrationRequest, Input
from server.settings import ServerSettings
from server.supervision.daemon import known_bundle
from streaming.daemon.settings import DaemonSettings
from streaming.sessions.session import Session
from tests.server.conftest import POSSM, Play
from tests.server.test_survival import request_for

TOKEN = secrets.token_urlsafe()


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose streams never appear."""
    home = tmp_path_factory.mktemp("idle")
    with Server(POSSM, home, "nobody-streams-this", VOLITION_TOKEN=TOKEN) as server:
        yield server


def get(server: Server, path: str, **headers: str) -> httpx.Response:
    return httpx.get(server.url + path, headers=headers)


NOT_HERE = "ignored_auth"  # exceeds the limit of wrong tokens; another test covers it


def schemathesis_settings(max_examples: int) -> SchemathesisConfig:
    return SchemathesisConfig.from_dict(
        {
            "seed": 1,
            "headers": {"Authorization": f"Bearer {TOKEN}"},
            "generation": {"max-examples": max_examples},
            "checks": {NOT_HERE: {"enabled": False}},
            "operations": [
                {  # a calibration that was just started has none
                    "include-path": "/v1/calibrations/{id}/traces",
                    "checks": {"ensure_resource_availability": {"enabled": False}},
                }
            ],
        }
    )


def check(schema: BaseSchema) -> None:
    """Run all phases and checks of schemathesis."""
    problems, answers = [], Counter[int]()
    for event in engine.from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            sent = event.recorder.interactions.values()
            answers.update(i.response.status_code for i in sent if i.response is not None)
            problems += [
                f"{event.recorder.label}: {one.name}: {one.failure_info.failure}"
                for checks in event.recorder.checks.values()
                for one in checks
                if one.failure_info is not None
            ]
        elif isinstance(event, events.NonFatalError | events.FatalError):
            problems.append(str(event))
    assert problems == []
    assert answers[401] < answers[200] > 50, answers


@pytest.mark.slow
def test_every_documented_request_is_answered_as_documented(tmp_path: Path) -> None:
    """In process over ASGI, with a real daemon."""
    ports = [free_port() for _ in range(2)]
    settings = ServerSettings(
        home=tmp_path,
        token=SecretStr(TOKEN),
        allowed_hosts=("testserver",),
        daemon=DaemonSettings(
            address=f"tcp://127.0.0.1:{ports[0]}",
            control=f"tcp://127.0.0.1:{ports[1]}",
            stream_name="nobody-streams-this",
        ),
    )
    parts = assemble(settings)
    app = build_app(parts, known_bundle(parts.registry, parts.journal, POSSM))
    try:
        schema = from_asgi("/openapi.json", app, config=schemathesis_settings(4))
        check(schema)
    finally:
        asgi.shutdown_lifespans()


@pytest.mark.slow
def test_documented_requests_are_answered_over_a_socket(idle: Server) -> None:
    schema = from_url(f"{idle.url}/openapi.json", config=schemathesis_settings(1))
    check(schema)


def test_every_documented_request_needs_the_token(idle: Server) -> None:
    document = get(idle, "/openapi.json").json()
    for path, operations in document["paths"].items():
        for method in operations:
            answer = httpx.request(method, idle.url + path)
            assert (answer.status_code == 401) != (path in OPEN_TO_ALL), f"{method} {path}"


def test_the_document_has_examples_and_describes_problems(idle: Server) -> None:
    document = get(idle, "/openapi.json").json()
    problem = {"$ref": "#/components/schemas/Problem"}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            refused = operation["responses"]["403"]["content"]["application/problem+json"]
            assert refused["schema"] == problem, path
            assert operation["description"], path
    for name in (
        "CalibrationRequest", "NewDecoder", "DecoderPatch", "FiltersPatch", "Pause", "Input",
        "UnitsPatch", "NewNote",
    ):  # fmt: skip
        assert document["components"]["schemas"][name]["examples"]


def test_a_refused_caller_gets_the_reason(idle: Server) -> None:
    assert get(idle, "/health/live").status_code == 200
    refused = get(idle, "/v1/status")
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    assert refused.headers["content-type"] == "application/problem+json"
    assert get(idle, "/v1/status", Authorization="Bearer wrong").status_code == 401
    ours = {"Authorization": f"Bearer {TOKEN}"}
    assert get(idle, "/v1/status", **ours).status_code == 200
    assert get(idle, "/v1/status", Host="evil.example", **ours).status_code == 400
    assert get(idle, "/v1/status", Origin="http://evil.example", **ours).status_code == 403
    own = httpx.URL(idle.url)
    assert get(idle, "/v1/status", Origin=str(own).rstrip("/"), **ours).status_code == 200


@pytest.mark.timing
def test_a_kept_connection_is_no_slower_than_a_new_one(idle: Server) -> None:
    """With Nagle's algorithm a response in two writes waits 40 ms for an ACK."""

    def took_s(client: httpx.Client) -> float:
        began = time.monotonic()
        assert client.get(f"{idle.url}/health/live").status_code == 200
        return time.monotonic() - began

    none_kept = httpx.Limits(max_keepalive_connections=0)
    with (
        httpx.Client(trust_env=False) as kept,
        httpx.Client(trust_env=False, limits=none_kept) as fresh,
    ):
        took_s(kept)
        pairs = [(took_s(kept), took_s(fresh)) for _ in range(15)]
    assert median(kept for kept, _ in pairs) < median(new for _, new in pairs) + 0.02


def test_a_host_that_other_machines_reach_needs_a_token() -> None:
    with pytest.raises(ValueError, match="VOLITION_TOKEN"):
        ServerSettings(host="0.0.0.0")
    assert ServerSettings(host="0.0.0.0", token=TOKEN).token is not None  # type: ignore[arg-type]


def test_a_settings_file_sets_server_and_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "volition.toml"
    file.write_text("port = 9000\nkeep_daemon = true\n[daemon]\ntick_ms = 5\n")
    monkeypatch.setenv("VOLITION_CONFIG", str(file))
    monkeypatch.setenv("VOLITION_PORT", "9001")
    settings = ServerSettings()
    assert (settings.port, settings.keep_daemon, settings.daemon.tick_ms) == (9001, True, 5.0)


def test_a_second_server_with_the_same_home_is_refused(idle: Server) -> None:
    from server.api.app import only_server

    same = ServerSettings(home=idle.home)
    with pytest.raises(SettingsError, match="choose another home"), only_server(same):
        pass


def test_a_path_without_a_bundle_is_refused(idle: Server, tmp_path: Path) -> None:
    with idle.client() as client:
        damaged = tmp_path / "damaged.bundle"
        damaged.mkdir()
        (damaged / "manifest.json").write_text("{}")
        for path, why in (("/nowhere", "no manifest.json"), (str(damaged), "schema version")):
            answer = httpx.post(
                f"{idle.url}/v1/decoders",
                json={"path": path},
                headers={"Authorization": f"Bearer {TOKEN}"},
            )
            assert answer.status_code == 409
            assert answer.json()["type"] == "/problems/bundle"
            assert why in answer.json()["detail"]
        assert len(client.decoders()) == 1


def test_a_calibration_names_the_missing_stream(idle: Server) -> None:
    with idle.client() as client:
        for begun in client.calibrations():  # started by other tests
            list(client.follow(begun.id))
        client.set_input(Input(name="nobody-streams-this"))
        ended = list(client.calibrate(CalibrationRequest(seconds=5.0)))[-1]
    assert ended.state == "failed"
    assert ended.problem.type == "/problems/stream"
    assert "nobody-streams-this" in ended.problem.detail


def test_a_base_that_cannot_identify_units_is_refused_before_anything_is_collected(
    idle: Server,
) -> None:
    answer = httpx.post(
        f"{idle.url}/v1/calibrations", json={"method": "instant"},
        headers={"Authorization": f"Bearer {TOKEN}"},
    )  # fmt: skip
    assert answer.status_code == 409
    assert answer.json()["type"] == "/problems/conflict"
    assert "choose the method units" in answer.json()["detail"]
    with idle.client() as client:
        assert not [one for one in client.calibrations() if one.request.method == "instant"]


def failed(server: Server, request: CalibrationRequest) -> str:
    with server.client() as client:
        ended = list(client.calibrate(request))[-1]
    assert ended.state == "failed", ended
    assert ended.problem.status == 409
    return str(ended.problem.detail)


def test_a_calibration_without_labels_fails_with_the_reason(
    server: Server, unseen: Session, play: Play
) -> None:
    with play(unseen):
        request = request_for(unseen).model_copy(update={"kinematics": "no-such-stream"})
        assert "nothing would label the spikes" in failed(server, request)


@pytest.mark.slow
def test_a_calibration_with_too_few_units_fails(
    server: Server, unseen: Session, play: Play
) -> None:
    few = unseen.spike_units < 3
    quiet = replace(
        unseen, spike_times=unseen.spike_times[few], spike_units=unseen.spike_units[few]
    )
    with play(quiet):
        detail = failed(server, request_for(unseen, seconds=6.0))
    assert "expected at least 4" in detail
    assert "thresholds" in detail


@pytest.mark.slow
def test_a_calibration_with_too_little_movement_fails(
    server: Server, unseen: Session, play: Play
) -> None:
    still = replace(unseen, cursor_vel=np.zeros_like(unseen.cursor_vel))
    with play(still):
        assert "too little movement" in failed(server, request_for(unseen, seconds=6.0))


def test_a_calibration_on_a_full_disk_fails_with_advice(
    unseen: Session, play: Play, tmp_path: Path
) -> None:
    order = {
        "folder": str(tmp_path / "data"), "session": "full", "seconds": 60.0, "subject": "x",
        "spikes_kind": "Spikes", "spikes": f"{unseen.session_id}-spikes",
        "kinematics": f"{unseen.session_id}-kinematics", "markers": f"{unseen.session_id}-markers",
        "wait_s": 10.0,
        "resume": False,
    }  # fmt: skip
    (tmp_path / "data").mkdir()
    with play(unseen), subprocess.Popen(
        [sys.executable, "-m", "server.calibration.collect"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    ) as collector:  # fmt: skip
        assert collector.stdin is not None
        assert collector.stdout is not None
        collector.stdin.write(json.dumps(order) + "\n")
        collector.stdin.flush()
        said = [json.loads(line) for line in collector.stdout]
    assert said[-1]["problem"]["error"] == "SessionError"
    assert "free some space" in said[-1]["problem"]["detail"]
    assert (tmp_path / "data" / "full.recording" / "spikes.bin").stat().st_size > 30_000
