"""The `volition` command: one verb a job. Heavy imports happen inside the verb that needs them."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar, cast

import typer

from decoder.errors import VolitionError

if TYPE_CHECKING:
    from pydantic_settings import BaseSettings

    from clients.task.workspace import Mode, TaskName
    from streaming.inlets.spikes import StreamKind
    from streaming.sessions.session import Split
    from training.calibration.adapt import Method
    from training.calibration.labels import Labels

S = TypeVar("S", bound="BaseSettings")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Real-time neural decoding: spikes in over LSL, cursor velocity out over ZeroMQ.\n\n"
        "For research. Not a medical device.\n\n"
        "[bold]Start here[/bold]  volition demo"
    ),
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
OutDir = Annotated[Path, typer.Option("-o", "--output", help="Folder to write to.")]
Address = Annotated[str, typer.Option(help="ZeroMQ address of the daemon.")]
DEFAULT_ADDRESS = "tcp://127.0.0.1:5556"


ADVICE = {
    errno.ENOSPC: "make room, or choose another folder",
    errno.EDQUOT: "make room, or choose another folder",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "choose another folder, or change who may use it",
    errno.EPERM: "choose another folder, or change who may use it",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "name a file, not a folder",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.EADDRINUSE: "choose another address, or end the program that has it",
}


def main() -> None:
    """Entry point: errors that a user can act on are printed in one line, exit code 1.

    So are those of the disk and the network, wherever they come from. All others are bugs and
    keep their traceback.
    """
    # Of torch's threads, here and in child processes, before torch is loaded. On a busy machine
    # those that spin keep the processor from those they wait for: a training step of two threads
    # took 1.2-1.7 s, with this 0.2-0.6 s; on an idle machine 13 ms either way.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    threading.excepthook = _say_in_thread
    try:
        app()
    except VolitionError as error:
        _fail(str(error))
    except OSError as error:
        _fail(_os_error(error))
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C while Python ends


def _say_in_thread(error: threading.ExceptHookArgs) -> None:
    """As in `main`; a thread of TensorBoard's, say, may be the first to meet a full disk."""
    if isinstance(error.exc_value, OSError):
        said = _escape(_os_error(error.exc_value))
        _console(stderr=True).print(f"[bold yellow]warning:[/] {said}", soft_wrap=True)
    else:
        threading.__excepthook__(error)


def _fail(text: str) -> NoReturn:
    _console(stderr=True).print(f"[bold red]error:[/] {_escape(text)}", soft_wrap=True)
    sys.exit(1)


def _os_error(error: OSError) -> str:
    from decoder.errors import brief

    if error.errno is None:  # a library's own, which says more than its number would
        return brief(error)
    files = [repr(str(name)) for name in (error.filename, error.filename2) if name is not None]
    text = ": ".join([*files, error.strerror or type(error).__name__])
    advice = ADVICE.get(error.errno)
    return brief(f"{text}; {advice}" if advice else text)


