"""`volition demo`: decodes a simulated session live, end to end.

Three processes: this one (view and score), a decode daemon with the shipped bundle, and a
replay of the simulated session's test domain over LSL. Nothing is mocked; with `--json` only
the score is printed.
"""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
import time
from pathlib import Path

import numpy as np
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from clients.harness import live
from clients.harness.daemon import BUNDLES, TICK_MS, daemon, free_port
from clients.reports.tables import print_score
from decoder.arrays import Floats
from decoder.bundles.bundle import open_bundle
from decoder.errors import BundleError
from streaming.recording.replay import ReplaySettings
from streaming.sessions import format as sessions
from streaming.sessions.session import Session
from streaming.wire import messages as wire

FAMILIES = ("poyo", "possm")
# The first of the 24 sessions that every bundle was trained on; docs/DEMO.md has the commands.
SESSION = {"n_units": 96, "minutes": 10.0, "subject": 0, "seed": 100}
SHOWN_S = 8.0
WIDTH, HEIGHT = 96, 9
BRAILLE_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
REFRESH_S = 0.2


def demo(
    console: Console,
    *,
    seconds: float,
    as_json: bool,
    family: str = "poyo",
    picture: Path | None = None,
) -> int:
    """Run the demo and return the exit code. picture: save the last view and the score as SVG."""
    from training.data.simulate import simulate

    if family not in FAMILIES:
        raise BundleError(f"no demo bundle of family {family!r}; expected {', '.join(FAMILIES)}")
    bundle = BUNDLES / f"{family}.bundle"

    console.print("simulating a session that the shipped bundle was trained on…")
    session = simulate(**SESSION)  # type: ignore[arg-type]
    window_s = open_bundle(bundle).manifest.sizes.window_s
    settings = ReplaySettings(
        split="test",
        seconds=seconds + window_s,
        wait_for_consumer=True,
        name_prefix=f"volition-demo-{os.getpid()}",
    )
    address = f"tcp://127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory() as folder:
        path = sessions.save(session, folder)
        with daemon(bundle, address, f"{settings.name_prefix}-spikes"):
            view = None if as_json else View(console, session)
            try:
                frames = live.collect(path, settings, address, *([view.see] if view else []))
            finally:
                if view:
                    view.close()
    score = live.score(frames, session)
    if picture:
        save_picture(picture, frames, session, score)
    if as_json:
        print(json.dumps(score.as_dict(), indent=2))
    else:
        print_score(console, score)
    return 0


def save_picture(
    path: Path, frames: live.LiveFrames, session: Session, score: live.LiveScore
) -> None:
    """Save the last view of the demo and its score as SVG."""
    n_frames = max(i for i, frame in enumerate(frames.frames) if frame.valid) + 1
    until_last = live.LiveFrames(frames=frames.frames[:n_frames], mapping=frames.mapping)
    page = Console(record=True, width=WIDTH + 4, file=io.StringIO())
    page.print(draw(until_last.frames[-1], until_last, session))
    print_score(page, score)
    own_fonts = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    page.save_svg(str(path), title="volition demo", code_format=own_fonts)


class View:
    """The live view of true and decoded velocity, redrawn a few times per second."""

    def __init__(self, console: Console, session: Session) -> None:
        self._session = session
        self._live = Live(console=console, auto_refresh=False, transient=not console.is_terminal)
        self._live.start()
        self._drawn_at = 0.0
        self._enabled = console.is_terminal

    def see(self, frame: wire.CursorFrame, frames: live.LiveFrames) -> None:
        """Add a frame, and redraw if it is time."""
        if not self._enabled or time.monotonic() - self._drawn_at < REFRESH_S:
            return
        self._drawn_at = time.monotonic()
        self._live.update(draw(frame, frames, self._session), refresh=True)

    def close(self) -> None:
        """Stop redrawing; the last view stays on the screen."""
        self._live.stop()


def draw(frame: wire.CursorFrame, frames: live.LiveFrames, session: Session) -> Panel:
    """Draw the last seconds of both velocities, and the numbers of a frame."""
    head = Text.assemble(
        (f" {frame.state} ", "bold reverse green" if frame.valid else "bold reverse yellow"),
        f"  tick {frame.latency_ms:5.2f} ms  decode {frame.decode_ms:5.2f} ms  "
        f"{frame.n_spikes} spikes in the window  frame {frame.seq}",
    )
    legend = Text.assemble(("● true  ", "white"), ("● decoded", "bright_green"))
    rows: list[Text] = [head, legend]
    if frames.mapping is not None:
        n_shown = int(SHOWN_S * 1e3 / TICK_MS)
        shown = [f for f in frames.frames[-n_shown:] if f.valid]
        if shown:
            lsl = np.array([f.window_end for f in shown])
            decoded = np.array([f.velocity for f in shown])
            true = session.velocity_at(frames.mapping.to_recorded(lsl))
            ages = (lsl - frame.window_end) / SHOWN_S + 1.0
            for axis, name in enumerate(("x velocity", "y velocity")):
                rows.append(Text(name, style="bold"))
                rows.extend(plot(ages, true[:, axis], decoded[:, axis]))
    return Panel(Group(*rows), title="volition demo: simulated spikes over LSL, decoded live")


def plot(ages: Floats, true: Floats, decoded: Floats) -> list[Text]:
    """Two traces in Braille dots, 2 by 4 per character. ages: (n,) 0 to 1; values in m/s."""
    full = max(0.2, float(np.abs(true).max()), float(np.abs(decoded).max()))
    cells = [[(" ", "")] * WIDTH for _ in range(HEIGHT)]
    cells[HEIGHT // 2] = [("┄", "bright_black")] * WIDTH
    for values, style in ((true, "white"), (decoded, "bright_green")):
        masks = np.zeros((HEIGHT, WIDTH), dtype=int)
        column = np.clip((ages * 2 * WIDTH).astype(int), 0, 2 * WIDTH - 1)
        height = (1 - values / full) / 2 * (4 * HEIGHT - 1)
        row = np.clip(np.round(height).astype(int), 0, 4 * HEIGHT - 1)
        np.bitwise_or.at(masks, (row // 4, column // 2), BRAILLE_DOTS[row % 4, column % 2])
        for r, c in zip(*np.nonzero(masks), strict=True):
            cells[r][c] = (chr(0x2800 + masks[r, c]), style)
    return [Text.assemble(*row) for row in cells]
