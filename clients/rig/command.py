"""`volition task`: one block, or blocks on request of another process (`--lines`).

With `--lines` the task rests until it is told, by JSON lines on standard input:

    {"block": {"mode": "closed", "trials": 64, "name": "before drift"}}    fields of `Block`
    {"pause": true}    {"pause": false}    {"end": true}    {"stop": true}

A block's fields that are left out are the command line's. What happens is said on standard output:
`ready` (the streams are there), `begun` (a block), `trial` (without its path), `paused`, `ended`
(a block's score), `problem`. The end of standard input ends the run.
"""

from __future__ import annotations

import json
import os
import select
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from clients.rig.score import BlockScore, across, score_trials
from clients.rig.score_report import print_scores
from clients.task.task import TaskRun, TaskSettings
from clients.task.trial import Trial
from clients.task.window import Window
from clients.task.workspace import Block
from decoder.errors import SettingsError, VolitionError
from streaming.signals import stop_on_signal
from streaming.wire.lines import Message, send, send_problem

HEARD_WITHIN_S = 60.0


def play_block(
    console: Console,
    settings: TaskSettings,
    block: Block,
    *,
    window: bool = False,
    lead_s: float = 1.0,
    wait: bool = False,
    on_pause: Callable[[bool], None] = lambda paused: None,
) -> list[BlockScore]:
    """Play one block, print the outcome of each trial, and return the scores.

    lead_s: seconds without a target before the first trial. wait: until somebody listens first.
    """
    trials: list[Trial] = []

    def tell(trial: Trial) -> None:
        trials.append(trial)
        if trial.counts:
            console.print(f"trial {trial.number}: {trial.why or 'success'}")

    with _window(window) as opened, TaskRun(
        settings, window=opened, on_trial=tell, on_pause=on_pause
    ) as run, stop_on_signal(run):  # fmt: skip
        if wait:
            run.wait_until_heard(HEARD_WITHIN_S)
        run.rest(lead_s)
        if not run.should_stop:
            run.play(block)
    return score_trials(trials)


