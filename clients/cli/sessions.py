"""Verbs of sessions on disk: import, info, simulate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from clients.cli.options import (
    Json,
    OutDir,
    terminal,
)

verbs = typer.Typer()


@verbs.command("import", epilog="Example: volition import monkey.nwb -o sessions")
def import_(
    file: Annotated[
        Path, typer.Argument(help="A .nwb or .xdf recording, a foreign .h5, or a .recording.")
    ],
    output: OutDir = Path("sessions"),
    position: Annotated[str | None, typer.Option(help="Name of the position series.")] = None,
    velocity: Annotated[str | None, typer.Option(help="Name of the velocity series.")] = None,
    unit: Annotated[
        str | None,
        typer.Option(help="m, cm, mm, … or metres per unit, if the file has none or a wrong one."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(help="Columns of x and y, such as 2,3; -2 reverses one."),
    ] = None,
    spike_unit: Annotated[
        str | None, typer.Option(help="ms, us or samples per second, if spike times aren't in s.")
    ] = None,
    spikes_outside: Annotated[
        bool,
        typer.Option(
            "--spikes-outside", help="Accept a file with most spikes outside the kinematics."
        ),
    ] = False,
    name: Annotated[str | None, typer.Option(help="Session id (default: from the file).")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a session with the same id.")
    ] = False,
) -> None:
    """Convert an NWB or XDF file, or an unfinished recording, to a session."""
    from dataclasses import replace

    from clients.reports.tables import print_session
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
            f"{taken} exists and was left unchanged; choose another --name, or replace it "
            "with --force"
        )
    path = sessions.save(session, output, overwrite=force)
    print_session(terminal(), session, path)


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


@verbs.command(epilog="Example: volition info sessions/monkey.h5 --json")
def info(
    session: Annotated[Path, typer.Argument(help="A session file (.h5).")], as_json: Json = False
) -> None:
    """Print a session's units, rates, minutes, domains and kinematics."""
    from clients.reports.tables import print_session, session_summary
    from streaming.sessions import format as sessions

    loaded = sessions.load(session)
    if as_json:
        typer.echo(json.dumps(session_summary(loaded), indent=2))
    else:
        print_session(terminal(), loaded, session)


@verbs.command(epilog="Example: volition simulate --units 96 --minutes 10 --subject 3 --seed 7")
def simulate(
    units: Annotated[int, typer.Option(min=1, help="Number of units.")] = 96,
    minutes: Annotated[float, typer.Option(min=0.5, help="Length of the session.")] = 10.0,
    subject: Annotated[int, typer.Option(min=0, help="Number of the subject.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Number of the day: its units and reaches.")] = 0,
    task: Annotated[
        str | None,
        typer.Option(help="center_out, random_target or steering (default: chosen by the seed)."),
    ] = None,
    count: Annotated[
        int, typer.Option("--sessions", min=1, help="Number of days; seeds count up from --seed.")
    ] = 1,
    subjects: Annotated[
        int, typer.Option(min=1, help="Number of subjects that share the days, from --subject on.")
    ] = 1,
    total_units: Annotated[
        int | None, typer.Option(min=1, help="Units of all sessions together, instead of --units.")
    ] = None,
    output: OutDir = Path("sessions"),
) -> None:
    """Simulate a motor cortex: one session, or a corpus of many days and subjects."""
    from clients.reports.runs import simulate_corpus
    from clients.reports.tables import print_session
    from decoder.errors import SettingsError
    from streaming.sessions import format as sessions
    from training.data.simulate import TASKS
    from training.data.simulate import simulate as make

    if task not in (None, *TASKS):
        raise SettingsError(f"task {task!r}; expected {', '.join(TASKS)}")
    if count > 1:
        simulate_corpus(
            terminal(stderr=True), output, count, subjects=range(subject, subject + subjects),
            n_units=total_units or units * count, minutes=minutes, seed=seed,
            task=task,
        )  # fmt: skip
        return
    session = make(
        n_units=total_units or units, minutes=minutes, subject=subject, seed=seed,
        task=task,
    )  # fmt: skip
    path = sessions.save(session, output)
    print_session(terminal(), session, path)
