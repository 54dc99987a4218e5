"""Verbs of live streams: record, decode, serve, calibrate, unattended, replay, watch, watchdog,
relay, demo.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from clients.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_URL,
    Address,
    CalibrationMethod,
    Json,
    Kinematics,
    LogJson,
    Markers,
    OutDir,
    ServerUrl,
    Token,
    require_training,
    settings_from,
    split_named,
    terminal,
)

if TYPE_CHECKING:
    from streaming.inlets.spikes import StreamKind

verbs = typer.Typer()


@verbs.command(epilog="Example: volition record -o sessions --seconds 60 --name today")
def record(
    output: OutDir = Path("sessions"),
    name: Annotated[str | None, typer.Option(help="Session id (default: date and time).")] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=5.0, help="Stop after this many labelled seconds (default: at Ctrl-C)."),
    ] = None,
    spikes: Annotated[str | None, typer.Option(help="Name of the LSL spike stream.")] = None,
    stream_type: Annotated[
        str, typer.Option(help="Spikes, SpikeCounts or SpikeEvents.")
    ] = "Spikes",
    kinematics: Kinematics = None,
    markers: Markers = None,
    subject: Annotated[str, typer.Option()] = "unknown",
    repair: Annotated[
        Path | None, typer.Option(help="Make a session from an unfinished .recording.")
    ] = None,
) -> None:
    """Record live streams as a session for `pretrain`, `adapt` and `evaluate`."""
    from clients.reports.recordings import run_recording, session_of_recording
    from streaming.inlets.spikes import StreamQuery
    from streaming.recording.record import RecordSettings

    if repair is not None:
        session_of_recording(terminal(), repair, output)
        return
    settings = RecordSettings(
        spikes=StreamQuery(kind=cast("StreamKind", stream_type), name=spikes),
        kinematics=kinematics,
        markers=markers,
    )
    run_recording(terminal(), output, name, settings, subject=subject, seconds=seconds)


@verbs.command(epilog="Example: volition decode monkey.bundle --tick-ms 5 --stream-name rig-spikes")
def decode(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A decoder bundle.")],
    tick_ms: Annotated[
        float | None, typer.Option(help="Time between decodes (default: 10).")
    ] = None,
    stream_type: Annotated[
        str | None, typer.Option(help="Spikes, SpikeCounts or SpikeEvents (default: Spikes).")
    ] = None,
    stream_name: Annotated[str | None, typer.Option(help="Name of the LSL stream.")] = None,
    address: Annotated[
        str | None, typer.Option(help=f"ZeroMQ address (default: {DEFAULT_ADDRESS}).")
    ] = None,
    control: Annotated[
        str | None, typer.Option(help="ZeroMQ address for commands (default: none).")
    ] = None,
    control_open: Annotated[
        bool | None, typer.Option("--control-open", help="Accept commands from other machines.")
    ] = None,
    stale_after_ms: Annotated[
        float | None,
        typer.Option(help="Stop decoding when the newest spike is older (default: 250)."),
    ] = None,
    fault_speed: Annotated[
        float | None,
        typer.Option(help="Higher speeds after the filters, m/s, are a fault (default: 5)."),
    ] = None,
    provider: Annotated[str | None, typer.Option(help="auto, cpu or cuda (default: auto).")] = None,
    require_provider: Annotated[
        bool | None, typer.Option("--require-provider", help="Refuse to run on another provider.")
    ] = None,
    min_known_share: Annotated[
        float | None,
        typer.Option(help="Least share of the bundle's units in the stream (default: 0.5)."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Number of ONNX Runtime threads (default: 1).")
    ] = None,
    log_json: LogJson = None,
) -> None:
    """Decode live: LSL spikes in, cursor velocity out, until Ctrl-C or SIGTERM.

    Settings come from options, then VOLITION_… variables, then defaults.
    """
    from streaming.daemon.loop import run
    from streaming.daemon.settings import DaemonSettings

    given = {
        "tick_ms": tick_ms, "stream_type": stream_type, "stream_name": stream_name,
        "address": address, "control": control, "control_open": control_open,
        "stale_after_ms": stale_after_ms, "fault_speed": fault_speed,
        "provider": provider, "require_provider": require_provider,
        "min_known_share": min_known_share, "threads": threads, "log_json": log_json,
    }  # fmt: skip
    run(path, settings_from(DaemonSettings, given))


@verbs.command(epilog="Example: volition serve --bundle monkey.bundle --home /data/volition")
def serve(
    bundle: Annotated[
        Path | None, typer.Option(help="First decoder, if the server has none yet.")
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option(help="Folder for decoders, calibrations and journal (default: volition)."),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address (default: 127.0.0.1); any other needs a token.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port (default: 8000).")] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file with settings (docs/REST.md).")
    ] = None,
    keep_daemon: Annotated[
        bool | None, typer.Option("--keep-daemon", help="Leave the daemon running on exit.")
    ] = None,
    unattended: Annotated[
        str | None,
        typer.Option(
            help="Recalibrate without being asked: at an alarm, or every so many minutes; or off."
        ),
    ] = None,
    log_json: LogJson = None,
    log_file: Annotated[
        Path | None, typer.Option(help="File to log to as well; a new one begins at 10 MB.")
    ] = None,
) -> None:
    """Serve the REST interface and keep a decode daemon running, until Ctrl-C or SIGTERM.

    Settings come from options, then VOLITION_… variables, then the file, then defaults.
    """
    require_training()

    from server.api.app import serve as run
    from server.settings import CONFIG_FILE, ServerSettings
    from streaming import logs

    if config is not None:
        os.environ[CONFIG_FILE] = str(config)
    if log_json:
        os.environ["VOLITION_LOG_JSON"] = "true"  # also for the daemon
    given = {
        "home": home, "host": host, "port": port, "keep_daemon": keep_daemon,
        "unattended": unattended, "log_file": log_file,
    }  # fmt: skip
    settings = settings_from(ServerSettings, given)
    logs.set_up(as_json=settings.daemon.log_json, file=settings.log_file)
    run(settings, bundle=bundle)


@verbs.command(epilog="Example: volition calibrate --seconds 40 --labels intention")
def calibrate(
    seconds: Annotated[
        float, typer.Option(min=5.0, help="Seconds of labelled data to collect.")
    ] = 40.0,
    method: CalibrationMethod = "auto",
    labels: Annotated[
        str,
        typer.Option(
            help="kinematics, intention, retrospective, targets or decoded: the velocity to learn."
        ),
    ] = "kinematics",
    promote: Annotated[
        str,
        typer.Option(help="auto: switch if the candidate is better; manual, never: only score."),
    ] = "auto",
    shadow: Annotated[
        bool, typer.Option("--shadow", help="First compare it live with the active decoder.")
    ] = False,
    allow: Annotated[
        float | None,
        typer.Option(help="Seconds of learning (default: as many as the model needs)."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Id of an earlier calibration to learn from, instead of collecting; repeatable."
        ),
    ] = None,
    with_data: Annotated[
        list[str] | None,
        typer.Option(
            "--with", help="Id of an earlier calibration to learn from as well; repeatable."
        ),
    ] = None,
    subject: Annotated[
        str | None, typer.Option(help="Id of the subject, to store with the data.")
    ] = None,
    kinematics: Kinematics = None,
    markers: Markers = None,
    url: ServerUrl = DEFAULT_URL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Recalibrate the live decoder to today's units through a server. Ctrl-C cancels."""
    from clients.calibrate import calibrate as run
    from clients.control import ControlClient

    given = {
        "seconds": seconds, "method": method, "labels": labels, "promote": promote,
        "shadow": shadow, "allowed_s": allow, "data": data or None, "with_data": with_data or None,
        "subject": subject, "kinematics": kinematics, "markers": markers,
    }  # fmt: skip
    with ControlClient(url, token=token) as client:
        sys.exit(run(terminal(stderr=as_json), client, given, as_json=as_json))