def play_lines(
    settings: TaskSettings,
    block: Block,
    *,
    window: bool = False,
    on_pause: Callable[[bool], None] = lambda paused: None,
) -> None:
    """Play the blocks requested on standard input. block: defaults of a request."""

    def tell_pause(paused: bool) -> None:
        send(paused=paused)
        on_pause(paused)

    orders = Orders()
    with _window(window) as opened, TaskRun(
        settings, window=opened, on_trial=_say_trial, on_pause=tell_pause, on_tick=orders.obey
    ) as run, stop_on_signal(run):  # fmt: skip
        send(ready=settings.prefix)
        while not run.should_stop:
            run.rest(until=lambda: orders.blocks)
            if orders.blocks and not run.should_stop:
                _play_wanted(run, block, orders.blocks.pop(0))


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of standard input. block: fields of a `Block` to play next."""

    block: dict[str, Any] | None = None
    pause: bool | None = None
    end: bool = False
    stop: bool = False


class Orders:
    """Lines of standard input, read between ticks without waiting.

    blocks: those that are still to be played, in order.
    """

    def __init__(self) -> None:
        self.blocks: list[Message] = []
        self._rest = b""

    def obey(self, run: TaskRun) -> None:
        """Carry out the orders that have arrived."""
        stdin = sys.stdin.fileno()
        while select.select([stdin], [], [], 0.0)[0]:
            if not (read := os.read(stdin, 65536)):
                run.should_stop = True  # the parent process has ended
                return
            *lines, self._rest = (self._rest + read).split(b"\n")
            for line in lines:
                try:
                    self._do(run, msgspec.json.decode(line, type=Order))
                except msgspec.MsgspecError as error:
                    send_problem(SettingsError(f"{line!r}: not an order ({error})"))

    def _do(self, run: TaskRun, order: Order) -> None:
        if order.block is not None:
            self.blocks.append(order.block)
        if order.pause is not None:
            run.pause() if order.pause else run.resume()
        if order.end:
            run.end_block()
        run.should_stop |= order.stop


def _play_wanted(run: TaskRun, block: Block, given: Message) -> None:
    try:
        wanted = _block_of(block, given)
    except SettingsError as error:
        send_problem(error)
        return
    send(begun=wanted.label)
    scores = score_trials(run.play(wanted))
    send(ended=wanted.label, score=scores[0].as_dict() if scores else None)


def _block_of(block: Block, given: Message) -> Block:
    """The block with the given fields replaced. Raises SettingsError for an invalid one."""
    fields = {name: getattr(block, name) for name in Block.__dataclass_fields__}
    if unknown := set(given) - set(fields):
        raise SettingsError(f"block: no field {', '.join(sorted(unknown))}")
    try:
        return msgspec.convert({**fields, **given}, Block)
    except msgspec.ValidationError as error:
        raise SettingsError(f"block: {error}") from error


def _say_trial(trial: Trial) -> None:
    about = msgspec.to_builtins(trial)
    send(trial={name: about[name] for name in about if name not in ("times", "path")})


@contextmanager
def _window(wanted: bool) -> Iterator[Window | None]:
    window = Window() if wanted else None
    try:
        yield window
    finally:
        if window is not None:
            window.close()


@contextmanager
def server_paused_too(
    console: Console, url: str | None, token: str | None
) -> Iterator[Callable[[bool], None]]:
    """A callback that pauses and resumes the server together with the task.

    The loop doesn't wait for the answer; a server that refuses is told of, no more.
    """
    if url is None:
        yield lambda paused: None
        return
    from clients.control import ControlClient

    with ControlClient(url, token=token, operator="volition task") as client, ThreadPoolExecutor(
        max_workers=1
    ) as calls:  # fmt: skip

        def ask(paused: bool) -> None:
            try:
                client.pause("task paused") if paused else client.resume()
            except VolitionError as error:
                console.print(f"error: {error}")

        def submit(paused: bool) -> None:
            calls.submit(ask, paused)

        yield submit


def report_scores(console: Console, scores: list[BlockScore], *, as_json: bool) -> None:
    """Print scores as a table, or as JSON on standard output."""
    if as_json:
        print(msgspec.json.format(msgspec.json.encode([s.as_dict() for s in scores])).decode())
    elif scores:
        print_scores(console, scores)
    else:
        console.print("no trial to score")


def run_loops(
    console: Console,
    seeds: list[int],
    given: dict[str, Any],
    *,
    jobs: int,
    output: Path | None,
    report: Path | None,
    picture: Path | None,
    as_json: bool,
) -> None:
    """`volition rig`: one run per seed, `jobs` in parallel; scores per phase, mean and spread."""
    from clients.rig.closed_loop import (
        PHASES,
        LoopResult,
        LoopSettings,
        run_loop,
        side_by_side,
    )
    from clients.rig.score_report import print_across, save_paths, write_report

    with ExitStack() as ends:
        kept = output or Path(ends.enter_context(tempfile.TemporaryDirectory()))
        status = ends.enter_context(console.status("starting…"))

        def run(settings: LoopSettings) -> LoopResult:
            return run_loop(settings, say=lambda what: status.update(f"{what}…"))

        loops = [LoopSettings(folder=kept / f"seed-{s}", seed=s, **given) for s in seeds]
        results: list[LoopResult] = []
        for result in side_by_side(run, loops, jobs):
            results.append(result)
            console.print(f"seed {result.settings.seed}", style="bold")
            print_scores(console, list(result.scores.values()))
    trials = [trial for result in results for trial in result.trials]
    if report is not None:
        write_report(trials, report)
    if picture is not None:
        save_paths(trials, picture)
    over_seeds = {phase: across([r.scores[phase] for r in results]) for phase in PHASES}
    if as_json:
        runs = [result.as_dict() for result in results]
        print(json.dumps({"runs": runs, "over_seeds": msgspec.to_builtins(over_seeds)}, indent=2))
    elif len(results) > 1:
        print_across(console, over_seeds)
