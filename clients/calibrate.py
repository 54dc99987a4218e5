"""`volition calibrate`: one recalibration through the server, with its progress and scores."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from clients.control import ControlClient
from clients.rest import ProblemError
from decoder.errors import SettingsError
from server.schemas import Calibration, CalibrationRequest, Scores

GOOD = ("promoted", "ready")
VERDICTS = {
    "promoted": ("bold green", "{candidate} is now decoding"),
    "ready": ("bold", "{candidate} is better; activate it when you are ready"),
    "undecided": (
        "bold yellow",
        "{verdict}. {before} stays active; activate {candidate} if you know better, or collect "
        "more data",
    ),
    "rejected": ("bold yellow", "{verdict}. {before} stays active"),
    "failed": ("bold red", "{problem}"),
    "interrupted": ("bold red", "{problem} Its data is kept; it can be resumed."),
    "cancelled": ("bold", ""),
}


def calibrate(
    console: Console, client: ControlClient, given: dict[str, Any], *, as_json: bool
) -> int:
    """Start, follow and print a calibration. Returns exit code 0 if the candidate is better."""
    try:
        request = CalibrationRequest(**{k: v for k, v in given.items() if v is not None})
    except ValidationError as error:
        raise SettingsError(
            "; ".join(f"{e['loc'][0]}: {e['msg']}, got {e['input']!r}" for e in error.errors())
        ) from error
    begun = client.start_calibration(request)
    calibration = begun
    try:
        with View(console, begun) as view:
            for calibration in client.follow(begun.id):
                view.show(calibration)
    except KeyboardInterrupt:
        with suppress(ProblemError):  # it has just ended
            client.cancel_calibration(begun.id)
        calibration = client.calibration(begun.id)
    if as_json:
        print(calibration.model_dump_json(indent=2))
    else:
        print_calibration(console, calibration)
    return 0 if calibration.state in GOOD else 1


class View:
    """Progress bars for collecting, learning and comparing."""

    def __init__(self, console: Console, calibration: Calibration) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<11}", style="bold", markup=False), BarColumn(),
            TextColumn("{task.fields[note]}", markup=False), TimeElapsedColumn(), console=console,
        )  # fmt: skip
        request = calibration.request
        self._collecting = self._progress.add_task("collecting", total=request.seconds, note="")
        self._learning = self._progress.add_task("learning", total=1.0, note="", start=False)
        self._shadowing = None
        if request.shadow:
            self._shadowing = self._progress.add_task(
                "shadowing", total=request.shadow_s, note="", start=False
            )

    def __enter__(self) -> View:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, calibration: Calibration) -> None:
        """Draw the current state of a calibration."""
        bars = self._progress
        bars.update(
            self._collecting,
            completed=calibration.collected_s,
            note=f"{calibration.collected_s:.0f} s, {calibration.spikes:,} spikes",
        )
        if calibration.state == "collecting":
            return
        bars.stop_task(self._collecting)
        bars.start_task(self._learning)
        bars.update(self._learning, completed=calibration.share, note=calibration.phase)
        if calibration.state == "training":
            return
        bars.stop_task(self._learning)
        if self._shadowing is not None:
            bars.start_task(self._shadowing)
            live = calibration.live
            note = "" if live is None else f"R² {_r2(live.candidate)} against {_r2(live.active)}"
            bars.update(self._shadowing, completed=live.seconds if live else 0.0, note=note)


def print_calibration(console: Console, calibration: Calibration) -> None:
    """The scores of both decoders, and the verdict."""
    if calibration.held_out is not None:
        table = Table(title="causal velocity R²", title_justify="left")
        for name in ("scored on", "before", "after"):
            table.add_column(name, justify="left" if name == "scored on" else "right")
        for name, scores in (("cross-validated", calibration.held_out), ("live", calibration.live)):
            if scores is not None:
                table.add_row(*_row(name, scores))
        console.print(table)
    if (found := calibration.distances) is not None:
        console.print(
            f"distance {_nats(found.active)} before (limit {_nats(found.active_limit)}), "
            f"{_nats(found.candidate)} after, on {found.seconds:.0f} s without labels"
        )
    for note in calibration.notes:
        console.print(Text(note, "yellow"))
    style, meaning = VERDICTS.get(calibration.state, ("bold", ""))
    meaning = meaning.format(
        candidate=calibration.candidate,
        before=calibration.before,
        problem=calibration.problem.detail if calibration.problem else "",
        verdict=calibration.verdict,
    )
    console.print(Text.assemble((calibration.state, style), f": {meaning}" if meaning else ""))
    if calibration.took_s is not None:
        console.print(
            f"{calibration.method} on {calibration.collected_s + calibration.earlier_s:.0f} s, "
            f"{calibration.took_s:.1f} s from the last sample to the verdict"
        )


def _row(name: str, scores: Scores) -> tuple[str, str, Text]:
    return (
        f"{name}, {scores.seconds:.0f} s",
        _r2(scores.active),
        Text(_r2(scores.candidate), "bold"),
    )


def _nats(distance: float | None) -> str:
    return "unknown" if distance is None else f"{distance:.2f}"


def _r2(score: float | None) -> str:
    return "no known units" if score is None else f"{score:.3f}"
