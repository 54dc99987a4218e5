"""Health and metadata under the names of the Open Inference Protocol (v2), without inference.

The protocol: kserve/open-inference-protocol, specification/protocol/inference_rest.md. A model is a
registered decoder; `active` names the one in use. Spikes come over LSL, so there is no `infer`.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Literal, Protocol

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from server.problems import NotFoundError
from server.schemas import Answer
from server.store.registry import Registry
from server.supervision.daemon import SupervisedDaemon

ACTIVE = "active"
PLATFORM = "onnxruntime_onnx"


class Live(Answer):
    """The server answers."""

    live: Literal[True] = True


class Ready(Answer):
    """A daemon answers."""

    ready: Literal[True] = True


class ServerMetadata(Answer):
    """The server, by the protocol."""

    name: str = "volition"
    version: str
    extensions: list[str] = Field(default=[])


class Tensor(Answer):
    """An input or output of a model. A size of -1 varies."""

    name: str
    datatype: str = Field(examples=["FP64"])
    shape: list[int]


class ModelMetadata(Answer):
    """A decoder, by the protocol."""

    name: str = Field(description="id of the decoder")
    versions: list[str] = Field(default=[], description="decoders have no versions")
    platform: str = PLATFORM
    inputs: list[Tensor]
    outputs: list[Tensor] = Field(description="velocity, m/s")


class ModelReady(Answer):
    """Whether the daemon decodes with this decoder."""

    name: str
    ready: bool


class ProtocolError(Answer):
    """An error, by the protocol."""

    error: str


class Parts(Protocol):
    """Those parts of the server (`server.api.routes.Parts`) that are asked here."""

    registry: Registry
    supervisor: SupervisedDaemon


Name = Annotated[str, Path(description="id of a registered decoder, or `active`")]
TAGS = ["open inference protocol"]
v2_health = APIRouter(prefix="/v2/health", tags=[*TAGS])
v2 = APIRouter(prefix="/v2", tags=[*TAGS])
INPUTS = [  # as `decoder.runtimes.base.Runtime.append` takes spikes
    Tensor(name="times", datatype="FP64", shape=[-1]),
    Tensor(name="unit_index", datatype="INT64", shape=[-1]),
]


@v2_health.get("/live")
def live() -> Live:
    """The server is up."""
    return Live()


@v2_health.get("/ready", response_model=Ready, responses={503: {"model": ProtocolError}})
def ready(request: Request) -> Ready | JSONResponse:
    """A daemon is running and answers. Whether its velocity is valid is in every frame."""
    if _parts(request).supervisor.status is None:
        return _error(503, "no daemon answers; see GET /v1/status")
    return Ready()


@v2.get("")
def server_metadata() -> ServerMetadata:
    """The server's name and version."""
    return ServerMetadata(version=version("volition"))


@v2.get("/models/{name}", response_model=ModelMetadata, responses={404: {"model": ProtocolError}})
def model_metadata(name: Name, request: Request) -> ModelMetadata | JSONResponse:
    """A decoder's inputs and outputs."""
    parts = _parts(request)
    try:
        manifest = parts.registry.get(_decoder(name, parts)).manifest
    except NotFoundError as error:
        return _error(404, str(error))
    return ModelMetadata(
        name=manifest.decoder_id,
        inputs=INPUTS,
        outputs=[Tensor(name=one.name, datatype="FP64", shape=[1]) for one in manifest.outputs],
    )


@v2.get(
    "/models/{name}/ready",
    response_model=ModelReady,
    responses={404: {"model": ProtocolError}, 503: {"model": ModelReady}},
)
def model_ready(name: Name, request: Request) -> ModelReady | JSONResponse:
    """Whether a daemon answers that decodes with this decoder; 503 if not."""
    parts = _parts(request)
    try:
        decoder = parts.registry.get(_decoder(name, parts)).manifest.decoder_id
    except NotFoundError as error:
        return _error(404, str(error))
    status = parts.supervisor.status
    answer = ModelReady(name=decoder, ready=status is not None and status.decoder == decoder)
    return answer if answer.ready else JSONResponse(answer.model_dump(), status_code=503)


def _parts(request: Request) -> Parts:
    found: Parts = request.app.state.parts
    return found


def _decoder(name: str, parts: Parts) -> str:
    """The id of a decoder. Raises NotFoundError if none is active."""
    if name != ACTIVE:
        return name
    status = parts.supervisor.status
    decoder = status.decoder if status is not None else parts.supervisor.wanted.active
    if decoder is None:
        raise NotFoundError("no decoder is active; activate one (GET /v1/decoders)")
    return decoder


def _error(status: int, error: str) -> JSONResponse:
    return JSONResponse(ProtocolError(error=error).model_dump(), status_code=status)
