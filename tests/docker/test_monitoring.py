"""The files for Prometheus and Grafana; tests/server/test_monitoring.py asks a real Prometheus."""

from __future__ import annotations

import json
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.settings import ServerSettings

DOCKER = Path(__file__).parents[2] / "docker"
PROMETHEUS, GRAFANA = DOCKER / "prometheus", DOCKER / "grafana"
TOKEN_FILE = "/run/volition/token"
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="no promtool; install Debian's package prometheus"
)
# The classic model: grafana.com/docs/grafana, "Dashboard JSON model".
FIELDS = {
    "id": type(None), "uid": str, "title": str, "tags": list, "timezone": str, "editable": bool,
    "graphTooltip": int, "panels": list, "time": dict, "timepicker": dict, "templating": dict,
    "annotations": dict, "refresh": str, "schemaVersion": int, "version": int, "links": list,
}  # fmt: skip
PANELS = ("stat", "timeseries", "heatmap", "state-timeline")
WIDTH = 24


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "volition.json").read_text())
    return content


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def _promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_accepts_the_configuration_and_the_alerts(tmp_path: Path) -> None:
    shutil.copytree(PROMETHEUS, tmp_path / "etc")
    config = tmp_path / "etc" / "prometheus.yml"
    assert TOKEN_FILE in config.read_text()
    (tmp_path / "token").touch()
    config.write_text(config.read_text().replace(TOKEN_FILE, str(tmp_path / "token")))
    _promtool("check", "config", config)
    _promtool("check", "rules", PROMETHEUS / "alerts.yml")


SCENES: dict[str, tuple[dict[str, str], str | None]] = {  # series every 5 s, and the alert
    "all is well": (
        {
            "up": "1x60",
            "volition_up": "1x60",
            "volition_stream_open": "1x60",
            "volition_paused": "0x60",
            'volition_state{state="decoding"}': "1x60",
            "volition_ticks_total": "0+500x60",
            "volition_ticks_skipped_total": "0x60",
            "volition_daemon_restarts_total": "0x60",
            'volition_tick_latency_seconds_bucket{le="0.002"}': "0+500x60",
            'volition_tick_latency_seconds_bucket{le="+Inf"}': "0+500x60",
            "volition_distance_nats": "0.2x60",
            "volition_distance_limit_nats": "0.5x60",
        },
        None,
    ),
    "the server is down": ({"up": "0x60"}, "VolitionServerDown"),
    "the daemon is down": ({"volition_up": "0x60"}, "VolitionDaemonDown"),
    "the daemon has died": ({"volition_daemon_restarts_total": "0x30 1x30"},
                            "VolitionDaemonRestarts"),
    "spikes, but no decoding": (
        {
            "volition_stream_open": "1x60",
            "volition_paused": "0x60",
            'volition_state{state="decoding"}': "0x60",
            'volition_state{state="fault"}': "1x60",
        },
        "VolitionNotDecoding",
    ),
    "paused": (
        {
            "volition_stream_open": "1x60",
            "volition_paused": "1x60",
            'volition_state{state="decoding"}': "0x60",
        },
        None,
    ),
    "slow ticks": (
        {
            'volition_tick_latency_seconds_bucket{le="0.005"}': "0+480x60",
            'volition_tick_latency_seconds_bucket{le="0.01"}': "0+500x60",
            'volition_tick_latency_seconds_bucket{le="+Inf"}': "0+500x60",
        },
        "VolitionSlowTicks",
    ),
    "late ticks": (
        {"volition_ticks_total": "0+500x60", "volition_ticks_skipped_total": "0+1x60"},
        "VolitionSkippedTicks",
    ),
    "other neurons": (
        {"volition_distance_nats": "0.6x60", "volition_distance_limit_nats": "0.5x60"},
        "VolitionNeuronsChanged",
    ),
}  # fmt: skip


@needs_promtool
@pytest.mark.parametrize("scene", SCENES)
def test_an_alert_fires_when_it_should_and_only_then(scene: str, tmp_path: Path) -> None:
    series, expected = SCENES[scene]
    rules = [rule["alert"] for rule in _yaml(PROMETHEUS / "alerts.yml")["groups"][0]["rules"]]
    labels = 'instance="rig:8000",job="volition"'

    def named(metric: str) -> str:
        name, _, more = metric.partition("{")
        return f"{name}{{{labels}{',' + more.removesuffix('}') if more else ''}}}"

    # The expression ALERTS is what promtool compares; texts and labels are not repeated here.
    firing = [
        {
            "expr": f'count(ALERTS{{alertname="{rule}",alertstate="firing"}})',
            "eval_time": "4m",
            "exp_samples": [{"labels": "{}", "value": 1}] if rule == expected else [],
        }
        for rule in rules
    ]
    test = tmp_path / "test.yml"
    test.write_text(
        yaml.safe_dump(
            {
                "rule_files": [str(PROMETHEUS / "alerts.yml")],
                "evaluation_interval": "5s",
                "tests": [
                    {
                        "interval": "5s",
                        "input_series": [
                            {"series": named(metric), "values": values}
                            for metric, values in series.items()
                        ],
                        "promql_expr_test": firing,
                    }
                ],
            }
        )
    )
    _promtool("test", "rules", test)
    assert expected is None or expected in rules


