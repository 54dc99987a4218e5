"""The benchmarks run and report their measurements. `make bench` measures the speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def volition(*arguments: str) -> dict | list:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "clients", *arguments, "--json"],
        capture_output=True, text=True, timeout=560,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    subprocess.run(
        [sys.executable, "-m", "clients", "simulate", "--sessions", "3", "--subjects", "2",
         "--total-units", "31", "--minutes", "1", "--seed", "40", "-o", str(folder)],
        check=True, capture_output=True, timeout=560,
    )  # fmt: skip
    return folder


def test_a_corpus_has_its_sessions_subjects_and_units(corpus: Path) -> None:
    paths = sorted(corpus.rglob("*.h5"))
    assert [path.parent.name for path in paths] == ["sim00", "sim00", "sim01"]
    infos = [volition("info", str(path)) for path in paths]
    assert sum(info["units"] for info in infos) == 31


def test_bench_train_compares_with_torch_brain() -> None:
    (case,) = volition(
        "bench", "train", "--batch-size", "2", "--spikes", "200", "--steps", "2"
    )  # fmt: skip
    assert case["preset"] == "rt"
    assert 100 < case["spikes_a_window"] < 400
    assert case["speedup"] == pytest.approx(
        case["windows_per_s"]["ours"] / case["windows_per_s"]["torch_brain"]
    )


@pytest.mark.slow
def test_bench_corpus_reports_the_cost_of_opening_and_training(corpus: Path) -> None:
    result = volition("bench", "corpus", str(corpus), "--batch-size", "4", "--steps", "2")
    assert (result["sessions"], result["units"]) == (3, 31)
    assert set(result["windows_per_s"]) == {"corpus", "one session"}
    assert result["open_s"] > 0


@pytest.mark.slow
def test_bench_of_ticks_is_the_default() -> None:
    cases = volition("bench", "--preset", "rt", "--runs", "10")
    assert [case["spikes_per_s"] for case in cases] == [500, 2000, 20000]
    assert max(case["largest_difference"] for case in cases) <= 1e-5
