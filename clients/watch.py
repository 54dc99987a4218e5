"""Shows a daemon in the terminal: velocity, state, latency; or prints one JSON line per frame."""

from __future__ import annotations

import os
import sys
import time

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from clients.subscriber import CursorSubscriber, StatusSubscriber
from streaming.wire import messages as wire

REFRESH_S = 0.05
SILENT_S = 0.5
FULL_SCALE = 0.4  # m/s at the end of a bar
HALF_BAR = 24
COLOURS = {
    "decoding": "green",
    "ready": "cyan",
    "warming": "yellow",
    "stale": "red",
    "fault": "red",
}


def watch(console: Console, address: str, *, as_json: bool) -> None:
    """Show frames until Ctrl-C."""
    if as_json:
        _print_lines(address)
        return
    status_feed = StatusSubscriber(address)
    status: wire.Status | None = None
    with CursorSubscriber(address, latest_only=True, max_age_s=SILENT_S) as cursor, Live(
        console=console, auto_refresh=False
    ) as live:  # fmt: skip
        try:
            frame: wire.CursorFrame | None = None
            while True:
                newest = cursor.receive(timeout_s=0.5)
                frame = newest or frame
                status = status_feed.receive() or status
                silent = cursor.is_stale(after_s=SILENT_S)
                live.update(_panel(address, frame, status, silent), refresh=True)
                time.sleep(REFRESH_S)
        except KeyboardInterrupt:
            return
        finally:
            status_feed.close()


def _print_lines(address: str) -> None:
    with CursorSubscriber(address, max_age_s=None) as cursor:
        try:
            for frame in cursor:
                sys.stdout.buffer.write(msgspec.json.encode(frame) + b"\n")
                sys.stdout.buffer.flush()
        except KeyboardInterrupt:
            return
        except BrokenPipeError:  # as with `| head`; without this, Python's flush at exit fails too
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _panel(
    address: str, frame: wire.CursorFrame | None, status: wire.Status | None, silent: bool
) -> Panel:
    if frame is None:
        return Panel(f"waiting for frames on {address}", title="volition watch")
    state = "no frames" if silent else frame.state
    colour = "red" if silent else COLOURS.get(frame.state, "white")
    lines = [
        Text.assemble((f" {state} ", f"bold reverse {colour}"), f"  {frame.decoder}"),
        *(_bar(axis, value, valid=frame.valid and not silent)
          for axis, value in zip("xy", frame.velocity, strict=True)),
        Text(f"tick {frame.latency_ms:6.2f} ms   decode {frame.decode_ms:6.2f} ms   "
             f"{frame.n_spikes:5d} spikes in window   frame {frame.seq}"),
    ]  # fmt: skip
    if status is not None:
        lines.append(_status_line(status))
        if status.unit_faults is not None:
            lines += [Text(line, style="yellow") for line in status.unit_faults.sentences()]
    return Panel(Group(*lines), title="volition watch", border_style=colour)


def _status_line(status: wire.Status) -> Text:
    tail = status.latency
    latency = f"p50 {tail.p50:.2f}  p99 {tail.p99:.2f}  p99.9 {tail.p999:.2f} ms" if tail else "-"
    return Text(
        f"last second: {latency}   {status.spikes_per_s:.0f} spikes/s   "
        f"{status.skipped_ticks} skipped ticks   {status.unknown_units} unknown and "
        f"{status.missing_units} missing units   {_excluded(status)}{_drift(status)}"
        f"{status.detail}",
        style="dim",
    )


def _excluded(status: wire.Status) -> str:
    return f"{status.excluded_units} excluded   " if status.excluded_units else ""


def _drift(status: wire.Status) -> str:
    if status.distance is None or status.distance_limit is None:
        return ""
    return f"distance {status.distance:.2f} (usual below {status.distance_limit:.2f})   "


def _bar(axis: str, value: float, *, valid: bool) -> Text:
    length = min(HALF_BAR, round(abs(value) / FULL_SCALE * HALF_BAR))
    left = "█" * length if value < 0 else ""
    right = "█" * length if value > 0 else ""
    number = f"{value:+.3f} m/s" if valid else "  invalid  "
    return Text.assemble(
        f"{axis} ",
        (left.rjust(HALF_BAR), "magenta"), "│", (right.ljust(HALF_BAR), "cyan"),
        (f" {number}", "bold" if valid else "dim"),
    )  # fmt: skip
