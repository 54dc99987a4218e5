"""Health and metadata by the Open Inference Protocol."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from clients.harness.daemon import BUNDLES
from clients.harness.server import Server
from decoder.bundles.bundle import open_bundle
from tests.server.conftest import POSSM

TOKEN = secrets.token_urlsafe()
OTHER = BUNDLES / "poyo.bundle"
TENSOR = {"name", "datatype", "shape"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("protocol")
    with Server(POSSM, home, "nobody-streams-this", VOLITION_TOKEN=TOKEN) as one:
        with one.client() as client:
            client.add_decoder(str(OTHER))
        yield one


def get(server: Server, path: str, status: int = 200) -> Any:
    answer = httpx.get(server.url + path, headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def test_health_needs_no_token_and_the_rest_does(server: Server) -> None:
    assert httpx.get(f"{server.url}/v2/health/live").json() == {"live": True}
    assert httpx.get(f"{server.url}/v2/health/ready").json() == {"ready": True}
    for path in ("/v2", "/v2/models/active", "/v2/models/active/ready"):
        assert httpx.get(server.url + path).status_code == 401


def test_the_server_says_what_it_is(server: Server) -> None:
    metadata = get(server, "/v2")
    assert metadata.keys() == {"name", "version", "extensions"}
    assert metadata["name"] == "volition"


@pytest.mark.parametrize("bundle", [POSSM, OTHER])
def test_a_model_is_a_registered_decoder(server: Server, bundle: Any) -> None:
    manifest = open_bundle(bundle).manifest
    metadata = get(server, f"/v2/models/{manifest.decoder_id}")
    assert metadata["name"] == manifest.decoder_id
    assert metadata["platform"] == "onnxruntime_onnx"
    assert [one["name"] for one in metadata["outputs"]] == [one.name for one in manifest.outputs]
    for tensor in metadata["inputs"] + metadata["outputs"]:
        assert tensor.keys() == TENSOR
    if bundle == POSSM:
        assert get(server, "/v2/models/active") == metadata


def test_only_the_active_decoder_is_ready(server: Server) -> None:
    active, other = (open_bundle(one).manifest.decoder_id for one in (POSSM, OTHER))
    for name in ("active", active):
        assert get(server, f"/v2/models/{name}/ready") == {"name": active, "ready": True}
    assert get(server, f"/v2/models/{other}/ready", 503) == {"name": other, "ready": False}


@pytest.mark.parametrize("name", ["nobody", "%2e%2e", "%00", pytest.param("x" * 300, id="long")])
@pytest.mark.parametrize("more", ["", "/ready"])
def test_a_wrong_name_gets_the_protocols_error(server: Server, name: str, more: str) -> None:
    error = get(server, f"/v2/models/{name}{more}", 404)
    assert error.keys() == {"error"}
    assert "GET /v1/decoders" in error["error"]
