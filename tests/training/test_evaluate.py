"""Offline evaluation through the runtime, and its report in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from decoder.errors import TrainingError
from training.evaluation.evaluate import evaluate
from training.evaluation.offline import decode_split
from training.evaluation.reference import expected_output
from training.evaluation.report import render, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def evaluation(tiny):
    return evaluate(tiny.bundle, tiny.session, baselines=False, unit_counts=True)


def test_every_tick_equals_the_reference(tiny) -> None:
    decoded = decode_split(tiny.bundle, tiny.session, "test")
    assert np.median(np.diff(decoded.times)) == pytest.approx(0.01)
    scale = np.array([output.scale for output in tiny.bundle.manifest.outputs])
    mean = np.array([output.offset for output in tiny.bundle.manifest.outputs])
    began = float(tiny.session.test_domain[0, 0])
    for tick in np.linspace(0, len(decoded.times) - 1, 12).astype(int):
        end = float(decoded.times[tick])
        expected = expected_output(
            tiny.model, tiny.config, tiny.session.spike_times, tiny.session.spike_units,
            began=began, at=end, n_units=tiny.session.n_units,
        )  # fmt: skip
        assert np.abs((decoded.velocity[tick] - mean) / scale - expected).max() <= 1e-5


def test_no_window_crosses_the_edge_of_an_interval(tiny) -> None:
    start, end = tiny.session.test_domain[0]
    cut = np.array([[start, start + 3.0], [start + 3.5, end]])
    decoded = decode_split(tiny.bundle, replace(tiny.session, test_domain=cut), "test")
    first_whole = np.where(decoded.times < start + 3.2, start, start + 3.5) + 1.0
    assert (decoded.times >= first_whole - 1e-9).all()
    assert decoded.times.max() <= end


def test_results_are_available_as_numbers(evaluation) -> None:
    result = json.loads(json.dumps(evaluation.as_dict()))
    (ours,) = result["decoders"]
    assert ours["r2_mean"] == pytest.approx((ours["r2_x"] + ours["r2_y"]) / 2)
    assert result["normalized_latency"] == pytest.approx(evaluation.tick_ms.mean() / 10.0)
    assert result["tick_ms"]["p50"] <= result["tick_ms"]["p99.9"]
    counts = [int(n) for n in result["r2_by_unit_count"]]
    assert counts[-1] == 40


def test_a_bundle_with_other_units_is_refused(tiny) -> None:
    others = tuple(f"x{i}" for i in range(tiny.session.n_units))
    with pytest.raises(TrainingError, match="this bundle decodes"):
        evaluate(tiny.bundle, replace(tiny.session, unit_ids=others))


def test_the_report_is_self_contained(evaluation) -> None:
    page = render(evaluation)
    links = set(re.findall(r"(?:src|href)=\"([^\"#][^\"]*)\"", page))
    assert not {link for link in links if not link.startswith("#")}
    assert page.count("<svg") >= 3


@pytest.mark.slow
@pytest.mark.parametrize("tiny", ["possm"], indirect=True)  # the baselines take the time
def test_the_command_prints_baselines_next_to_the_bundle(tiny, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "clients", "evaluate", str(tiny.bundle.path),
         str(tiny.session_path), "--baselines", "--json", "--report", str(report)],
        capture_output=True, text=True, check=True, timeout=560,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # threads of small models wait for each other
    )  # fmt: skip
    names = [row["name"] for row in json.loads(done.stdout)["decoders"]]
    family = tiny.bundle.manifest.family
    assert [name.split()[0].rstrip(",") for name in names] == [family, "ridge", "velocity", "GRU"]
    assert "ridge" in report.read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; .ci/run installs it")
def test_the_report_opens_in_a_browser(evaluation, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(evaluation, path)
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
         f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()],
        capture_output=True, text=True, timeout=560,
    )  # fmt: skip
    assert f"Decoding of {evaluation.session}" in done.stdout
    assert done.stdout.count("<svg") >= 3
