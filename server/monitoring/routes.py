"""`GET /metrics`, for Prometheus. Guide: docs/MONITORING.md."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from server.monitoring.monitor import Monitor

OPENMETRICS = "application/openmetrics-text"

metrics = APIRouter(tags=["monitoring"])


@metrics.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses={200: {"content": {OPENMETRICS: {"schema": {"type": "string"}}}}},
)
def get_metrics(request: Request) -> Response:
    """All metrics, in Prometheus' text format or as OpenMetrics, as the Accept header asks."""
    monitor: Monitor = request.app.state.monitor
    text, content_type = monitor.render(request.headers.get("accept", ""))
    return Response(text, headers={"Content-Type": content_type})
