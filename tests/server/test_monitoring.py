"""Metrics: Prometheus reads those of a real server, and the dashboard and alerts use them."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as plain_families

from clients.harness.daemon import free_port
from clients.harness.server import Server
from clients.rest import ProblemError
from clients.subscriber import CursorSubscriber
from decoder.filters import Filters
from server.monitoring import gauges
from server.monitoring.accumulators import Histogram, Total
from server.monitoring.calibrations import MOST_PHASES, CalibrationCounts
from server.monitoring.ticks import TickReader
from server.schemas import Calibration, CalibrationRequest
from server.store.journal import now
from streaming.faults import Faults
from streaming.sessions import format as sessions
from streaming.sessions.session import Session
from streaming.wire import messages as wire
from streaming.wire.publish import Publisher
from streaming.wire.states import State
from tests.rig import DEADLINE_S, running, wait_for
from tests.server.conftest import POSSM

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "docker" / "grafana" / "dashboards" / "volition.json"
TOKEN = secrets.token_urlsafe()
OURS = re.compile(r"\bvolition_[a-z0-9_]+\b")
SUFFIXES = ("_bucket", "_sum", "_count", "")
VARIABLES = {"$__rate_interval": "20s", "$__range": "1m", "$instance": ".*"}

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="no prometheus or no promtool; install Debian's package prometheus",
)


@dataclass
class Prometheus:
    """A Prometheus that scrapes a server by the shipped configuration."""

    url: str

    def ask(self, what: str, **parameters: str) -> Any:
        """The data of an answer of its HTTP API; AssertionError with the reason if it refuses."""
        answer = httpx.get(f"{self.url}/api/v1/{what}", params=parameters, trust_env=False).json()
        assert answer["status"] == "success", f"{parameters}: {answer}"
        return answer["data"]

    def value(self, expression: str) -> float | None:
        """The value of an expression of one series; None if there is none yet."""
        found = self.ask("query", query=expression)["result"]
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None


@contextmanager
def prometheus(folder: Path, server: Server) -> Iterator[Prometheus]:
    """Run Prometheus with docker/prometheus, but faster, on a free port."""
    shutil.copytree(ROOT / "docker" / "prometheus", folder / "etc")
    (folder / "token").write_text(TOKEN)
    config = folder / "etc" / "prometheus.yml"
    text = config.read_text()
    for shipped, here in (
        ("127.0.0.1:8000", server.url.removeprefix("http://")),
        ("/run/volition/token", str(folder / "token")),
        ("_interval: 5s", "_interval: 1s"),
    ):
        assert shipped in text
        text = text.replace(shipped, here)
    config.write_text(text)
    address = f"127.0.0.1:{free_port()}"
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address={address}"],
            stdout=log, stderr=log,
        )  # fmt: skip
    one = Prometheus(f"http://{address}")

    def is_ready() -> bool:
        assert process.poll() is None, (folder / "prometheus.log").read_text()
        try:
            return httpx.get(f"{one.url}/-/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_for("a Prometheus", is_ready)
        yield one
    finally:
        process.terminate()
        try:
            process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def decoding(unseen: Session, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a token, whose daemon decodes a replay."""
    folder = tmp_path_factory.mktemp("decoding")
    session = replace(unseen, session_id=f"{unseen.session_id}-monitored")
    path = sessions.save(session, folder / "sessions")
    with (
        running(folder / "replay.log", "replay", str(path), "--loop"),
        Server(
            POSSM, folder / "home", f"{session.session_id}-spikes", VOLITION_TOKEN=TOKEN
        ) as server,
        server.client() as client,
    ):
        wait_for("decoding", lambda: client.status().daemon.state == "decoding")
        yield server