def _console(stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _needs_training() -> None:
    """Say how to get torch where it is missing."""
    from importlib.util import find_spec

    from decoder.errors import TrainingError

    if find_spec("torch") is None:
        raise TrainingError("this verb needs torch; install it with: pip install 'volition[train]'")


def _settings(kind: type[S], given: dict[str, Any]) -> S:
    """Settings from options that were given, then from what `kind` reads. Raises SettingsError."""
    from pydantic import ValidationError

    from decoder.errors import SettingsError, invalid_fields

    try:
        return kind(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise SettingsError(invalid_fields(error)) from error


def _split(name: str) -> Split:
    from decoder.errors import SettingsError

    if name not in ("all", "train", "valid", "test"):
        raise SettingsError(f"split {name!r}; expected all, train, valid or test")
    return cast("Split", name)


@app.command("import", epilog="Example: volition import monkey.nwb -o sessions")
def import_(
    file: Annotated[
        Path, typer.Argument(help="A .nwb or .xdf recording, a foreign .h5, or a .recording.")
    ],
    output: OutDir = Path("sessions"),
    position: Annotated[str | None, typer.Option(help="Name of the position series.")] = None,
    velocity: Annotated[str | None, typer.Option(help="Name of the velocity series.")] = None,
    unit: Annotated[
        str | None,
        typer.Option(help="m, cm, mm, … or metres in one unit, if the file is wrong or silent."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="Which columns are x and y, such as 2,3; -2 turns one round."),
    ] = None,
    spike_unit: Annotated[
        str | None, typer.Option(help="ms, us or samples per second, if spike times aren't in s.")
    ] = None,
    spikes_outside: Annotated[
        bool, typer.Option("--spikes-outside", help="Most spikes may be outside the kinematics.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Session id [the file's own].")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a session of the same name.")
    ] = False,
) -> None:
    """Turn an NWB or XDF recording, or a recording that was cut short, into a session."""
    from dataclasses import replace

    from clients.cli.reports import print_session
    from decoder.errors import SessionError
    from streaming.sessions import format as sessions
    from training.importers import import_recording

    session = import_recording(
        file, position=position, velocity=velocity, unit=unit, columns=_columns(columns),
        spike_unit=spike_unit, spikes_outside=spikes_outside,
    )  # fmt: skip
    if name is not None:
        session = replace(session, session_id=name)
    taken = sessions.path_of(session.session_id, output)
    if taken.exists() and not force:
        raise SessionError(
            f"{taken} exists, and was left as it is; give this session a --name of its own, or "
            "replace the other with --force"
        )
    path = sessions.save(session, output, overwrite=force)
    print_session(_console(), session, path)


def _columns(text: str | None) -> tuple[int, int] | None:
    """Two column numbers of `2,3`. Raises SettingsError if there aren't two."""
    from decoder.errors import SettingsError

    if text is None:
        return None
    try:
        x, y = (int(part) for part in text.split(","))
    except ValueError:
        raise SettingsError(f"columns {text!r}; expected two numbers, such as 2,3") from None
    return x, y


@app.command(epilog="Example: volition info sessions/monkey.h5 --json")
def info(
    session: Annotated[Path, typer.Argument(help="A session file (.h5).")], as_json: Json = False
) -> None:
    """Print a session's units, rates, minutes, domains and kinematics."""
    from clients.cli.reports import print_session, session_summary
    from streaming.sessions import format as sessions

    loaded = sessions.load(session)
    if as_json:
        typer.echo(json.dumps(session_summary(loaded), indent=2))
    else:
        print_session(_console(), loaded, session)


@app.command(epilog="Example: volition simulate --units 96 --minutes 10 --subject 3 --seed 7")
def simulate(
    units: Annotated[int, typer.Option(min=1, help="Number of units.")] = 96,
    minutes: Annotated[float, typer.Option(min=0.5, help="Length of the session.")] = 10.0,
    subject: Annotated[int, typer.Option(min=0, help="Which subject moves.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Which day: its units and reaches.")] = 0,
    task: Annotated[
        str | None,
        typer.Option(
            help="center_out, random_target or steering; the seed's choice of reaches if left out."
        ),
    ] = None,
    count: Annotated[
        int, typer.Option("--sessions", min=1, help="How many days; seeds count up from --seed.")
    ] = 1,
    subjects: Annotated[
        int, typer.Option(min=1, help="Share the days among so many subjects, from --subject on.")
    ] = 1,
    total_units: Annotated[
        int | None, typer.Option(min=1, help="Units of all sessions together, in --units' place.")
    ] = None,
    output: OutDir = Path("sessions"),
) -> None:
    """Make sessions of a simulated motor cortex: one, or a corpus of many days and subjects."""
    from clients.cli.reports import print_session, simulate_corpus
    from decoder.errors import SettingsError
    from streaming.sessions import format as sessions
    from training.data.simulate import TASKS
    from training.data.simulate import simulate as make

    if task not in (None, *TASKS):
        raise SettingsError(f"task {task!r}; expected {', '.join(TASKS)}")
    if count > 1:
        simulate_corpus(
            _console(stderr=True), output, count, subjects=range(subject, subject + subjects),
            n_units=total_units or units * count, minutes=minutes, seed=seed,
            task=task,
        )  # fmt: skip
        return
    session = make(
        n_units=total_units or units, minutes=minutes, subject=subject, seed=seed,
        task=task,
    )  # fmt: skip
    path = sessions.save(session, output)
    print_session(_console(), session, path)


@app.command(epilog="Example: volition pretrain sessions --preset rt --minutes 10 -o runs/first")
def pretrain(
    folder: Annotated[Path, typer.Argument(help="A session, or a folder of sessions.")],
    output: OutDir,
    preset: Annotated[
        str, typer.Option(help="rt, poyo-1.3m, poyo-11.8m, stream or stream-8m.")
    ] = "rt",
    minutes: Annotated[float | None, typer.Option(help="Stop after so many minutes.")] = None,
    steps: Annotated[int | None, typer.Option(help="Stop after so many steps.")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 2e-3,
    accumulate: Annotated[
        int, typer.Option(min=1, help="Micro-batches a process computes one after the other.")
    ] = 1,
    precision: Annotated[str, typer.Option(help="32-true or bf16-mixed.")] = "32-true",
    sampling_power: Annotated[
        float, typer.Option(help="1 draws every second alike, 0 every session alike.")
    ] = 1.0,
    threads: Annotated[int | None, typer.Option(min=1, help="torch's threads.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read windows ahead.")] = 0,
    base: Annotated[
        Path | None,
        typer.Option("--from", help="A run or bundle of the same preset to begin with."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in -o, with its settings.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a model on sessions. Ends by time or steps (10 minutes if neither is given).

    On many GPUs or nodes: torchrun --nproc-per-node N -m clients pretrain …
    """
    _needs_training()
    from clients.cli.reports import run_training
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
    summary = run_training(_console(stderr=True), folder, output, settings, resume=resume)
    if summary is None:  # another process of torchrun's prints it
        return
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        _console().print(
            f"[bold]{output}[/]: {summary['steps']} steps in {summary['seconds'] / 60:.1f} min, "
            f"causal validation R² [bold]{summary['validation_r2']:.3f}[/]"
        )


@app.command(epilog="Example: volition adapt monkey.bundle sessions/today.h5 -o today.bundle")
def adapt(
    run: Annotated[Path, typer.Argument(help="A bundle, or a run of `volition pretrain`.")],
    session: Annotated[Path, typer.Argument(help="A session whose units are new to it.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle (or run) to write.")],
    seconds: Annotated[
        float, typer.Option(min=5.0, help="Labelled data, from the start of its training domain.")
    ] = 40.0,
    method: Annotated[
        str, typer.Option(help="units, units+head, full, scratch or auto: what learns.")
    ] = "units",
    allow: Annotated[
        float | None, typer.Option(min=1.0, help="Seconds of learning [as many as it takes].")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Left out: as many as it needs.")] = None,
    labels: Annotated[
        str, typer.Option(help="kinematics, intention or retrospective: what velocity means.")
    ] = "kinematics",
    seed: Annotated[int, typer.Option()] = 0,
    as_json: Json = False,
) -> None:
    """Learn a new session from a few seconds of data: its units alone, or more (--method)."""
    _needs_training()
    from clients.cli.reports import run_adaptation
    from training.calibration.adapt import AdaptSettings

    settings = AdaptSettings(
        method=cast("Method", method), seconds=seconds, allowed_s=allow, steps=steps, seed=seed,
        labels=cast("Labels", labels),
    )  # fmt: skip
    summary = run_adaptation(_console(stderr=True), run, session, output, settings)
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        _console().print(
            f"[bold]{output}[/]: {summary['units']} units by "
            f"{summary['method']} in {summary['seconds']:.1f} s, "
            f"causal R² on the held-out fifth [bold]{summary['validation_r2']:.3f}[/]"
        )


@app.command(epilog="Example: volition checkpoint poyo.ckpt -o runs/poyo --output-std 0.2")
def checkpoint(
    source: Annotated[Path, typer.Argument(help="torch_brain's .ckpt, or a run folder.")],
    output: OutDir,
    output_mean: Annotated[float, typer.Option(help="Targets' mean in training, m/s.")] = 0.0,
    output_std: Annotated[float, typer.Option(help="Targets' scale in training, m/s.")] = 1.0,
) -> None:
    """Turn a torch_brain checkpoint into a run, or a run into a torch_brain checkpoint."""
    _needs_training()
    from training.exports import checkpoints

    if source.is_dir():
        checkpoints.export_checkpoint(source, output)
    else:
        record, weights = checkpoints.import_checkpoint(
            source, output_mean=output_mean, output_std=output_std
        )
        checkpoints.save_run(output, record, weights)
    _console().print(f"[bold]{output}[/] written")


@app.command(epilog="Example: volition export runs/first --session monkey -o monkey.bundle")
def export(
    run: Annotated[Path, typer.Argument(help="A folder that `volition pretrain` made.")],
    output: OutDir,
    session: Annotated[
        str | None, typer.Option(help="Session id; needed if there are many.")
    ] = None,
) -> None:
    """Write a trained model as a decoder bundle for one session's units."""
    _needs_training()
    from clients.cli.reports import print_bundle
    from training.exports.export import export_run

    console = _console(stderr=True)
    with console.status("exporting the streaming graph (about 10 s)…"):
        made = export_run(run, session, output)
    print_bundle(_console(), made)


@app.command(epilog="Example: volition bundle monkey.bundle")
def bundle(
    path: Annotated[Path, typer.Argument(help="A decoder bundle.")], as_json: Json = False
) -> None:
    """Verify a bundle (versions, ranges, checksums, shapes), try it, and print what it holds."""
    from clients.cli.reports import print_bundle
    from decoder.bundles.bundle import open_bundle
    from decoder.runtimes.onnx import RuntimeSettings
    from decoder.runtimes.proof import prove_apart

    opened = open_bundle(path)
    prove_apart(opened, RuntimeSettings())
    if as_json:
        typer.echo(opened.manifest.model_dump_json(indent=2))
    else:
        print_bundle(_console(), opened)


@app.command(epilog="Example: volition evaluate m.bundle sessions/m.h5 --baselines --report m.html")
def evaluate(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A decoder bundle.")],
    session: Annotated[Path, typer.Argument(help="A session file (.h5).")],
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Fit ridge, Kalman filter and GRU beside it.")
    ] = False,
    split: Annotated[str, typer.Option(help="all, train, valid or test.")] = "test",
    report: Annotated[
        Path | None, typer.Option(help="Write an HTML page with tables and plots.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a bundle on a recorded session, causally, beside what a lab would use otherwise."""
    _needs_training()
    from clients.cli.reports import print_evaluation
    from decoder.bundles.bundle import open_bundle
    from streaming.sessions import format as sessions
    from training.evaluation.evaluate import evaluate as run

    console = _console(stderr=True)
    opened, loaded = open_bundle(path), sessions.load(session)
    with console.status("decoding…") as status:
        result = run(
            opened, loaded, split=_split(split), baselines=baselines,
            unit_counts=report is not None, say=lambda what: status.update(f"{what}…"),
        )  # fmt: skip
    if report is not None:
        from training.evaluation.report import write_report

        write_report(result, report)
    if as_json:
        typer.echo(json.dumps(result.as_dict(), indent=2))
    else:
        print_evaluation(_console(), result)


@app.command(epilog="Example: volition record -o sessions --seconds 60 --name today")
def record(
    output: OutDir = Path("sessions"),
    name: Annotated[str | None, typer.Option(help="Session id [date and time].")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=5.0, help="Labelled seconds; else until Ctrl-C.")
    ] = None,
    spikes: Annotated[str | None, typer.Option(help="LSL spike stream by name.")] = None,
    stream_type: Annotated[
        str, typer.Option(help="Spikes, SpikeCounts or SpikeEvents.")
    ] = "Spikes",
    kinematics: Annotated[str | None, typer.Option(help="LSL kinematics stream by name.")] = None,
    markers: Annotated[str | None, typer.Option(help="LSL marker stream by name.")] = None,
    subject: Annotated[str, typer.Option()] = "unknown",
    repair: Annotated[
        Path | None, typer.Option(help="Make a session of a .recording that was cut short.")
    ] = None,
) -> None:
    """Record live streams as a session, which `pretrain`, `adapt` and `evaluate` read."""
    from clients.cli.reports import run_recording, session_of_recording
    from streaming.inlets.spikes import StreamQuery
    from streaming.recording.record import RecordSettings

    if repair is not None:
        session_of_recording(_console(), repair, output)
        return
    settings = RecordSettings(
        spikes=StreamQuery(kind=cast("StreamKind", stream_type), name=spikes),
        kinematics=kinematics,
        markers=markers,
    )
    run_recording(_console(), output, name, settings, subject=subject, seconds=seconds)


@app.command(epilog="Example: volition decode monkey.bundle --tick-ms 5 --stream-name rig-spikes")
def decode(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A decoder bundle.")],
    tick_ms: Annotated[float | None, typer.Option(help="Time between decodes [10].")] = None,
    stream_type: Annotated[
        str | None, typer.Option(help="Spikes, SpikeCounts or SpikeEvents [Spikes].")
    ] = None,
    stream_name: Annotated[str | None, typer.Option(help="LSL stream by name.")] = None,
    address: Annotated[
        str | None, typer.Option(help=f"ZeroMQ address [{DEFAULT_ADDRESS}].")
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="ZeroMQ address to take commands on [none].")
    ] = None,
    control_open: Annotated[
        bool | None, typer.Option("--control-open", help="Let other machines give commands.")
    ] = None,
    stale_after_ms: Annotated[
        float | None, typer.Option(help="Age of the newest spike that stops decoding [250].")
    ] = None,
    fault_speed: Annotated[
        float | None,
        typer.Option(help="Speed after the filters, m/s, above which it is a fault [5]."),
    ] = None,
    provider: Annotated[str | None, typer.Option(help="auto, cpu or cuda [auto].")] = None,
    require_provider: Annotated[
        bool | None, typer.Option("--require-provider", help="Refuse to run on another provider.")
    ] = None,
    min_known_share: Annotated[
        float | None, typer.Option(help="Share of the bundle's units a stream must have [0.5].")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="ONNX Runtime's threads [1].")] = None,
) -> None:
    """Decode live: LSL spikes in, cursor velocity out, until Ctrl-C or SIGTERM.

    Settings come from options, then VOLITION_… variables, then defaults.
    """
    from decoder.bundles.bundle import open_bundle
    from streaming.daemon.loop import Daemon
    from streaming.daemon.settings import DaemonSettings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    given = {
        "tick_ms": tick_ms, "stream_type": stream_type, "stream_name": stream_name,
        "address": address, "control": control, "control_open": control_open,
        "stale_after_ms": stale_after_ms, "fault_speed": fault_speed,
        "provider": provider, "require_provider": require_provider,
        "min_known_share": min_known_share, "threads": threads,
    }  # fmt: skip
    settings = _settings(DaemonSettings, given)
    Daemon(open_bundle(path), settings).serve()


@app.command(epilog="Example: volition serve --bundle monkey.bundle --home /data/volition")
def serve(
    bundle: Annotated[
        Path | None, typer.Option(help="Decode with it, unless it was given before.")
    ] = None,
    home: Annotated[
        Path | None, typer.Option(help="Folder of decoders, calibrations and journal [volition].")
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address [127.0.0.1]; others need a token.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port [8000].")] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of settings (docs/REST.md).")
    ] = None,
    keep_daemon: Annotated[
        bool | None, typer.Option("--keep-daemon", help="Leave it decoding at the end.")
    ] = None,
) -> None:
    """Serve the REST interface and keep a decode daemon running, until Ctrl-C or SIGTERM.

    Settings come from options, then VOLITION_… variables, then the file, then defaults.
    """
    _needs_training()
    import os

    from server.api.app import serve as run
    from server.settings import CONFIG_FILE, ServerSettings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    if config is not None:
        os.environ[CONFIG_FILE] = str(config)
    given = {"home": home, "host": host, "port": port, "keep_daemon": keep_daemon}
    run(_settings(ServerSettings, given), bundle=bundle)


@app.command(epilog="Example: volition calibrate --seconds 40 --labels intention")
def calibrate(
    seconds: Annotated[float, typer.Option(min=5.0, help="Labelled data to collect.")] = 40.0,
    method: Annotated[
        str, typer.Option(help="auto, units, units+head, full, scratch, kalman or ridge.")
    ] = "auto",
    labels: Annotated[
        str, typer.Option(help="kinematics, intention or retrospective: what velocity means.")
    ] = "kinematics",
    promote: Annotated[
        str, typer.Option(help="auto: decode with it if it is better; manual or never: only score.")
    ] = "auto",
    shadow: Annotated[
        bool, typer.Option("--shadow", help="First decode live beside the active decoder.")
    ] = False,
    allow: Annotated[
        float | None, typer.Option(help="Seconds of learning; left out: as the model needs.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Learn from an earlier calibration's data, by its id.")
    ] = None,
    kinematics: Annotated[
        str | None, typer.Option(help="LSL stream by name; left out: the only one of its type.")
    ] = None,
    markers: Annotated[str | None, typer.Option(help="The same.")] = None,
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8000",
    token: Annotated[
        str | None, typer.Option(envvar="VOLITION_TOKEN", help="The server's token.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Recalibrate the live decoder to today's units, through a server; Ctrl-C cancels."""
    from clients.calibrate import calibrate as run
    from clients.control import ControlClient

    given = {
        "seconds": seconds, "method": method, "labels": labels, "promote": promote,
        "shadow": shadow, "allowed_s": allow, "data": data, "kinematics": kinematics,
        "markers": markers,
    }  # fmt: skip
    with ControlClient(url, token=token) as client:
        sys.exit(run(_console(stderr=as_json), client, given, as_json=as_json))


@app.command(epilog="Example: volition replay sessions/monkey.h5 --from test --score")
def replay(
    session: Annotated[Path, typer.Argument(help="A session file (.h5).")],
    split: Annotated[str, typer.Option("--from", help="all, train, valid or test.")] = "all",
    seconds: Annotated[float | None, typer.Option(help="Only the first seconds of it.")] = None,
    speed: Annotated[float, typer.Option(help="Recorded seconds per second.")] = 1.0,
    loop: Annotated[bool, typer.Option("--loop", help="Start over at the end, for ever.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until somebody listens.")] = False,
    lead: Annotated[float, typer.Option(min=0.0, help="Seconds before the first event.")] = 1.5,
    score: Annotated[
        bool, typer.Option("--score", help="Subscribe to the daemon and print its live R².")
    ] = False,
    address: Address = DEFAULT_ADDRESS,
    as_json: Json = False,
) -> None:
    """Stream a recorded session over LSL as if it were live."""
    from clients.cli.reports import play, play_and_score
    from decoder.errors import SettingsError
    from streaming.recording.replay import ReplaySettings

    if score and (loop or speed != 1.0):
        raise SettingsError("--score needs the recording's own timing: no --loop, no --speed")
    settings = ReplaySettings(
        split=_split(split), seconds=seconds, speed=speed, loop=loop,
        wait_for_consumer=wait or score, lead_s=lead,
    )  # fmt: skip
    if score:
        play_and_score(_console(), session, settings, address, as_json=as_json)
    else:
        play(_console(stderr=True), session, settings)


@app.command(epilog="Example: volition watch --json | head")
def watch(
    address: Address = DEFAULT_ADDRESS,
    as_json: Annotated[bool, typer.Option("--json", help="One line a frame.")] = False,
) -> None:
    """Show the live velocity, state and latency of a daemon."""
    from clients.watch import watch as show

    show(_console(), address, as_json=as_json)


@app.command(epilog="Example: volition watchdog --publish tcp://127.0.0.1:5558")
def watchdog(
    publish: Annotated[str, typer.Option(help="ZeroMQ address that the rig subscribes to.")],
    address: Address = DEFAULT_ADDRESS,
    after_ms: Annotated[
        float, typer.Option(min=1.0, help="Without a frame, until it says stop itself.")
    ] = 50.0,
) -> None:
    """Pass a daemon's frames on; when they stop, publish velocity zero and not valid."""
    from streaming.daemon.watchdog import Watchdog

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    Watchdog(address, publish, after_s=after_ms / 1e3).serve()


@app.command(epilog="Example: volition relay --name rig-velocity --rate 50")
def relay(
    name: Annotated[str, typer.Option(help="Of the LSL stream.")],
    address: Address = DEFAULT_ADDRESS,
    rate: Annotated[float, typer.Option(help="Samples a second.")] = 50.0,
    stale_ms: Annotated[float, typer.Option(help="An older frame moves nothing.")] = 100.0,
) -> None:
    """Send a daemon's velocity over LSL (vel_x, vel_y, m/s), at a regular rate."""
    from clients.relay import Relay, RelaySettings

    settings = RelaySettings(name=name, address=address, rate_hz=rate, stale_s=stale_ms / 1e3)
    with Relay(settings) as running:
        running.serve()


@app.command(epilog="Example: volition demo --seconds 30 --json")
def demo(
    seconds: Annotated[float, typer.Option(min=5.0, help="How long to decode.")] = 30.0,
    family: Annotated[
        str, typer.Option(help="poyo (reads a window) or possm (carries a state).")
    ] = "poyo",
    picture: Annotated[
        Path | None, typer.Option(help="Keep the last view and the score as SVG.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Decode a simulated session live, in separate processes, and print the score.

    The shipped bundle decodes the test domain of the session that it was trained on, streamed
    over real LSL; true and decoded velocity are drawn side by side.
    """
    from clients.cli.demo import demo as run

    console = _console(stderr=as_json)
    sys.exit(run(console, seconds=seconds, as_json=as_json, family=family, picture=picture))


@app.command(epilog="Example: volition task center-out --trials 64 --window --log trials.jsonl")
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
    console = _console(stderr=True)
    with server_paused_too(console, url, token) as on_pause:
        if lines:
            play_lines(settings, block, window=window, on_pause=on_pause)
            return
        scores = play_block(
            console, settings, block, window=window, lead_s=lead, wait=wait, on_pause=on_pause
        )
    report_scores(_console(), scores, as_json=as_json)


@app.command(epilog="Example: volition score trials.jsonl --report page.html")
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
    report_scores(_console(), scores, as_json=as_json)


@app.command(epilog="Example: volition participant --prefix rig --units 96 --subject 9 --seed 1")
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


@app.command(epilog="Example: volition rig --seed 1 --trials 32 --report rig.html")
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
    _needs_training()
    from clients.participant.drift import Drift
    from clients.rig.command import run_loops

    given = {
        "preset": preset, "method": method, "task": name, "trials": trials, "seconds": seconds,
        "labels": labels, "gain": gain, "tick_ms": tick_ms,
        "drift": Drift(replaced=replaced, turned_deg=turned),
    }  # fmt: skip
    run_loops(
        _console(stderr=as_json), seed or [1], given,
        jobs=jobs, output=output, report=report, picture=picture, as_json=as_json,
    )  # fmt: skip


bench_app = typer.Typer(help="Measure speed, beside torch_brain in the same run.")
app.add_typer(bench_app, name="bench")


@bench_app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    preset: Annotated[list[str] | None, typer.Option(help="May be given again.")] = None,
    runs: Annotated[int, typer.Option(min=10, help="Decodes a case.")] = 200,
    as_json: Json = False,
) -> None:
    """Time a tick of the runtime against torch_brain's eager POYO, on the same windows."""
    if context.invoked_subcommand is not None:
        return
    _needs_training()
    from clients.benches.ticks import bench as run
    from clients.cli.reports import print_bench

    cases = run(_console(stderr=True), presets=preset or ["stream", "rt", "poyo-1.3m"], runs=runs)
    if as_json:
        typer.echo(json.dumps(cases, indent=2))
    else:
        print_bench(_console(), cases)


@bench_app.command("train", epilog="Example: volition bench train --preset rt --json")
def bench_train(
    preset: Annotated[list[str] | None, typer.Option(help="May be given again.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    spikes: Annotated[int, typer.Option(min=1, help="About how many a window holds.")] = 3000,
    steps: Annotated[int, typer.Option(min=1)] = 5,
    as_json: Json = False,
) -> None:
    """Time a training step against torch_brain's eager POYO, on the same batches."""
    _needs_training()
    from clients.cli.reports import print_bench_train
    from training.studies.bench_train import bench_train as run

    cases = run(
        _console(stderr=True), presets=preset or ["rt"], batch_size=batch_size, spikes=spikes,
        steps=steps,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(cases, indent=2))
    else:
        print_bench_train(_console(), cases)


@bench_app.command("recalibrate", epilog="Example: volition bench recalibrate --preset rt --json")
def bench_recalibrate(
    preset: Annotated[str, typer.Option(help="stream or rt.")] = "stream",
    runs: Annotated[int, typer.Option(min=1, help="Days of an unseen subject.")] = 5,
    seconds: Annotated[float, typer.Option(min=5.0, help="Labelled data of each.")] = 40.0,
    as_json: Json = False,
) -> None:
    """Time a whole recalibration, from the last sample to the new decoder's first frame."""
    _needs_training()
    from clients.benches.recalibration import bench
    from clients.harness.server import SHIPPED
    from decoder.errors import SettingsError

    if preset not in SHIPPED:
        raise SettingsError(f"preset {preset!r}; expected {' or '.join(SHIPPED)}")
    result = bench(_console(stderr=as_json), preset=preset, runs=runs, seconds=seconds)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    elif result["took_s_p50"] is not None:
        _console().print(
            f"{result['promoted']} of {runs} promoted, p50 [bold]{result['took_s_p50']:.1f} s[/] "
            "from the last sample to the first frame"
        )


@bench_app.command("corpus", epilog="Example: volition bench corpus sessions --json")
def bench_corpus(
    folder: Annotated[Path, typer.Argument(help="A folder of sessions.")],
    preset: Annotated[str, typer.Option()] = "rt",
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    steps: Annotated[int, typer.Option(min=1)] = 40,
    as_json: Json = False,
) -> None:
    """Time opening and training on a whole corpus, beside one of its sessions."""
    _needs_training()
    from clients.cli.reports import print_bench_corpus
    from training.studies.bench_corpus import bench_corpus as run

    result = run(_console(stderr=True), folder, preset=preset, batch_size=batch_size, steps=steps)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        print_bench_corpus(_console(), result)
