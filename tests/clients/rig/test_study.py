"""Rows of a study: who steers first, what is kept and shown. The loops have tests of their own."""

from __future__ import annotations

import json
from pathlib import Path

from clients.rig.closed_loop import LoopSettings
from clients.rig.score import BlockScore
from clients.rig.study import Row, plot_delays, study, summary, turns
from tests.clients.rig.test_score import trial


def row(seed: int, successes: int, **about: float) -> Row:
    """A block of ten trials of the grid, two seconds each."""
    trials = [
        trial(
            [(0.0, 0.0), (0.05, 0.0)], task="grid", n_targets=36, end=102.0, success=i < successes
        )
        for i in range(10)
    ]
    return {"seed": seed, **about, "task": "grid", "score": BlockScore.of(trials)}


def test_every_condition_has_its_turn_at_being_first() -> None:
    orders = [turns(["a", "b", "c"], seed) for seed in (1, 2, 3)]
    assert sorted(order[0] for order in orders) == ["a", "b", "c"]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)


def test_a_study_keeps_one_row_per_block_and_shows_mean_and_spread(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    loops = [LoopSettings(folder=Path(), seed=seed) for seed in (1, 2)]

    def run(settings: LoopSettings):
        assert settings.folder.is_dir()
        yield row(settings.seed, 4 + 2 * settings.seed, gain=0.5)

    rows = study(run, loops, path, jobs=2)
    kept = json.loads(path.read_text())
    assert sorted(one["seed"] for one in kept) == [1, 2]
    assert {one["score"]["success_rate"] for one in kept} == {0.6, 0.8}
    (line,) = zip(*(column.cells for column in summary(rows).columns), strict=True)
    assert line[:3] == ("gain 0.5, task grid", "2", "0.70 (0.14)")
    assert line[-1] == "1.80 (0.36)"  # log2(35) bits for 6 and 8 of 10 squares in 20 s


def test_the_plot_of_delays_has_both_panels(tmp_path: Path) -> None:
    rows = [
        row(seed, 10 - k, tick_ms=tick_ms, latency_ms=latency_ms)
        for seed in (1, 2)
        for k, (tick_ms, latency_ms) in enumerate([(5.0, 0.0), (10.0, 0.0), (10.0, 100.0)])
    ]
    plot_delays(rows, tmp_path / "delays.svg")
    drawn = (tmp_path / "delays.svg").read_text()
    assert "<svg" in drawn
    plot_delays(rows, tmp_path / "again.svg")
    assert len((tmp_path / "again.svg").read_text()) == len(drawn)