def test_the_dashboard_follows_the_documented_model(dashboard: dict[str, Any]) -> None:
    for field, kind in FIELDS.items():
        assert isinstance(dashboard[field], kind), field
    assert 8 <= len(dashboard["uid"]) <= 40
    assert dashboard["time"].keys() == {"from", "to"}
    assert isinstance(dashboard["templating"]["list"], list)
    assert isinstance(dashboard["annotations"]["list"], list)
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["type"] in PANELS, panel["title"]
        assert panel["title"]
        assert panel["description"]
        assert {"defaults", "overrides"} == panel["fieldConfig"].keys()
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(set(references)) == len(references)


def test_the_panels_fill_the_grid_without_overlapping(dashboard: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    for place in places:
        assert place.keys() == {"x", "y", "w", "h"}
        assert 0 <= place["x"] < place["x"] + place["w"] <= WIDTH
        assert place["h"] > 0
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)
    area = sum(place["w"] * place["h"] for place in places)
    assert area == WIDTH * max(place["y"] + place["h"] for place in places)


def test_every_panel_asks_the_data_source_that_is_provisioned(dashboard: dict[str, Any]) -> None:
    (source,) = _yaml(GRAFANA / "provisioning" / "datasources" / "prometheus.yaml")["datasources"]
    chosen, instance = dashboard["templating"]["list"]
    assert chosen["type"] == "datasource"
    assert (chosen["query"], chosen["current"]["value"]) == (source["type"], source["uid"])
    by_variable = {"type": source["type"], "uid": f"${{{chosen['name']}}}"}
    asked = [target for panel in dashboard["panels"] for target in panel["targets"]]
    for one in [*asked, *dashboard["panels"], *dashboard["annotations"]["list"], instance]:
        assert one["datasource"] == by_variable


def test_compose_mounts_the_files_where_they_are_read() -> None:
    services = _yaml(DOCKER / "compose.yaml")["services"]
    mounted = {}
    for name in ("prometheus", "grafana"):
        for volume in services[name]["volumes"]:
            source, target, *_ = volume.split(":")
            if source.startswith("./"):
                mounted[target] = DOCKER / source
    (provider,) = _yaml(GRAFANA / "provisioning" / "dashboards" / "volition.yaml")["providers"]
    assert (mounted[provider["options"]["path"]] / "volition.json").is_file()
    assert (mounted["/etc/grafana/provisioning"] / "datasources").is_dir()
    assert (mounted["/etc/prometheus"] / "prometheus.yml").is_file()
    (source,) = _yaml(GRAFANA / "provisioning" / "datasources" / "prometheus.yaml")["datasources"]
    (command,) = services["prometheus"]["command"]
    assert f"--web.listen-address={source['url'].removeprefix('http://')}" in command
    assert "--config.file=/etc/prometheus/prometheus.yml" in command


def test_prometheus_scrapes_the_server_with_its_token(tmp_path: Path) -> None:
    (job,) = _yaml(PROMETHEUS / "prometheus.yml")["scrape_configs"]
    default = ServerSettings.model_fields
    target = f"{default['host'].default}:{default['port'].default}"
    assert job["static_configs"] == [{"targets": [target]}]
    assert job["authorization"] == {"credentials_file": TOKEN_FILE}
    service = _yaml(DOCKER / "compose.yaml")["services"]["prometheus"]
    assert service["tmpfs"] == [str(Path(TOKEN_FILE).parent)]
    (command,) = service["command"]
    first, then, program = command.partition("exec /bin/prometheus")
    assert (then, program[:1]) == ("exec /bin/prometheus", " ")
    for token in ("", "s3cret token"):
        shell = first.replace("$$", "$").replace(TOKEN_FILE, str(tmp_path / "token")) + "true"
        environment = {"VOLITION_TOKEN": token} if token else {}
        subprocess.run([*service["entrypoint"], shell], env=environment, check=True)
        assert (tmp_path / "token").read_text() == token
