"""A task's rules, stepped by time: no clock, no socket."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from clients.task.cursor import Cursor
from clients.task.play import BlockPlay
from clients.task.trial import Judge, Trial
from clients.task.workspace import Block, Target, Targets
from decoder.errors import SettingsError

TICK_S = 0.01
ROUND = Target(position=(0.08, 0.0), half_m=0.01)


def played(block: Block, *, seconds: float = 600.0, speed: float = 0.4) -> BlockPlay:
    """A block whose closed-loop cursor goes straight to every target at `speed` (m/s)."""
    play = BlockPlay(block, Cursor())
    play.begin(0.0)
    for tick in range(1, round(seconds / TICK_S)):
        now = tick * TICK_S
        if play.target is not None and block.mode != "observation":
            (x, y), goal = play.cursor.position, play.target.position
            away = goal[0] - x, goal[1] - y
            distance = math.hypot(*away)
            if distance > 0:
                step = min(speed, distance / TICK_S) / distance
                play.steer((away[0] * step, away[1] * step), TICK_S, now)
        play.move(now)
        play.judge(now)
        if play.done:
            return play
    raise AssertionError("the block did not end")


def counted(play: BlockPlay) -> list[Trial]:
    return [trial for trial in play.trials if trial.counts]


def test_a_target_is_selected_by_staying_on_it_for_the_hold() -> None:
    judge = Judge(Block(hold_s=0.3), ROUND, 10.0, (0.0, 0.0))
    assert judge.see(10.5, (0.075, 0.0)) is None
    assert judge.see(10.7, (0.089, 0.0)) is None
    assert judge.see(10.8, (0.08, 0.0)) == "success"
    assert (judge.entered, judge.since) == (10.5, 10.5)


def test_leaving_the_target_restarts_the_hold() -> None:
    judge = Judge(Block(hold_s=0.3), ROUND, 10.0, (0.0, 0.0))
    assert judge.see(10.5, (0.08, 0.0)) is None
    assert judge.see(10.7, (0.095, 0.0)) is None
    assert judge.see(10.8, (0.08, 0.0)) is None
    assert judge.see(11.0, (0.08, 0.0)) is None
    assert judge.see(11.1, (0.08, 0.0)) == "success"
    assert (judge.entered, judge.since) == (10.5, 10.8)


def test_a_trial_ends_at_its_limit_unless_the_hold_ends_then_too() -> None:
    block = Block(hold_s=0.3, limit_s=4.0)
    late = Judge(block, ROUND, 0.0, (0.0, 0.0))
    assert late.see(3.75, (0.08, 0.0)) is None
    assert late.see(4.0, (0.08, 0.0)) == "timeout"
    just = Judge(block, ROUND, 0.0, (0.0, 0.0))
    assert just.see(3.7, (0.08, 0.0)) is None
    assert just.see(4.0, (0.08, 0.0)) == "success"


def test_staying_on_another_square_of_the_grid_selects_it() -> None:
    block = Block(task="grid", grid=4, dwell_s=0.3)  # squares of 6 cm
    target = Target(position=block.centre_of(15), half_m=block.square_m / 2, cell=15)
    judge = Judge(block, target, 0.0, block.centre_of(0))
    assert judge.see(1.0, block.centre_of(0)) is None  # where the trial found it: not yet left
    assert judge.see(1.1, block.centre_of(1)) is None
    assert judge.see(1.2, block.centre_of(0)) is None
    assert judge.see(1.5, block.centre_of(0)) == "wrong"


def test_squares_and_their_centres_agree() -> None:
    block = Block(task="grid", grid=6)
    assert [block.cell_of(block.centre_of(cell)) for cell in range(36)] == list(range(36))
    assert block.cell_of((-9.0, -9.0)) == 0
    assert block.cell_of((0.12, 0.12)) == 35
    assert block.n_targets == 36


def test_the_same_seed_gives_the_same_targets_and_every_direction_comes_once_a_round() -> None:
    block = Block(seed=7)
    first, again = ([t.draw((0.0, 0.0)).position for _ in range(16)] for t in two(block))
    assert first == again
    assert len({(round(x, 6), round(y, 6)) for x, y in first[:8]}) == 8
    assert all(math.hypot(*position) == pytest.approx(0.08) for position in first)
    assert first != [Targets(replace(block, seed=8)).draw((0.0, 0.0)).position for _ in range(16)]


def two(block: Block) -> tuple[Targets, Targets]:
    return Targets(block), Targets(block)


def test_a_grid_never_asks_for_the_square_that_the_cursor_is_in() -> None:
    block = Block(task="grid", grid=2)
    targets = Targets(block)
    here = block.centre_of(2)
    assert {targets.draw(here).cell for _ in range(60)} == {0, 1, 3}


def test_random_targets_lie_inside_and_away_from_the_cursor() -> None:
    targets = Targets(Block(task="random"))
    for _ in range(200):
        x, y = targets.draw((0.05, 0.05)).position
        assert max(abs(x), abs(y)) <= 0.08
        assert math.dist((x, y), (0.05, 0.05)) >= 0.03


def test_centre_out_returns_to_the_centre_between_targets() -> None:
    play = played(Block(trials=3))
    assert [trial.role for trial in play.trials] == ["target", "return"] * 2 + ["target"]
    assert [trial.number for trial in play.trials] == [0, 1, 2, 3, 4]
    assert all(trial.success for trial in play.trials)
    assert len(counted(play)) == 3
    for trial in play.trials:  # 7 cm at 0.4 m/s, then the hold
        assert trial.end - trial.on == pytest.approx(0.07 / 0.4 + 0.3, abs=2 * TICK_S)
        assert trial.times == pytest.approx(
            [trial.on + i * TICK_S for i in range(len(trial.times))]
        )


def test_a_failed_return_puts_the_cursor_at_the_centre() -> None:
    block = Block(trials=2, limit_s=1.0)
    play = BlockPlay(block, Cursor())
    play.begin(0.0)
    for tick in range(1, 301):
        play.steer((0.1, 0.05), TICK_S, tick * TICK_S)
        play.judge(tick * TICK_S)
        if tick == 150:
            assert play.trials[0].why == "timeout"
            assert play.cursor.position != (0.0, 0.0)
        if tick == 200:
            assert play.cursor.position == (0.0, 0.0)
    assert [trial.why for trial in play.trials] == ["timeout"] * 3
    assert play.done


def test_markers_tell_a_trial_as_recordings_read_it() -> None:
    play = played(Block(task="random", trials=2, name="first"))
    texts = [text for _, text in play.markers]
    x, y = play.trials[0].target
    assert texts[:5] == [
        "block first", "trial_start 0", f"target 0 {x:.6f} {y:.6f}", "success 0", "trial_end 0",
    ]  # fmt: skip
    assert texts[5] == "trial_start 1"
    assert [at for at, _ in play.markers[1:5:3]] == [play.trials[0].start, play.trials[0].end]


def test_an_observed_cursor_reaches_every_target_by_itself_and_no_frame_moves_it() -> None:
    play = played(Block(mode="observation", trials=8, seed=3))
    assert all(trial.success for trial in play.trials)
    play = BlockPlay(Block(mode="observation"), Cursor())
    play.begin(0.0)
    play.steer((1.0, 1.0), 0.1, 0.1)
    play.move(0.1)
    assert play.cursor.position == (0.0, 0.0)


def test_help_decays_over_an_assisted_block() -> None:
    play = played(Block(task="random", mode="assisted", trials=4, assist=0.8), speed=0.2)
    assert [trial.assist for trial in play.trials] == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert played(Block(trials=1)).trials[0].assist == 0.0


def test_assistance_replaces_the_decoder_in_proportion() -> None:
    play = BlockPlay(Block(mode="assisted", assist=1.0), Cursor())
    play.begin(0.0)
    play.steer((9.0, 9.0), 0.01, 0.01)
    x, y = play.cursor.position
    assert math.hypot(x, y) == pytest.approx(0.15 * 0.01)
    half = BlockPlay(Block(mode="assisted", assist=0.5), Cursor())
    half.begin(0.0)
    goal = half.target.position
    half.steer((0.0, 0.0), 0.01, 0.01)
    assert half.cursor.position == pytest.approx(
        tuple(0.5 * 0.15 * 0.01 * c / math.hypot(*goal) for c in goal)
    )


def test_a_pause_voids_the_trial_and_its_target_comes_again() -> None:
    play = BlockPlay(Block(trials=1), Cursor())
    play.begin(0.0)
    target = play.target
    play.judge(0.01)
    play.interrupt(0.02)
    assert play.target is None
    play.steer((1.0, 0.0), 0.01, 0.03)
    play.judge(0.03)
    assert play.cursor.position == (0.0, 0.0)
    play.resume(5.0)
    assert play.target == target
    assert [(t.why, t.counts) for t in play.trials] == [("paused", False)]
    texts = [text for _, text in play.markers]
    assert texts[-6:] == [
        "failure 0 paused", "trial_end 0", "pause", "resume", "trial_start 1", texts[-1],
    ]  # fmt: skip


def test_no_trial_begins_after_the_blocks_seconds() -> None:
    play = played(Block(task="random", trials=None, seconds=5.0))
    assert play.trials[-1].start < 5.0 <= play.trials[-1].end


def test_two_plays_of_a_seed_are_the_same() -> None:
    block = Block(task="grid", mode="observation", trials=5, seed=4)
    assert played(block).trials == played(block).trials


@pytest.mark.parametrize(("field", "value"), [
    ("task", "swimming"), ("mode", "open"), ("trials", 0), ("trials", None), ("grid", 1),
    ("hold_s", 5.0), ("radius_m", 0.1), ("distance_m", 0.2), ("assist", 2.0),
])  # fmt: skip
def test_an_impossible_block_is_refused(field: str, value: object) -> None:
    with pytest.raises(SettingsError, match=r"expected|workspace"):
        Block(**{field: value})
