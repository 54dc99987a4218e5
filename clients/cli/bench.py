"""`volition bench` and its verbs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from clients.cli.options import (
    CalibrationMethod,
    Json,
    require_training,
    terminal,
)

verbs = typer.Typer(help="Measure speed, with torch_brain in the same run.")


@verbs.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    preset: Annotated[list[str] | None, typer.Option(help="Preset; may be repeated.")] = None,
    runs: Annotated[int, typer.Option(min=10, help="Decodes per case.")] = 200,
    as_json: Json = False,
) -> None:
    """Time a tick of the runtime and torch_brain's eager POYO on the same windows."""
    if context.invoked_subcommand is not None:
        return
    require_training()
    from clients.benches.ticks import bench as run
    from clients.reports.tables import print_bench

    cases = run(terminal(stderr=True), presets=preset or ["stream", "rt", "poyo-1.3m"], runs=runs)
    if as_json:
        typer.echo(json.dumps(cases, indent=2))
    else:
        print_bench(terminal(), cases)


@verbs.command("train", epilog="Example: volition bench train --preset rt --json")
def bench_train(
    preset: Annotated[list[str] | None, typer.Option(help="Preset; may be repeated.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    spikes: Annotated[int, typer.Option(min=1, help="Approximate spikes per window.")] = 3000,
    steps: Annotated[int, typer.Option(min=1)] = 5,
    as_json: Json = False,
) -> None:
    """Time a training step and torch_brain's eager POYO on the same batches."""
    require_training()
    from clients.reports.tables import print_bench_train
    from training.studies.bench_train import bench_train as run

    cases = run(
        terminal(stderr=True), presets=preset or ["rt"], batch_size=batch_size, spikes=spikes,
        steps=steps,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(cases, indent=2))
    else:
        print_bench_train(terminal(), cases)


@verbs.command("recalibrate", epilog="Example: volition bench recalibrate --preset rt --json")
def bench_recalibrate(
    preset: Annotated[str, typer.Option(help="stream or rt.")] = "stream",
    runs: Annotated[int, typer.Option(min=1, help="Number of days of an unseen subject.")] = 5,
    seconds: Annotated[
        float, typer.Option(min=5.0, help="Seconds of labelled data in each run.")
    ] = 40.0,
    method: CalibrationMethod = "auto",
    bundle: Annotated[
        Path | None,
        typer.Option(help="Decoder to start from (default: the shipped one; for instant, a new)."),
    ] = None,
    session: Annotated[
        Path | None, typer.Option(help="Session to play (default: an unseen simulated subject).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Time a recalibration, from the last sample to the new decoder's first valid frame."""
    require_training()
    from clients.benches.recalibration import bench
    from clients.harness.server import SHIPPED
    from clients.reports.tables import print_bench_recalibrate
    from decoder.errors import SettingsError
    from server.schemas import Method

    if preset not in SHIPPED:
        raise SettingsError(f"preset {preset!r}; expected {' or '.join(SHIPPED)}")
    if method not in get_args(Method):
        raise SettingsError(f"method {method!r}; expected one of {', '.join(get_args(Method))}")
    result = bench(
        terminal(stderr=as_json), preset=preset, runs=runs, seconds=seconds,
        method=cast("Method", method), bundle=bundle, session=session,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        print_bench_recalibrate(terminal(), result)


@verbs.command("corpus", epilog="Example: volition bench corpus sessions --json")
def bench_corpus(
    folder: Annotated[Path, typer.Argument(help="A folder of sessions.")],
    preset: Annotated[str, typer.Option()] = "rt",
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    steps: Annotated[int, typer.Option(min=1)] = 40,
    as_json: Json = False,
) -> None:
    """Time opening and training on a corpus, and on one of its sessions."""
    require_training()
    from clients.reports.tables import print_bench_corpus
    from training.studies.bench_corpus import bench_corpus as run

    result = run(terminal(stderr=True), folder, preset=preset, batch_size=batch_size, steps=steps)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        print_bench_corpus(terminal(), result)
