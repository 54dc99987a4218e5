"""Verbs of training: pretrain, adapt, checkpoint, export, bundle, evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from clients.cli.options import (
    Json,
    OutDir,
    require_training,
    split_named,
    styled,
    terminal,
)

if TYPE_CHECKING:
    from training.calibration.adapt import Method
    from training.calibration.labels import Labels

verbs = typer.Typer()


@verbs.command(epilog="Example: volition pretrain sessions --preset rt --minutes 10 -o runs/first")
def pretrain(
    folder: Annotated[Path, typer.Argument(help="A session, or a folder of sessions.")],
    output: OutDir,
    preset: Annotated[
        str, typer.Option(help="rt, poyo-1.3m, poyo-11.8m, stream or stream-8m.")
    ] = "rt",
    minutes: Annotated[float | None, typer.Option(help="Stop after this many minutes.")] = None,
    steps: Annotated[int | None, typer.Option(help="Stop after this many steps.")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Windows per step (default: 32, or 32 s of them).")
    ] = None,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 2e-3,
    accumulate: Annotated[int, typer.Option(min=1, help="Micro-batches per step and process.")] = 1,
    precision: Annotated[str, typer.Option(help="32-true or bf16-mixed.")] = "32-true",
    sampling_power: Annotated[
        float, typer.Option(help="1: sessions by their length; 0: all sessions equally.")
    ] = 1.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Number of torch threads.")] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that prepare windows ahead of time.")
    ] = 0,
    base: Annotated[
        Path | None,
        typer.Option("--from", help="A run or bundle of the same preset to start from."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in -o, with its settings.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a model on sessions, by default for 10 minutes.

    On several GPUs or nodes: torchrun --nproc-per-node N -m clients pretrain …
    """
    require_training()
    from clients.reports.runs import run_training
    from training.pretraining.settings import PretrainSettings, settings_of

    if resume:
        settings = settings_of(output, minutes=minutes, steps=steps)
    else:
        settings = PretrainSettings(
            preset=preset, minutes=10.0 if minutes is None and steps is None else minutes,
            steps=steps, seed=seed, batch_size=batch_size, learning_rate=learning_rate,
            accumulate=accumulate, precision=precision, sampling_power=sampling_power,
            threads=threads, workers=workers, base=str(base) if base else None,
        )  # fmt: skip
    summary = run_training(terminal(stderr=True), folder, output, settings, resume=resume)
    if summary is None:  # another process of torchrun's prints it
        return
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        terminal().print(
            styled(
                (f"{output}", "bold"),
                f": {summary['steps']} steps in {summary['seconds'] / 60:.1f} min, "
                "causal validation R² ",
                (f"{summary['validation_r2']:.3f}", "bold"),
            )
        )