@verbs.command(epilog="Example: volition unattended alarm --seconds 120")
def unattended(
    what: Annotated[
        str | None,
        typer.Argument(help="alarm, a number of minutes, off or freeze (default: show it)."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=5.0, help="Seconds of data to collect (default: 120).")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="As in `volition calibrate` (default: align).")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="As in `volition calibrate` (default: kinematics).")
    ] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="First compare live with the active decoder.")
    ] = False,
    kinematics: Kinematics = None,
    markers: Markers = None,
    url: ServerUrl = DEFAULT_URL,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Recalibrate without being asked: show, set or freeze it."""
    from clients.control import ControlClient
    from clients.unattended import unattended as run

    given = {
        "seconds": seconds, "method": method, "labels": labels, "shadow": shadow or None,
        "kinematics": kinematics, "markers": markers,
    }  # fmt: skip
    with ControlClient(url, token=token) as client:
        run(terminal(), client, what, given, as_json=as_json)


@verbs.command(epilog="Example: volition replay sessions/monkey.h5 --from test --score")
def replay(
    session: Annotated[Path, typer.Argument(help="A session file (.h5).")],
    split: Annotated[str, typer.Option("--from", help="all, train, valid or test.")] = "all",
    seconds: Annotated[float | None, typer.Option(help="Play only this many seconds.")] = None,
    speed: Annotated[float, typer.Option(help="Recorded seconds per second.")] = 1.0,
    loop: Annotated[
        bool, typer.Option("--loop", help="Start again at the end, until Ctrl-C.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until a stream has a consumer.")
    ] = False,
    lead: Annotated[float, typer.Option(min=0.0, help="Seconds before the first event.")] = 1.5,
    score: Annotated[
        bool, typer.Option("--score", help="Subscribe to the daemon and print its live R².")
    ] = False,
    address: Address = DEFAULT_ADDRESS,
    as_json: Json = False,
) -> None:
    """Stream a recorded session over LSL as if it were live."""
    from clients.reports.recordings import play, play_and_score
    from decoder.errors import SettingsError
    from streaming.recording.replay import ReplaySettings

    if score and (loop or speed != 1.0):
        raise SettingsError(
            "--score needs the recording's own timing; leave out --loop and --speed"
        )
    settings = ReplaySettings(
        split=split_named(split), seconds=seconds, speed=speed, loop=loop,
        wait_for_consumer=wait or score, lead_s=lead,
    )  # fmt: skip
    if score:
        play_and_score(terminal(), session, settings, address, as_json=as_json)
    else:
        play(terminal(stderr=True), session, settings)


@verbs.command(epilog="Example: volition watch --json | head")
def watch(
    address: Address = DEFAULT_ADDRESS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line per frame.")] = False,
) -> None:
    """Show the live velocity, state and latency of a daemon."""
    from clients.watch import watch as show

    show(terminal(), address, as_json=as_json)


@verbs.command(epilog="Example: volition watchdog --publish tcp://127.0.0.1:5558")
def watchdog(
    publish: Annotated[str, typer.Option(help="ZeroMQ address that the rig subscribes to.")],
    address: Address = DEFAULT_ADDRESS,
    after_ms: Annotated[
        float, typer.Option(min=1.0, help="Publish a stop after this long without a frame.")
    ] = 50.0,
) -> None:
    """Forward a daemon's frames; publish zero, not valid, when they stop."""
    from streaming.daemon.watchdog import Watchdog

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    Watchdog(address, publish, after_s=after_ms / 1e3).serve()


