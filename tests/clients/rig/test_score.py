"""Metrics of known paths, exactly; the log, the table and the page."""

from __future__ import annotations

import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest

from clients.rig import score
from clients.rig.score_report import render, save_paths
from clients.task.trial import Trial, encode, read_trials
from decoder.errors import SessionError
from tests.clients.test_cli import volition

TICK_S = 0.01


def trial(path: list[tuple[float, float]], **fields: object) -> Trial:
    """A success along a path, a tick a step, that began to hold at its last position."""
    times = [100.0 + TICK_S * i for i in range(len(path))]
    given = {
        "number": 0, "block": "closed", "task": "center-out", "mode": "closed", "role": "target",
        "target": (0.08, 0.0), "radius": 0.01, "n_targets": 8, "hold_s": 0.3, "limit_s": 4.0,
        "start": 100.0, "on": 100.0, "entered": times[-1], "held": times[-1],
        "end": times[-1] + 0.3, "success": True, "why": "", "decoder": "d", "assist": 0.0,
        "still_s": 0.0, "times": times, "path": path,
    }  # fmt: skip
    return Trial(**{**given, **fields})


def line(*corners: tuple[float, float], steps: int = 100) -> list[tuple[float, float]]:
    """Straight from corner to corner, in equal steps."""
    at = np.linspace(0, len(corners) - 1, steps * (len(corners) - 1) + 1)
    xs, ys = (np.interp(at, range(len(corners)), axis) for axis in zip(*corners, strict=True))
    return [(float(x), float(y)) for x, y in zip(xs, ys, strict=True)]


STRAIGHT = trial(line((0, 0), (0.08, 0)))
CORNER = trial(line((0, 0), (0, 0.06), (0.08, 0.06)), target=(0.08, 0.06))
FAILED = {"success": False, "held": None, "why": "timeout", "entered": None}


def test_a_straight_line_is_efficient_and_never_turns() -> None:
    assert score.path_efficiency(STRAIGHT) == pytest.approx(1.0)
    assert score.direction_changes(STRAIGHT) == 0
    assert score.angular_error_deg(STRAIGHT) == pytest.approx(0.0, abs=1e-4)
    assert score.acquisition_s(STRAIGHT) == pytest.approx(1.0)
    assert score.dial_in_s(STRAIGHT) == 0.0


def test_two_sides_of_a_rectangle_are_as_efficient_as_its_diagonal_over_them() -> None:
    assert score.path_efficiency(CORNER) == pytest.approx(0.10 / 0.14)


def test_a_square_wave_turns_at_every_corner_but_the_first() -> None:
    waves = [(0.01 * i, 0.004 * (i % 2)) for i in range(9)]  # up, down, up, …: 8 strokes
    assert score.direction_changes(trial(line(*waves, steps=10))) == 7


def test_jitter_below_half_a_millimetre_is_not_a_turn() -> None:
    jitter = [(0.01 * i, 0.0002 * (-1) ** i) for i in range(9)]
    assert score.direction_changes(trial(line(*jitter, steps=10))) == 0


def test_moving_across_the_way_is_90_degrees_off_and_away_from_it_180() -> None:
    away = trial(line((0, 0), (-0.05, 0)), **FAILED)
    assert score.angular_error_deg(away) == pytest.approx(180.0, abs=1e-4)
    circle = [(0.08 - 0.08 * math.cos(a), 0.08 * math.sin(a)) for a in np.linspace(0, 3, 3000)]
    assert score.angular_error_deg(trial(circle, **FAILED)) == pytest.approx(90.0, abs=0.1)


def test_standing_still_has_no_direction() -> None:
    still = trial([(0.0, 0.0)] * 50, **FAILED)
    assert score.angular_error_deg(still) is None
    assert score.path_efficiency(still) is None


def test_dial_in_is_from_the_first_touch_to_the_start_of_the_last_hold() -> None:
    one = trial(line((0, 0), (0.08, 0)), entered=100.4)
    assert score.dial_in_s(one) == pytest.approx(0.6)


def test_throughput_is_shannons_index_over_acquisition_time() -> None:
    assert score.throughput_bits_s(STRAIGHT) == pytest.approx(math.log2(0.08 / 0.02 + 1) / 1.0)
    assert score.throughput_bits_s(trial(line((0, 0), (0.05, 0)), **FAILED)) is None


def grid(why: str, seconds: float = 2.0) -> Trial:
    outcome = {"success": not why, "why": why, "held": None if why else 101.0}
    return trial(line((0, 0), (0.08, 0)), task="grid", n_targets=36, end=100.0 + seconds, **outcome)


