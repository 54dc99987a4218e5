"""Bundles, sessions, recordings and frames that version 0.1 wrote are still read.

The files in v0.1 were written by commit 57a2182: a simulated session of 8 units, a decoder of each
family with random weights, what that commit's runtime decoded with them, a recording of the session
whose recorder was killed, and the last messages of its daemon.
"""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest

from clients.rest import read_answer
from decoder.bundles.bundle import open_bundle
from decoder.runtimes.opening import open_runtime
from server.schemas import Calibration, CalibrationRequest, ServerStatus
from streaming.recording.raw import read_recording
from streaming.sessions.format import load
from streaming.wire import messages as wire
from training.calibration.candidate import Plan, prepare, train_candidate
from training.data.simulate import simulate

OLD = Path(__file__).parent / "v0.1"


def payload(topic: str) -> bytes:
    """A kept message without the prefix that names its topic."""
    return (OLD / f"{topic}.frame").read_bytes().removeprefix(wire.TOPICS[topic].prefix)


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return json.loads((OLD / "expected.json").read_text())


@pytest.mark.parametrize("family", ["poyo", "possm"])
def test_an_old_bundle_decodes_the_same_velocities(family: str, expected: dict[str, Any]) -> None:
    bundle = open_bundle(OLD / f"{family}.bundle")
    assert bundle.manifest.decoder_id == expected[family]["decoder"]
    session = load(OLD / "old.h5")
    runtime = open_runtime(bundle, epoch=0.0)
    runtime.append(session.spike_times, session.spike_units)
    decoded = [runtime.decode(time) for time in expected[family]["times"]]
    np.testing.assert_allclose(decoded, expected[family]["velocity"], atol=1e-6)


@pytest.mark.parametrize("family", ["poyo", "possm"])
def test_an_old_bundle_can_be_calibrated(family: str, tmp_path: Path) -> None:
    ready = prepare(OLD / f"{family}.bundle", "units")
    assert (
        ready.bundle.manifest.decoder_id
        == open_bundle(OLD / f"{family}.bundle").manifest.decoder_id
    )
    session = simulate(n_units=8, minutes=0.7, subject=0, seed=0)
    plan = Plan(method="units", allowed_s=None, steps=2)
    candidate = train_candidate(session, None, tmp_path / "new.bundle", plan, ready)
    assert candidate.made.manifest.provenance["base"] == ready.bundle.manifest.decoder_id
    checksums = [
        bundle.manifest.checksums["graph.onnx"] for bundle in (candidate.made, ready.bundle)
    ]
    assert checksums[0] == checksums[1], "the graph is shared"


def test_an_old_session_loads(expected: dict[str, Any]) -> None:
    session, old = load(OLD / "old.h5"), expected["session"]
    assert session.session_id == "old"
    assert (session.n_units, len(session.spike_times)) == (old["units"], old["spikes"])
    assert session.spike_times[0] == old["first_spike"]
    assert len(session.cursor_times) == old["samples"]


def test_an_old_recording_becomes_a_session(tmp_path: Path) -> None:
    recording = shutil.copytree(OLD / "cut.recording", tmp_path / "cut.recording")
    recorded, played = read_recording(recording), load(OLD / "old.h5")
    assert recorded.unit_ids == played.unit_ids
    n = len(recorded.cursor_vel)
    assert n > 300
    found = np.abs(played.cursor_vel[: len(played.cursor_vel) - n + 1] - recorded.cursor_vel[0])
    first = int(found.sum(axis=1).argmin())
    np.testing.assert_allclose(recorded.cursor_vel, played.cursor_vel[first : first + n], atol=1e-9)


def test_old_frames_and_statuses_are_read() -> None:
    frame = wire.decode_frame(payload("cursor"))
    assert frame.valid
    assert frame.decoder == "old-910f58d9"
    assert frame.n_spikes > 0
    assert wire.decode_frame_json(payload("cursor.json")).session == "old"
    status = wire.decode_status(payload("status"))
    assert status.ticks > 0
    assert status.skipped_ticks == 0, "an older daemon has late_ticks only"


def test_answers_of_older_and_newer_servers_are_read() -> None:
    """An older server lacks the fields added since; a newer one adds fields."""
    daemon = msgspec.to_builtins(wire.decode_status(payload("status")))
    del daemon["schema"], daemon["skipped_ticks"]
    older = {"answered": True, "restarting": False, "restarts": 0, "calibration": None}
    status = read_answer(httpx.Response(200, json=older | {"daemon": daemon}), ServerStatus)
    assert (status.daemon.late_ticks, status.daemon.skipped_ticks) == (daemon["late_ticks"], 0)
    calibration = Calibration(
        id="cal-1", state="training", request=CalibrationRequest(), created=datetime.now(UTC)
    ).model_dump(mode="json")
    newer = calibration | {"sites": 3, "request": calibration["request"] | {"sites": [1]}}
    assert read_answer(httpx.Response(200, json=newer), Calibration).id == "cal-1"
