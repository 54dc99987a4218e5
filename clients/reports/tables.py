"""Results of the verbs as tables, and as dictionaries for scripts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from decoder.bundles.bundle import Bundle
from decoder.bundles.manifest import GRAPH, MANIFEST, TABLES, WEIGHTS
from streaming.faults import Faults
from streaming.sessions.intervals import duration_s, within
from streaming.sessions.plausible import faults_in
from streaming.sessions.session import Session

if TYPE_CHECKING:
    from clients.harness.live import LiveScore
    from training.evaluation.evaluate import Evaluation


VERIFIED = ("verified", "green")


def _facts(title: str | Text) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    return table


def session_summary(session: Session) -> dict[str, Any]:
    """Units, rates (Hz), minutes, domains and kinematics of a session."""
    seconds = duration_s(session.domain)
    inside = within(session.spike_times, session.domain)
    rates = np.bincount(session.spike_units[inside], minlength=session.n_units) / seconds
    speed = np.linalg.norm(session.cursor_vel, axis=1)
    return {
        "session_id": session.session_id,
        "subject_id": session.subject_id,
        "source": session.source,
        "recorded_at": None if session.recorded_at is None else session.recorded_at.isoformat(),
        "units": session.n_units,
        "spikes": len(session.spike_times),
        "spikes_in_domain": int(inside.sum()),
        "rate_hz": {
            "median": float(np.median(rates)),
            "min": float(rates.min()),
            "max": float(rates.max()),
            "population": float(rates.sum()),
        },
        "minutes": seconds / 60,
        "gaps": len(session.domain) - 1,
        "trials": 0 if session.trials is None else len(session.trials.intervals),
        "domains_s": {
            split: duration_s(session.intervals(split)) for split in ("train", "valid", "test")
        },
        "kinematics": {
            "rate_hz": float(1 / np.median(np.diff(session.cursor_times))),
            "speed_p50_m_s": float(np.median(speed)),
            "speed_p99_m_s": float(np.percentile(speed, 99)),
            "position_range_m": [float(x) for x in np.ptp(session.cursor_pos, axis=0)],
        },
        "unit_faults": asdict(faults_in(session)),
        "notes": list(session.notes),
        "block_notes": [asdict(note) for note in session.block_notes],
    }


def print_session(console: Console, session: Session, path: Path) -> None:
    """Print a session's summary as a table."""
    s = session_summary(session)
    rate, kinematics, domains = s["rate_hz"], s["kinematics"], s["domains_s"]
    table = _facts(Text.assemble((s["session_id"], "bold"), f"  {path}"))
    table.add_row("subject", f"{s['subject_id']}, {s['source']}")
    if session.recorded_at is not None:
        table.add_row("recorded", f"{session.recorded_at:%Y-%m-%d %H:%M}")
    table.add_row("units", f"{s['units']}")
    table.add_row(
        "rates",
        f"median {rate['median']:.1f} Hz, {rate['min']:.2f} to {rate['max']:.1f}; "
        f"all together {rate['population']:.0f} spikes/s",
    )
    table.add_row("length", f"{s['minutes']:.1f} min, {s['gaps']} gaps, {s['trials']} trials")
    table.add_row("domains", ", ".join(f"{k} {v:.0f} s" for k, v in domains.items()))
    table.add_row(
        "kinematics",
        f"{kinematics['rate_hz']:.0f} Hz, speed p50 {kinematics['speed_p50_m_s']:.3f} "
        f"p99 {kinematics['speed_p99_m_s']:.3f} m/s",
    )
    for note in session.block_notes:
        at_s = note.time_s - session.domain[0, 0]
        table.add_row("written", Text(f"at {at_s:.1f} s: {note.text}"))
    found = Faults(**s["unit_faults"]).sentences()
    for note in dict.fromkeys([*s["notes"], *found]):
        table.add_row("note", Text(note, "yellow"))
    console.print(table)