@pytest.fixture(scope="module")
def watched(decoding: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with prometheus(tmp_path_factory.mktemp("prometheus"), decoding) as one:
        wait_for("two scrapes", lambda: one.value("rate(volition_ticks_total[1m])") is not None)
        yield one


def metrics_of(server: Server, accept: str = "text/plain") -> str:
    answer = httpx.get(
        f"{server.url}/metrics",
        headers={"Authorization": f"Bearer {TOKEN}", "Accept": accept},
        trust_env=False,
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith(accept.partition(";")[0])
    return answer.text


def series_of(text: str) -> Series:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in plain_families(text)
        for sample in family.samples
    }


def names_of(server: Server) -> set[str]:
    """The names of all series that `/metrics` can have, also of those without a value now."""
    return {
        family.name + ("_total" if family.type == "counter" else suffix)
        for family in plain_families(metrics_of(server))
        for suffix in (SUFFIXES if family.type in ("histogram", "summary") else ("",))
    }


def counters_of(text: str) -> Series:
    counters = {
        family.name for family in plain_families(text) if family.type in ("counter", "histogram")
    }
    return {
        key: value
        for key, value in series_of(text).items()
        if any(key[0].startswith(name) for name in counters) and "_process_" not in key[0]
    }


def test_metrics_need_the_token(decoding: Server) -> None:
    assert httpx.get(f"{decoding.url}/metrics").status_code == 401
    assert metrics_of(decoding)


def test_metrics_are_those_of_the_daemon(decoding: Server) -> None:
    def agree() -> bool:
        with decoding.client() as client:
            before = client.status().daemon
            found = series_of(metrics_of(decoding))
            after = client.status().daemon
        if before is None or after is None or not found["volition_up", ()]:
            return False  # it has not answered for two seconds
        if before.state != "decoding" or after.state != "decoding":
            return False
        assert before.ticks <= found["volition_ticks_total", ()] <= after.ticks
        taken = found["volition_spikes_admitted_total", ()]
        assert 0 < before.events["taken"] <= taken <= after.events["taken"]
        assert found["volition_state", (("state", "decoding"),)] == 1
        assert found["volition_units", (("match", "known"),)] == before.known_units > 0
        assert found["volition_newest_spike_age_seconds", ()] < 5
        frames = sum(value for (name, _), value in found.items() if name == "volition_frames_total")
        assert frames == found["volition_tick_latency_seconds_count", ()]
        decoded = found["volition_frames_total", (("state", "decoding"),)]
        for stage in ("before_decode", "decode"):
            assert found["volition_tick_stage_seconds_count", (("stage", stage),)] == decoded > 0
        info = {
            key: value
            for name, labels in found
            if name == "volition_decoder_info"
            for key, value in labels
        }
        assert info["decoder"] == before.decoder
        assert found["volition_daemon_process_resident_memory_bytes", ()] > 1e6
        assert found["volition_server_process_cpu_seconds_total", ()] > 0
        return True

    assert wait_for("metrics of a decoding daemon", agree)


@needs_prometheus
def test_both_formats_are_correct(decoding: Server) -> None:
    text = metrics_of(decoding)
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    openmetrics = metrics_of(decoding, "application/openmetrics-text; version=1.0.0")
    names = {family.name for family in text_string_to_metric_families(openmetrics)}
    assert {"volition_ticks", "volition_tick_latency_seconds", "volition_decoder"} <= names


def test_the_page_has_every_metric(decoding: Server) -> None:
    page = (ROOT / "docs" / "MONITORING.md").read_text()
    documented = set(re.findall(r"`(volition_\w+)[`{]", page))
    families = [one for one in plain_families(metrics_of(decoding)) if "_process_" not in one.name]
    suffix = {"counter": "_total"}
    assert documented == {one.name + suffix.get(one.type, "") for one in families}


@needs_prometheus
def test_prometheus_has_the_series_of_a_running_server(
    watched: Prometheus, decoding: Server
) -> None:
    for expression in ('up{job="volition"}', "volition_up", 'volition_state{state="decoding"}'):
        wait_for(expression, lambda expression=expression: watched.value(expression) == 1)
    # On a busy machine ticks are skipped; both together are the deadlines.
    deadlines = "rate(volition_ticks_total[5s]) + rate(volition_ticks_skipped_total[5s])"
    assert wait_for("100 ticks/s", lambda: 80 < (watched.value(deadlines) or 0) < 120)
    p99 = "histogram_quantile(0.99, rate(volition_tick_latency_seconds_bucket[1m]))"
    assert 0 < (watched.value(p99) or 0) <= 0.1, "the highest bound"
    assert (watched.value("rate(volition_spikes_admitted_total[1m])") or 0) > 0
    with decoding.client() as client:
        decoder = next(one.id for one in client.decoders() if one.active)
    of_decoder = f'volition_decoder_info{{decoder="{decoder}"}}'
    wait_for(of_decoder, lambda: watched.value(of_decoder) == 1)


@needs_prometheus
def test_the_dashboard_asks_only_for_metrics_that_exist(
    watched: Prometheus, decoding: Server
) -> None:
    known = names_of(decoding)
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [one["expr"] for panel in dashboard["panels"] for one in panel["targets"]]
    expressions += [one["expr"] for one in dashboard["annotations"]["list"]]
    assert len(expressions) > 30
    queries = []
    for expression in expressions:
        names = set(OURS.findall(re.sub(r"by \([^)]*\)", "", expression)))
        assert names, expression
        assert names <= known, f"{names - known} in {expression}"
        for variable, value in VARIABLES.items():
            expression = expression.replace(variable, value)
        queries.append(expression)

    def n_answered() -> int:
        return sum(bool(watched.ask("query", query=query)["result"]) for query in queries)

    wait_for("data for most panels", lambda: n_answered() > 25)
    for variable in dashboard["templating"]["list"]:
        assert set(OURS.findall(str(variable.get("definition", "")))) <= known


@needs_prometheus
def test_the_alerts_are_loaded_and_refer_to_metrics_that_exist(
    watched: Prometheus, decoding: Server
) -> None:
    known = names_of(decoding)
    (group,) = watched.ask("rules")["groups"]
    for rule in group["rules"]:
        assert set(OURS.findall(rule["query"])) <= known, rule

    def evaluated() -> bool:
        (group,) = watched.ask("rules")["groups"]
        return {rule["health"] for rule in group["rules"]} == {"ok"}

    wait_for("all alerts evaluated", evaluated)


def test_metrics_are_no_listener_for_whom_a_rig_is_armed(decoding: Server) -> None:
    with decoding.client() as client:
        client.pause("before arming")
        try:
            with pytest.raises(ProblemError, match="nobody listens"):
                client.arm()
            with CursorSubscriber(decoding.address):
                wait_for("an armed rig", lambda: _armed(client))
        finally:
            client.resume()
    paused = ("volition_frames_total", (("state", "paused"),))
    assert series_of(metrics_of(decoding))[paused] > 0


def _armed(client: Any) -> bool:
    try:
        client.arm()
    except ProblemError:
        return False
    return True


def test_a_cancelled_calibration_is_counted_once(decoding: Server) -> None:
    cancelled = ("volition_calibrations_total", (("outcome", "cancelled"),))
    before = series_of(metrics_of(decoding))[cancelled]
    with decoding.client() as client:
        begun = client.start_calibration(CalibrationRequest(seconds=60.0))
        assert series_of(metrics_of(decoding))["volition_calibration_running", ()] == 1
        client.cancel_calibration(begun.id)
    found = [series_of(metrics_of(decoding)) for _ in range(2)]
    assert [one[cancelled] - before for one in found] == [1, 1]
    assert found[0]["volition_calibration_running", ()] == 0


def test_counters_never_fall_when_the_daemon_is_killed(decoding: Server) -> None:
    before = counters_of(metrics_of(decoding))
    with decoding.client() as client:
        killed = wait_for("an answer", lambda: client.status().daemon)
        os.kill(killed.pid, signal.SIGKILL)
        last = before

        def decodes_again() -> bool:
            nonlocal last
            found = counters_of(metrics_of(decoding))
            assert {key for key in last if found[key] < last[key]} == set()
            last = found
            daemon = client.status().daemon
            return daemon is not None and daemon.pid != killed.pid and daemon.state == "decoding"

        wait_for("the next daemon", decodes_again)
        assert client.status().daemon.started != killed.started
    found = counters_of(metrics_of(decoding))
    restarts = ("volition_daemon_restarts_total", ())
    assert found[restarts] == before[restarts] + 1
    for name in ("volition_ticks_total", "volition_spikes_drained_total"):
        assert found[name, ()] > before[name, ()], "they go on counting"


def test_without_a_daemon_the_metrics_say_that_it_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, *others = (free_port() for _ in range(3))
    for name, other in zip(("ADDRESS", "CONTROL"), others, strict=True):
        monkeypatch.setenv(f"VOLITION_{name}", f"tcp://127.0.0.1:{other}")
    server = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False)
    with (
        running(tmp_path / "log", "serve", "--home", str(tmp_path / "home"), "--port", str(port)),
        server,
    ):
        wait_for("a server", lambda: _answers(server))
        answer = server.get("/metrics")
        health = server.get("/v2/health/ready")
    assert answer.status_code == 200
    found = series_of(answer.text)
    assert found["volition_up", ()] == 0
    assert found["volition_ticks_total", ()] == 0
    assert not any(value for (name, _), value in found.items() if name == "volition_state")
    assert not any("daemon_process" in name or "decoder_info" in name for name, _ in found)
    assert (health.status_code, list(health.json())) == (503, ["error"])


