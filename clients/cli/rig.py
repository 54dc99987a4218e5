"""Verbs of the rig: doctor, task, score, participant, rig."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from clients.cli.options import (
    DEFAULT_ADDRESS,
    Address,
    CalibrationMethod,
    Json,
    Token,
    require_training,
    terminal,
)

if TYPE_CHECKING:
    from clients.task.workspace import Mode, TaskName

verbs = typer.Typer()


@verbs.command(
    epilog="Examples:\n\nvolition doctor\n\n"
    "volition doctor monkey.bundle --tick-ms 5 --provider cuda\n\n"
    "volition doctor --only network --only lsl --json"
)
def doctor(
    bundle: Annotated[
        Path | None, typer.Argument(help="A decoder bundle to open, try and time.")
    ] = None,
    provider: Annotated[
        str | None, typer.Option(help="auto, cpu or cuda, as the daemon would get (default: auto).")
    ] = None,
    tick_ms: Annotated[
        float | None, typer.Option(help="Time between decodes (default: 10).")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file with the server's settings.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this check; may be repeated: packages, settings, network, lsl, clocks, "
            "timer, permissions, cpu, disk, ports, provider or bundle."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check whether this machine can run the rig, and say what to do if it can't.

    Settings come from options, VOLITION_… variables and the file, as for `decode` and `serve`.
    Warnings leave the exit code at 0; a failure makes it 1.
    """
    from clients.doctor.command import doctor as run
    from clients.doctor.finding import Asked

    asked = Asked(
        bundle=None if bundle is None else str(bundle), provider=provider, tick_ms=tick_ms,
        config=None if config is None else str(config),
    )  # fmt: skip
    sys.exit(run(terminal(stderr=as_json), asked, only or (), as_json=as_json))


@verbs.command(epilog="Example: volition task center-out --trials 64 --window --log trials.jsonl")
def task(
    name: Annotated[str, typer.Argument(metavar="TASK", help="center-out, random or grid.")],
    trials: Annotated[
        int, typer.Option(min=1, help="Number of trials, without returns to the centre.")
    ] = 64,
    seconds: Annotated[
        float | None, typer.Option(help="Instead of --trials: no new trial after this many.")
    ] = None,
    mode: Annotated[str, typer.Option("--block", help="closed, assisted or observation.")] = (
        "closed"
    ),
    block_name: Annotated[
        str, typer.Option("--name", help="Name of the block (default: its kind).")
    ] = "",
    hold: Annotated[
        float | None, typer.Option(help="Seconds on a target to select it (default: 0.3; grid 1).")
    ] = None,
    limit: Annotated[float, typer.Option(help="Time limit of a trial, s.")] = 4.0,
    radius: Annotated[float, typer.Option(help="Radius of a round target, m.")] = 0.01,
    grid: Annotated[int, typer.Option(help="Squares per side of the grid.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Order of the targets.")] = 0,
    address: Address = DEFAULT_ADDRESS,
    prefix: Annotated[str, typer.Option(help="Prefix of the LSL stream names.")] = "volition-task",
    stale_ms: Annotated[float, typer.Option(help="Ignore frames older than this.")] = 100.0,
    window: Annotated[bool, typer.Option("--window", help="Show a window; space pauses.")] = False,
    log: Annotated[Path | None, typer.Option(help="Append a JSON line per trial.")] = None,
    url: Annotated[str | None, typer.Option(help="URL of a server to pause too.")] = None,
    token: Token = None,
    lead: Annotated[float, typer.Option(min=0.0, help="Seconds before the first target.")] = 1.5,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until a stream has a consumer.")
    ] = False,
    lines: Annotated[
        bool, typer.Option("--lines", help="Read the blocks to play as JSON lines from stdin.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a cursor task; cursor and target are sent over LSL."""
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
        raise SessionError(f"{', '.join(map(str, log))}: no trial to score")
    if report is not None:
        from clients.rig.score_report import write_report

        write_report(trials, report)
    report_scores(terminal(), scores, as_json=as_json)


@verbs.command(epilog="Example: volition participant --prefix rig --units 96 --subject 9 --seed 1")
def participant(
    prefix: Annotated[
        str, typer.Option(help="Prefix of the task's streams and of the spike stream.")
    ],
    units: Annotated[int, typer.Option(min=1, help="Number of units.")] = 96,
    subject: Annotated[int, typer.Option(min=0, help="Number of the subject.")] = 9,
    seed: Annotated[int, typer.Option(min=0, help="Number of the day: its units and noise.")] = 1,
    delay_ms: Annotated[
        float, typer.Option(min=0.0, max=1000.0, help="Delay of the screen.")
    ] = 150.0,
) -> None:
    """Simulate a participant in a task, until Ctrl-C, SIGTERM or the end of standard input.

    Standard input takes drifts of the units as JSON lines.
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
        list[int] | None,
        typer.Option(min=0, help="Number of the participant's day; may be repeated."),
    ] = None,
    preset: Annotated[str, typer.Option(help="stream or rt: the shipped decoder.")] = "stream",
    method: CalibrationMethod = "units",
    name: Annotated[str, typer.Option("--task", help="center-out, random or grid.")] = "center-out",
    trials: Annotated[int, typer.Option(min=1, help="Trials per closed-loop block.")] = 64,
    seconds: Annotated[float, typer.Option(min=5.0, help="Seconds per calibration.")] = 40.0,
    gain: Annotated[float, typer.Option(min=0.0, help="Factor on the decoded velocity.")] = 0.4,
    labels: Annotated[
        str,
        typer.Option(
            help="Labels of the recalibration: kinematics (observation), or intention or "
            "retrospective (closed loop)."
        ),
    ] = "kinematics",
    replaced: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Drift: share of units that are replaced.")
    ] = 0.5,
    turned: Annotated[float, typer.Option(help="Drift: degrees by which the others turn.")] = 60.0,
    tick_ms: Annotated[float, typer.Option(help="Time between decodes.")] = 10.0,
    jobs: Annotated[int, typer.Option(min=1, help="Seeds in parallel.")] = 1,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to keep trials and logs in.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML page with all trials.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Write the cursor paths as SVG.")] = None,
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