def print_bundle(console: Console, bundle: Bundle) -> None:
    """Print a verified bundle as a table."""
    manifest = bundle.manifest
    table = _facts(Text.assemble((manifest.decoder_id, "bold"), f"  {bundle.path}"))
    table.add_row("model", f"{manifest.family}, preset {manifest.preset}")
    table.add_row("units", f"{len(manifest.unit_ids)} of session {manifest.session_id}")
    table.add_row("reads", manifest.sizes.reads)
    table.add_row("outputs", ", ".join(f"{o.name} ({o.unit})" for o in manifest.outputs))
    seal = (
        Text.assemble("its own checksum ", VERIFIED) if bundle.is_sealed else Text.assemble(
            ("no checksum of its own", "yellow"), ": from an earlier version, export the run again"
        )
    )  # fmt: skip
    table.add_row(MANIFEST, seal)
    for name in (GRAPH, TABLES, WEIGHTS):
        size = (bundle.path / name).stat().st_size
        table.add_row(
            name,
            Text.assemble(
                f"{size / 1e6:.2f} MB, sha256 {manifest.checksums[name][:12]}… ", VERIFIED
            ),
        )
    for name, value in {**manifest.metrics, **manifest.provenance}.items():
        table.add_row(
            name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value)
        )
    console.print(table)


def print_score(console: Console, score: LiveScore) -> None:
    """Print a live score, ridge's score and the timing as tables."""
    table = Table(title=f"live decoding of {score.session}", title_justify="left")
    table.add_column("causal velocity R²")
    for axis in ("x", "y", "mean"):
        table.add_column(axis, justify="right")
    table.add_row(
        Text.assemble((score.decoder, "bold"), ", live"),
        *(Text(f"{v:.3f}", "bold") for v in (score.r2_x, score.r2_y, score.r2_mean)),
    )
    table.add_row(
        "ridge, 10 lags of 50 ms, offline",
        *(
            "—" if v is None else f"{v:.3f}"
            for v in (score.ridge_r2_x, score.ridge_r2_y, score.ridge_r2_mean)
        ),
    )
    console.print(table)
    facts = _facts("")
    states = ", ".join(f"{n} {state}" for state, n in score.states.items())
    facts.add_row("frames", f"{score.frames}, {score.valid_frames} valid ({states})")
    facts.add_row("gaps in sequence", f"{score.gaps}")
    facts.add_row("late ticks", f"{score.late_ticks} of {score.ticks} ({score.late_share:.2%})")
    facts.add_row(
        "window end to arrival",
        ", ".join(f"{name} {value:.2f} ms" for name, value in score.arrival_ms.items()),
    )
    console.print(facts)


def print_evaluation(console: Console, evaluation: Evaluation) -> None:
    """Print an evaluation as a table, with the best decoder in bold."""
    result = evaluation.as_dict()
    table = Table(
        title=f"{result['session']}, {result['split']} domain, {result['seconds']:.0f} s, causal",
        title_justify="left",
    )
    table.add_column("velocity R²")
    for name in ("x", "y", "mean", "correlation"):
        table.add_column(name, justify="right")
    table.add_column("chosen on validation")
    best = max(row["r2_mean"] for row in result["decoders"])
    for row in result["decoders"]:
        style = "bold" if row["r2_mean"] == best else ""
        table.add_row(
            row["name"],
            *(f"{row[k]:.3f}" for k in ("r2_x", "r2_y", "r2_mean", "correlation_mean")),
            row["chosen"],
            style=style,
        )
    console.print(table)
    facts = _facts("")
    tail = result["tick_ms"]
    facts.add_row("R² at every tick", f"{result['r2_mean_every_tick']:.3f}")
    facts.add_row(
        "cost of a tick", ", ".join(f"{name} {value:.2f} ms" for name, value in tail.items())
    )
    facts.add_row("normalized latency", f"{result['normalized_latency']:.3f}")
    console.print(facts)