def _answers(server: httpx.Client) -> bool:
    try:
        return server.get("/v2/health/live").json() == {"live": True}
    except httpx.TransportError:
        return False


def test_a_total_goes_on_over_runs_and_decoders() -> None:
    total = Total()
    for count, run, of in (
        (5, 1.0, "a"), (9, 1.0, "a"), (2, 1.0, "b"), (9, 1.0, "a"),  # rolled back to a
        (3, 2.0, "a"), (10, 1.0, "a"),  # late news of the first run
    ):  # fmt: skip
        total.see(count, run=run, of=of)
    assert total.value == 9 + 2 + 3 + 1


def test_a_histogram_counts_up_to_each_bound() -> None:
    histogram = Histogram((0.001, 0.01))
    histogram.add([0.0005, 0.001, 0.002])
    histogram.add([])
    histogram.add([5.0])
    assert histogram.buckets == [("0.001", 2.0), ("0.01", 3.0), ("+Inf", 4.0)]
    assert histogram.sum_s == pytest.approx(5.0035)


def test_every_frame_is_counted_and_missing_ones_too() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    publisher, reader = Publisher(address), TickReader(address)
    reader.open()

    def read(state: State, seq: int, *, started: float = 1.0) -> bool:
        publisher.send(
            wire.cursor_frame(
                state, started=started, seq=seq, session="s", decoder="d", window_end=100.0,
                published=100.002, decode_ms=1.5, n_drained=10 * seq,
            )
        )  # fmt: skip
        publisher.see_subscribers()
        reader.drain()
        return samples()["volition_tick_latency_seconds_count"] > 0

    def samples() -> dict[str, float]:
        return {
            sample.name + "".join(sample.labels.values()): sample.value
            for family in reader.families()
            for sample in family.samples
        }

    try:
        wait_for("a connection", lambda: read(State.PAUSED, 0))
        assert not publisher.has_listener, "only a rig counts as one"
        for state, seq, started in (
            (State.DECODING, 1, 1.0), (State.DECODING, 4, 1.0), (State.STALE, 5, 1.0),
            (State.READY, 7, 2.0),
        ):  # fmt: skip
            read(state, seq, started=started)
        wait_for("all frames", lambda: reader.drain() or samples()["volition_frames_totalready"])
        found = samples()
    finally:
        reader.close()
        publisher.close()
    assert found["volition_frames_totaldecoding"] == 2
    assert found["volition_tick_stage_seconds_sumdecode"] == pytest.approx(2 * 1.5e-3)
    assert found["volition_tick_stage_seconds_sumbefore_decode"] == pytest.approx(2 * 0.5e-3)
    assert found["volition_tick_latency_seconds_sum"] == pytest.approx(
        (found["volition_frames_totalpaused"] + 4) * 2e-3
    )
    assert found["volition_frames_missed_total"] == 2
    assert found["volition_spikes_drained_total"] == 50 + 70