@verbs.command(epilog="Example: volition relay --name rig-velocity --rate 50")
def relay(
    name: Annotated[str, typer.Option(help="Name of the LSL stream.")],
    address: Address = DEFAULT_ADDRESS,
    rate: Annotated[float, typer.Option(help="Samples per second.")] = 50.0,
    stale_ms: Annotated[float, typer.Option(help="Ignore frames older than this.")] = 100.0,
) -> None:
    """Send a daemon's velocity over LSL (vel_x, vel_y, m/s), at a regular rate."""
    from clients.relay import Relay, RelaySettings

    settings = RelaySettings(name=name, address=address, rate_hz=rate, stale_s=stale_ms / 1e3)
    with Relay(settings) as running:
        running.serve()


@verbs.command(epilog="Example: volition demo --seconds 30 --json")
def demo(
    seconds: Annotated[float, typer.Option(min=5.0, help="How long to decode.")] = 30.0,
    family: Annotated[
        str, typer.Option(help="poyo (window model) or possm (streaming model).")
    ] = "poyo",
    picture: Annotated[
        Path | None, typer.Option(help="Save the last view and the score as SVG.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Decode a simulated session live, in separate processes, and print the score.

    The shipped bundle decodes the test domain of a session that it was trained on, over real LSL.
    The view shows true and decoded velocity.
    """
    from clients.reports.demo import demo as run

    console = terminal(stderr=as_json)
    sys.exit(run(console, seconds=seconds, as_json=as_json, family=family, picture=picture))
