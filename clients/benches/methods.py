"""Compares the methods of recalibration on a recorded session, through the REST API.

    python -m clients.benches.methods BUNDLE SESSION --seconds 40 --seconds 120 -o docs/methods.json

For each length and method, a server, its daemon and a replay of the training domain run as child
processes, and the calibration collects from its start. The new decoder is scored offline on the
test domain, at every tick of 10 ms. The table also has ridge on the same seconds, read from the
file.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from clients.benches.recalibration import recalibrate
from decoder.bundles.bundle import open_bundle
from decoder.errors import StreamError
from decoder.files import write_text
from server.schemas import CalibrationRequest, Method
from streaming.sessions import format as sessions
from streaming.sessions.session import Session

TICK_S = 0.01
Row = dict[str, Any]


def main(
    bundle: Path,
    session: Path,
    seconds: Annotated[list[float], typer.Option()] = [40.0, 60.0, 120.0],  # noqa: B006
    method: Annotated[list[str] | None, typer.Option(help="Method; may be repeated [all].")] = None,
    allow: Annotated[float, typer.Option(help="Seconds of learning.")] = 35.0,
    output: Annotated[Path | None, typer.Option("-o")] = None,
) -> None:
    """Run all methods, print a table and write JSON."""
    console = Console(markup=False)
    recorded = sessions.load(session)
    rows: list[Row] = []
    for length in seconds:
        rows.append({"method": "ridge, offline", "seconds": length, "r2": ridge(recorded, length)})
        for name in method or get_args(Method):
            rows.append(calibrated(bundle, recorded, length, name, allow))
            console.print(rows[-1])
            if output is not None:
                write_text(
                    output, json.dumps({"bundle": bundle.name, "rows": rows}, indent=2) + "\n"
                )
    table = Table(title=f"R² on the test domain of {recorded.session_id}", title_justify="left")
    for name in ("seconds", "method", "R²", "chosen", "held out", "last sample to verdict, s"):
        table.add_column(name)
    for row in rows:
        table.add_row(*(str(row.get(k, "")) for k in
                        ("seconds", "method", "r2", "chosen", "held_out", "took_s")))  # fmt: skip
    console.print(table)


def calibrated(bundle: Path, session: Session, seconds: float, method: str, allow: float) -> Row:
    """Run one calibration through the REST API and score its decoder."""
    request = CalibrationRequest(
        seconds=seconds, method=method, promote="never", allowed_s=allow,  # type: ignore[arg-type]
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flow = recalibrate(
            bundle, session, request, folder, before_s=0.0, after_s=0.0, split="train"
        )
        ended = flow.calibration
        if ended is None or ended.candidate is None:
            raise StreamError(f"{method} on {seconds:g} s: {ended.problem if ended else ''}")
        made = folder / "home" / "decoders" / f"{ended.candidate}.bundle"
        score = domain_r2(made, session)
    held_out = ended.held_out
    return {
        "method": method,
        "seconds": seconds,
        "r2": round(score, 3),
        "chosen": ended.method,
        "held_out": round(held_out.candidate or np.nan, 3) if held_out else None,
        "took_s": round(ended.took_s or np.nan, 1),
    }


def domain_r2(bundle: Path, session: Session) -> float:
    """Causal R² on the session's test domain."""
    from training.baselines.ridge import r2
    from training.evaluation.offline import decode_split

    decoded = decode_split(open_bundle(bundle), session, "test", tick_s=TICK_S)
    return r2(session.velocity_at(decoded.times), decoded.velocity).r2_mean


def ridge(session: Session, seconds: float) -> float:
    """R² of ridge fitted on the same seconds, with the penalty chosen on their last fifth."""
    from training.baselines.ridge import ridge_score
    from training.calibration.blocks import first_seconds, hold_out_last_fifth

    held_out = hold_out_last_fifth(first_seconds(session, seconds))
    return round(ridge_score(replace(held_out, test_domain=session.test_domain)).r2_mean, 3)


if __name__ == "__main__":
    typer.run(main)