def print_bench(console: Console, cases: list[dict[str, Any]]) -> None:
    """Print the costs of a tick as a table."""
    table = Table(title="cost of a tick, ms, one thread", title_justify="left")
    for name in ("preset", "spikes/s"):
        table.add_column(name, justify="right")
    for name in ("runtime p50", "p99", "torch_brain p50", "p99 ", "faster (p50)"):
        table.add_column(name, justify="right")
    for case in cases:
        ours, theirs = case["runtime_ms"], case["torch_brain_ms"]
        reference: tuple[str, ...] = ("—", "—", "—")
        if theirs:
            faster = theirs["p50"] / ours["p50"]
            reference = (f"{theirs['p50']:.2f}", f"{theirs['p99']:.2f}", f"{faster:.1f}x")
        table.add_row(
            case["preset"], f"{case['spikes_per_s']:,}",
            Text(f"{ours['p50']:.2f}", "bold"), f"{ours['p99']:.2f}", *reference,
        )  # fmt: skip
    console.print(table)


def print_bench_train(console: Console, cases: list[dict[str, Any]]) -> None:
    """Print training speeds as a table."""
    table = Table(title="training, windows/s", title_justify="left")
    for name in ("preset", "device", "batch", "spikes per window", "ours", "torch_brain", "faster"):
        table.add_column(name, justify="right")
    for case in cases:
        speed = case["windows_per_s"]
        table.add_row(
            case["preset"], f"{case['device']}, {case['precision']}", f"{case['batch_size']}",
            f"{case['spikes_a_window']:,.0f}", Text(f"{speed['ours']:.0f}", "bold"),
            f"{speed['torch_brain']:.0f}", f"{case['speedup']:.1f}x",
        )  # fmt: skip
    console.print(table)


def print_bench_corpus(console: Console, result: dict[str, Any]) -> None:
    """Print the cost of a corpus as a table."""
    table = _facts(Text("a corpus, compared with one of its sessions", "bold"))
    table.add_row(
        "corpus",
        f"{result['sessions']} sessions, {result['units']:,} units, {result['hours']:.1f} h, "
        f"{result['gigabytes']:.2f} GB",
    )
    table.add_row("opened in", f"{result['open_s']:.1f} s")
    memory, speed = result["memory_mb"], result["windows_per_s"]
    table.add_row(
        "memory", f"{memory['opening']:.0f} MB to open, {memory['training']:+.0f} MB in training"
    )
    table.add_row(
        "windows/s",
        f"{speed['corpus']:.0f}, one session {speed['one session']:.0f}: "
        f"{result['of_one_session']:.2f} of it",
    )
    console.print(table)


def print_bench_recalibrate(console: Console, result: dict[str, Any]) -> None:
    """Print the times of recalibrations, by phase, and the ticks that they cost, as a table."""
    if result["took_s_p50"] is None:
        return
    n_runs = len(result["runs"])
    table = Table(
        title=f"{result['method']} on {result['seconds']:g} s: {result['promoted']} of {n_runs} "
        "promoted",
        title_justify="left",
    )
    for name in ("s, after the last sample", "p50", "worst"):
        table.add_column(name, justify="left" if name.startswith("s,") else "right")
    rows = {name: (value, result["phases_s_worst"][name]) for name, value in
            result["phases_s_p50"].items()}  # fmt: skip
    for name, (p50, worst) in rows.items():
        table.add_row(name, f"{p50:.3f}", f"{worst:.3f}")
    table.add_section()
    table.add_row(
        "first valid frame", f"{result['took_s_p50']:.3f}", f"{result['took_s_worst']:.3f}",
        style="bold",
    )  # fmt: skip
    console.print(table)
    before, during = result["ticks_before"], result["ticks_during"]
    console.print(
        f"missed {during['missed']} of {during['ticks']} ticks, late {during['late']}; as long "
        f"before: {before['missed']} of {before['ticks']}, {before['late']}"
    )