def test_the_bit_rate_subtracts_wrong_selections_and_counts_all_the_time() -> None:
    trials = [grid("")] * 5 + [grid("wrong"), grid("timeout", 4.0)]
    assert score.bit_rate_bits_s(trials) == pytest.approx(math.log2(35) * 4 / 16.0)
    assert score.bit_rate_bits_s([grid("wrong"), grid("wrong"), grid("")]) == 0.0
    assert score.bit_rate_bits_s([STRAIGHT]) is None


def test_void_trials_and_returns_are_not_counted() -> None:
    trials = [
        STRAIGHT, STRAIGHT, trial(line((0, 0), (0.05, 0)), **FAILED),
        trial(line((0.08, 0), (0, 0)), role="return", target=(0.0, 0.0)),
        trial(line((0, 0), (0.05, 0)), **{**FAILED, "why": "paused"}),
        trial(line((0, 0), (0.05, 0)), **{**FAILED, "why": "stopped"}),
        msgspec.structs.replace(CORNER, block="later", decoder="e"),
    ]  # fmt: skip
    first, later = score.score_trials(trials)
    assert (first.block, first.trials, first.successes) == ("closed", 3, 2)
    assert first.why == {"timeout": 1}
    assert first.metrics["acquisition_s"].n == 2
    assert first.metrics["angular_error_deg"].n == 3
    assert (later.block, later.decoders) == ("later", ("e",))


def test_spread_ignores_missing_values() -> None:
    spread = score.Spread.of([1.0, None, 3.0])
    assert (spread.mean, spread.median, spread.n) == (2.0, 2.0, 2)
    assert spread.sd == pytest.approx(math.sqrt(2))
    assert score.Spread.of([None]) is None
    assert score.Spread.of([4.0]).sd is None


def test_runs_are_summed_up_by_their_means() -> None:
    one = score.score_trials([STRAIGHT, trial(line((0, 0), (0.05, 0)), **FAILED)])
    other = score.score_trials([CORNER])
    spreads = score.across([*one, *other])
    assert spreads["success_rate"].mean == pytest.approx(0.75)
    assert spreads["path_efficiency"].mean == pytest.approx((1 + 0.10 / 0.14) / 2)
    assert spreads["bit_rate_bits_s"] is None


def test_the_interval_of_a_share_is_wilsons() -> None:
    assert score.wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert score.wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def written(folder: Path, *trials: Trial) -> Path:
    path = folder / "trials.jsonl"
    path.write_bytes(b"".join(encode(one) + b"\n" for one in trials))
    return path


def test_a_log_comes_back_whole_and_a_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, STRAIGHT, CORNER)
    with path.open("ab") as file:
        file.write(encode(STRAIGHT)[:100])
    assert read_trials(path) == [STRAIGHT, CORNER]


def test_a_file_that_is_not_a_log_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a log\n")
    with pytest.raises(SessionError, match="line 1: not a trial"):
        read_trials(path)
    with pytest.raises(SessionError, match="can't be read"):
        read_trials(tmp_path / "missing.jsonl")


def test_the_command_prints_json_and_writes_a_page(tmp_path: Path) -> None:
    path = written(tmp_path, STRAIGHT, trial(line((0, 0), (0.05, 0)), **FAILED), grid(""))
    page = tmp_path / "page.html"
    done = volition("score", str(path), "--json", "--report", str(page))
    assert done.returncode == 0, done.stderr
    centre_out, squares = json.loads(done.stdout)
    assert centre_out["success_rate"] == 0.5
    assert squares["bit_rate_bits_s"] == pytest.approx(math.log2(35) / 2.0)
    assert page.read_text().startswith("<!doctype html>")
    assert "50% of 2" in volition("score", str(path)).stdout


def test_the_page_needs_nothing_else_and_defines_every_metric() -> None:
    page = render([STRAIGHT, msgspec.structs.replace(CORNER, block="<later>"), grid("wrong")])
    assert page.count("<svg") == 4
    assert "&lt;later&gt;" in page
    assert "<later>" not in page
    assert "MacKenzie" in page
    assert "Nuyujukian" in page
    assert "src=" not in page
    assert 'href="http' not in page


def test_the_picture_has_one_panel_per_closed_loop_block(tmp_path: Path) -> None:
    watched = msgspec.structs.replace(STRAIGHT, block="watched", mode="observation")
    picture = tmp_path / "paths.svg"
    save_paths([watched, STRAIGHT, msgspec.structs.replace(CORNER, block="later")], picture)
    assert picture.read_text().count('id="axes_') == 2
    assert list(tmp_path.iterdir()) == [picture]