def test_a_frame_begins_as_the_subscription_to_it() -> None:
    frame = wire.cursor_frame(
        State.READY, started=1.0, seq=0, session="s", decoder="d", window_end=1.0, published=1.0
    )
    message = wire.TOPICS["cursor"].prefix + wire.encode_frame(frame)
    assert message.startswith(wire.OBSERVED_CURSOR)
    assert len(wire.OBSERVED_CURSOR) > len(wire.TOPICS["cursor"].prefix)


def test_calibrations_of_an_earlier_server_are_not_counted_again() -> None:
    def calibration(name: str, state: Any, **more: Any) -> Calibration:
        request = CalibrationRequest()
        return Calibration(id=name, state=state, request=request, created=now(), **more)

    old = calibration("old", "promoted", took_s=3.0)
    counts = CalibrationCounts([old])
    phases = {f"phase {n}": 1.0 for n in range(MOST_PHASES + 5)}
    new = calibration("new", "training")
    counts.see([old, new])
    new = calibration("new", "interrupted")
    counts.see([old, new])
    counts.see([old, calibration("new", "collecting")])  # resumed
    for _ in range(2):
        counts.see([calibration("new", "rejected", took_s=8.0, phases_s=phases)])
    found = {
        sample.name + "".join(sample.labels.values()): sample.value
        for family in counts.families()
        for sample in family.samples
    }
    assert found["volition_calibrations_totalpromoted"] == 0
    assert found["volition_calibrations_totalinterrupted"] == 1
    assert found["volition_calibrations_totalrejected"] == 1
    assert found["volition_calibration_duration_seconds_sum"] == 8.0
    assert found["volition_calibration_phase_seconds_sumphase 0"] == 1.0
    assert found["volition_calibration_phase_seconds_sumother"] == 5.0
    assert sum("phase_seconds_sum" in name for name in found) == MOST_PHASES + 1


