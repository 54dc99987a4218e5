"""`volition study` and its verbs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from clients.cli.options import Json, require_training, terminal

SECONDS = ("20", "60", "240", "all")

verbs = typer.Typer(no_args_is_help=True)


@verbs.callback()
def study() -> None:
    """Measure accuracy over days, next to other decoders."""


@verbs.command("days", epilog="Example: volition study days sessions --train 10 -o study")
def days(
    folder: Annotated[Path, typer.Argument(help="A folder of sessions of one subject.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for runs and rows.")],
    train: Annotated[int, typer.Option(min=0, help="Number of days to pretrain on.")] = 0,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="Pretrain on all days but one, for each day.")
    ] = False,
    backward: Annotated[
        bool, typer.Option("--backward", help="Pretrain on the last days, not the first.")
    ] = False,
    without: Annotated[
        list[str] | None, typer.Option(help="Session to leave out; may be repeated.")
    ] = None,
    preset: Annotated[list[str] | None, typer.Option(help="Preset; may be repeated.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 2,
    seconds: Annotated[
        list[str] | None,
        typer.Option(help="Labelled seconds, or all; may be repeated (default: 20, 60, 240, all)."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="unlabelled, align, instant, units, units+head, full, auto, scratch or together; "
            "may be repeated (default: all but units+head and auto)."
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(help="Minutes of each pretraining.")] = 20.0,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps, in place of minutes.")] = None,
    network_steps: Annotated[int, typer.Option(min=1, help="Steps of the multi-day GRU.")] = 20_000,
    jobs: Annotated[int, typer.Option(min=1, help="Models trained at the same time.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Address of a Ray cluster that runs the jobs, or auto.", metavar="ADDRESS"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Pretrain on some days of a subject, and decode the others with 0 s of labels and more.

    Started again with the same output, it goes on where it stopped.
    """
    require_training()
    from clients.reports.studies import run_study
    from training.days.plan import METHODS, Plan

    plan = Plan(
        folder=folder, output=output, n_train=train, backward=backward, leave_one_out=leave_one_out,
        without=tuple(without or ()), presets=tuple(preset or ("stream", "rt")),
        seeds=tuple(range(seeds)), seconds=tuple(map(_seconds, seconds or SECONDS)),
        methods=tuple(method or METHODS),
        minutes=None if steps else minutes, steps=steps, network_steps=network_steps,
        threads=threads,
    )  # fmt: skip
    rows = run_study(terminal(stderr=as_json), plan, jobs=jobs, ray=ray)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))


def _seconds(text: str) -> float | None:
    """A number of seconds, or None for `all`. Raises SettingsError."""
    from decoder.errors import SettingsError

    try:
        seconds = None if text == "all" else float(text)
    except ValueError:
        seconds = 0.0
    if seconds is not None and not 5.0 <= seconds < float("inf"):
        raise SettingsError(f"--seconds {text!r}; expected a number of at least 5, or all")
    return seconds