@verbs.command(epilog="Example: volition adapt monkey.bundle sessions/today.h5 -o today.bundle")
def adapt(
    run: Annotated[Path, typer.Argument(help="A bundle, or a run of `volition pretrain`.")],
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="SESSION", help="A session with new units; several: of one subject."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle (or run) to write.")],
    seconds: Annotated[
        float,
        typer.Option(
            min=5.0, help="Seconds of labelled data, from the start of each training domain."
        ),
    ] = 40.0,
    method: Annotated[
        str,
        typer.Option(
            help="instant, align, units, units+head, full, scratch or auto: what is trained."
        ),
    ] = "units",
    allow: Annotated[
        float | None,
        typer.Option(min=1.0, help="Seconds of learning (default: as many as needed)."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of learning (default: as many as needed).")
    ] = None,
    labels: Annotated[
        str,
        typer.Option(
            help="kinematics, intention, retrospective, targets or decoded: the velocity to learn."
        ),
    ] = "kinematics",
    seed: Annotated[int, typer.Option()] = 0,
    as_json: Json = False,
) -> None:
    """Adapt to a new session from a few seconds of data: only its units, or more (--method).

    Of several sessions, newer ones count more, and the result is for the units of all.
    """
    require_training()
    from clients.reports.runs import run_adaptation
    from training.calibration.adapt import AdaptSettings

    settings = AdaptSettings(
        method=cast("Method", method), seconds=seconds, allowed_s=allow, steps=steps, seed=seed,
        labels=cast("Labels", labels),
    )  # fmt: skip
    summary = run_adaptation(terminal(stderr=True), run, paths, output, settings)
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        r2 = summary["validation_r2"]
        score = () if r2 is None else (", causal R² on the held-out fifth ", (f"{r2:.3f}", "bold"))
        made = f": {summary['units']} units by {summary['method']} in {summary['seconds']:.1f} s"
        terminal().print(styled((f"{output}", "bold"), made, *score))


@verbs.command(epilog="Example: volition checkpoint poyo.ckpt -o runs/poyo --output-std 0.2")
def checkpoint(
    source: Annotated[Path, typer.Argument(help="A torch_brain .ckpt file, or a run folder.")],
    output: OutDir,
    output_mean: Annotated[float, typer.Option(help="Mean of the training targets, m/s.")] = 0.0,
    output_std: Annotated[float, typer.Option(help="Scale of the training targets, m/s.")] = 1.0,
) -> None:
    """Convert a torch_brain checkpoint to a run, or a run to a checkpoint."""
    require_training()
    from training.exports import checkpoints

    if source.is_dir():
        checkpoints.export_checkpoint(source, output)
    else:
        record, weights = checkpoints.import_checkpoint(
            source, output_mean=output_mean, output_std=output_std
        )
        checkpoints.save_run(output, record, weights)
    terminal().print(styled((f"{output}", "bold"), " written"))


@verbs.command(epilog="Example: volition export runs/first --session monkey -o monkey.bundle")
def export(
    run: Annotated[Path, typer.Argument(help="A run folder of `volition pretrain`.")],
    output: OutDir,
    session: Annotated[str | None, typer.Option(help="Session id, if the run has several.")] = None,
    subject: Annotated[
        str | None,
        typer.Option(help="Subject id: export the units that its days share, for any later day."),
    ] = None,
) -> None:
    """Export a trained model as a decoder bundle for one session's units, or a subject's."""
    require_training()
    from clients.reports.tables import print_bundle
    from training.exports.export import export_run

    console = terminal(stderr=True)
    with console.status("exporting the streaming graph (about 10 s)…"):
        made = export_run(run, session, output, subject=subject)
    print_bundle(terminal(), made)


@verbs.command(epilog="Example: volition bundle monkey.bundle")
def bundle(
    path: Annotated[Path, typer.Argument(help="A decoder bundle.")], as_json: Json = False
) -> None:
    """Verify a bundle (versions, ranges, checksums, shapes), run it, and print its contents."""
    from clients.reports.tables import print_bundle
    from decoder.bundles.bundle import open_bundle
    from decoder.runtimes.onnx import RuntimeSettings
    from decoder.runtimes.proof import prove_apart

    opened = open_bundle(path)
    prove_apart(opened, RuntimeSettings())
    if as_json:
        typer.echo(opened.manifest.model_dump_json(indent=2))
    else:
        print_bundle(terminal(), opened)


@verbs.command(
    epilog="Example: volition evaluate m.bundle sessions/m.h5 --baselines --report m.html"
)
def evaluate(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A decoder bundle.")],
    session: Annotated[Path, typer.Argument(help="A session file (.h5).")],
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also fit ridge, a Kalman filter and a GRU.")
    ] = False,
    split: Annotated[str, typer.Option(help="all, train, valid or test.")] = "test",
    report: Annotated[
        Path | None, typer.Option(help="Write an HTML page with tables and plots.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a bundle causally on a recorded session, with baselines to compare."""
    require_training()
    from clients.reports.tables import print_evaluation
    from decoder.bundles.bundle import open_bundle
    from streaming.sessions import format as sessions
    from training.evaluation.evaluate import evaluate as run

    console = terminal(stderr=True)
    opened, loaded = open_bundle(path), sessions.load(session)
    with console.status("decoding…") as status:
        result = run(
            opened, loaded, split=split_named(split), baselines=baselines,
            unit_counts=report is not None, say=lambda what: status.update(f"{what}…"),
        )  # fmt: skip
    if report is not None:
        from training.evaluation.report import write_report

        write_report(result, report)
    if as_json:
        typer.echo(json.dumps(result.as_dict(), indent=2))
    else:
        print_evaluation(terminal(), result)