def test_gauges_have_what_the_status_says(decoding: Server) -> None:
    with decoding.client() as client:
        values = client.status().daemon.model_dump()
    status = msgspec.convert(values | {"schema": wire.SCHEMA_VERSION}, wire.Status)
    status = msgspec.structs.replace(
        status,
        excluded_units=3,
        distance=1.5,
        distance_limit=0.5,
        paused="",
        filters=Filters(speed_limit=0.4),
        unit_faults=Faults(
            silent=["1", "2"], noisy=[], doubled=[("3", "4")], artifact=[], artifacts_per_min=30.0
        ),
    )
    found = {
        sample.name + "".join(sample.labels.values()): sample.value
        for family in gauges.of_daemon(status)
        for sample in family.samples
    }
    assert found["volition_distance_nats"] == 1.5
    assert found["volition_distance_limit_nats"] == 0.5
    assert found["volition_paused"] == 1
    assert found["volition_filter_speed_limit_meters_per_second"] == 0.4
    assert "volition_filter_acceleration_limit_meters_per_second_squared" not in found
    assert found["volition_unitsexcluded"] == 3
    assert found["volition_faulty_unitssilent"] == 2
    assert found["volition_faulty_unitsdoubled"] == 1
    assert found["volition_artifacts_hertz"] == 0.5
