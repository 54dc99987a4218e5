"""Verbs of the rig: task, score, participant, rig."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from clients.cli.options import (
    DEFAULT_ADDRESS,
    Address,
    Json,
    require_training,
    terminal,
)

if TYPE_CHECKING:
    from clients.task.workspace import Mode, TaskName

verbs = typer.Typer()


@verbs.command(epilog="Example: volition task center-out --trials 64 --window --log trials.jsonl")
def task(
    name: Annotated[str, typer.Argument(metavar="TASK", help="center-out, random or grid.")],
    trials: Annotated[int, typer.Option(min=1, help="Returns to the centre not counted.")] = 64,
    seconds: Annotated[
        float | None, typer.Option(help="In --trials' place: no new trial after so many.")
    ] = None,
    mode: Annotated[str, typer.Option("--block", help="closed, assisted or observation.")] = (
        "closed"
    ),
    block_name: Annotated[str, typer.Option("--name", help="Of the block [its kind].")] = "",
    hold: Annotated[
        float | None, typer.Option(help="Seconds on a target that select it [0.3; grid 1].")
    ] = None,
    limit: Annotated[float, typer.Option(help="Seconds for one trial.")] = 4.0,
    radius: Annotated[float, typer.Option(help="Of a round target, m.")] = 0.01,
    grid: Annotated[int, typer.Option(help="Squares a side of the grid.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Order of the targets.")] = 0,
    address: Address = DEFAULT_ADDRESS,
    prefix: Annotated[str, typer.Option(help="Of the LSL streams' names.")] = "volition-task",
    stale_ms: Annotated[float, typer.Option(help="An older frame moves nothing.")] = 100.0,
    window: Annotated[bool, typer.Option("--window", help="Show it; space pauses.")] = False,
    log: Annotated[Path | None, typer.Option(help="Append a JSON line a trial.")] = None,
    url: Annotated[str | None, typer.Option(help="A server to pause along with.")] = None,
    token: Annotated[
        str | None, typer.Option(envvar="VOLITION_TOKEN", help="The server's token.")
    ] = None,
    lead: Annotated[float, typer.Option(min=0.0, help="Seconds before the first target.")] = 1.5,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until somebody listens.")] = False,
    lines: Annotated[
        bool, typer.Option("--lines", help="Play blocks that JSON lines on stdin ask for.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Play a task with the decoded cursor, and say over LSL where cursor and target are."""
    from clients.rig.command import play_block, play_lines, report_scores, server_paused_too
    from clients.task.task import TaskSettings
    from clients.task.workspace import Block

    holds = {} if hold is None else {"hold_s": hold, "dwell_s": hold}
    block = Block(
        task=cast("TaskName", name), mode=cast("Mode", mode), name=block_name,
        trials=trials if seconds is None else None, seconds=seconds, limit_s=limit,
        radius_m=radius, grid=grid, seed=seed, **holds,
    )  # fmt: skip
    settings = TaskSettings(address=address, prefix=prefix, stale_s=stale_ms / 1e3, log=log)
    console = terminal(stderr=True)
    with server_paused_too(console, url, token) as on_pause:
        if lines:
            play_lines(settings, block, window=window, on_pause=on_pause)
            return
        scores = play_block(
            console, settings, block, window=window, lead_s=lead, wait=wait, on_pause=on_pause
        )
    report_scores(terminal(), scores, as_json=as_json)


@verbs.command(epilog="Example: volition score trials.jsonl --report page.html")
def score(
    log: Annotated[list[Path], typer.Argument(help="Logs of `volition task`.")],
    report: Annotated[
        Path | None, typer.Option(help="Write an HTML page with paths and learning curves.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score the trials of a task, block by block."""
    from clients.rig.command import report_scores
    from clients.rig.score import score_trials
    from clients.task.trial import read_trials
    from decoder.errors import SessionError

    trials = [trial for path in log for trial in read_trials(path)]
    scores = score_trials(trials)
    if not scores:
        raise SessionError(f"{', '.join(map(str, log))}: no trial that a score counts")
    if report is not None:
        from clients.rig.score_report import write_report

        write_report(trials, report)
    report_scores(terminal(), scores, as_json=as_json)


@verbs.command(epilog="Example: volition participant --prefix rig --units 96 --subject 9 --seed 1")
def participant(
    prefix: Annotated[str, typer.Option(help="Of the task's streams, and of the spikes sent.")],
    units: Annotated[int, typer.Option(min=1, help="Number of units.")] = 96,
    subject: Annotated[int, typer.Option(min=0, help="Whose habits.")] = 9,
    seed: Annotated[int, typer.Option(min=0, help="Which day: its units and noise.")] = 1,
    delay_ms: Annotated[
        float, typer.Option(min=0.0, max=1000.0, help="How late the screen is seen.")
    ] = 150.0,
) -> None:
    """Take part in a task as a simulated participant; drifts are told on standard input.

    Until Ctrl-C, SIGTERM or the end of standard input.
    """
    from clients.participant.participant import participate
    from clients.participant.simulated import ParticipantSettings

    participate(
        ParticipantSettings(
            prefix=prefix, n_units=units, subject=subject, seed=seed, delay_s=delay_ms / 1e3
        )
    )


@verbs.command(epilog="Example: volition rig --seed 1 --trials 32 --report rig.html")
def rig(
    seed: Annotated[
        list[int] | None, typer.Option(min=0, help="Of the participant's day; may be given again.")
    ] = None,
    preset: Annotated[str, typer.Option(help="stream or rt: the shipped decoder.")] = "stream",
    method: Annotated[
        str, typer.Option(help="auto, units, units+head, full, scratch, kalman or ridge.")
    ] = "units",
    name: Annotated[str, typer.Option("--task", help="center-out, random or grid.")] = "center-out",
    trials: Annotated[int, typer.Option(min=1, help="Of each block in closed loop.")] = 64,
    seconds: Annotated[float, typer.Option(min=5.0, help="Of each calibration.")] = 40.0,
    gain: Annotated[float, typer.Option(min=0.0, help="Factor on the decoded velocity.")] = 0.4,
    labels: Annotated[
        str,
        typer.Option(
            help="Of the recalibration: kinematics (observation), or intention or "
            "retrospective, from closed loop."
        ),
    ] = "kinematics",
    replaced: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Drift: share of units that become others.")
    ] = 0.5,
    turned: Annotated[float, typer.Option(help="Drift: degrees that the others turn by.")] = 60.0,
    tick_ms: Annotated[float, typer.Option(help="Time between decodes.")] = 10.0,
    jobs: Annotated[int, typer.Option(min=1, help="Seeds at once.")] = 1,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Keep trials and logs here.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML page of all trials.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write the paths steered as SVG.")] = None,
    as_json: Json = False,
) -> None:
    """Close the loop with a simulated participant: calibrate, steer, drift, recalibrate, steer."""
    require_training()
    from clients.participant.drift import Drift
    from clients.rig.command import run_loops

    given = {
        "preset": preset, "method": method, "task": name, "trials": trials, "seconds": seconds,
        "labels": labels, "gain": gain, "tick_ms": tick_ms,
        "drift": Drift(replaced=replaced, turned_deg=turned),
    }  # fmt: skip
    run_loops(
        terminal(stderr=as_json), seed or [1], given,
        jobs=jobs, output=output, report=report, picture=picture, as_json=as_json,
    )  # fmt: skip
