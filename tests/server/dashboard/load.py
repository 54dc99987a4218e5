"""What open pages cost: latency of ticks with and without them, CPU and memory of the server.

    python -m tests.server.dashboard.load --minutes 4 --pages 3 --rate 20000

Blocks without and with pages alternate, so that both see the same machine. The browser runs on this
machine too, at low priority, as it would be on another one in a rig.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from clients.harness.server import Server
from clients.subscriber import CursorSubscriber
from streaming.sessions import format as sessions
from streaming.sessions.session import Session
from tests import isolation
from tests.rig import running
from tests.server.conftest import POSSM
from tests.server.dashboard.browser import chromium, opened
from training.data.simulate import simulate

BLOCK_S = 30.0
SETTLE_S = 5.0


def loud(rate_hz: float) -> Session:
    """A minute of 96 units that fire `rate_hz` spikes/s together."""
    session = simulate(n_units=96, minutes=1.0, subject=1, seed=1)
    rng = np.random.default_rng(0)
    start, end = session.domain[0, 0], session.domain[-1, 1]
    n = int(rate_hz * (end - start))
    return replace(
        session,
        session_id=f"loud-{os.getpid()}",
        spike_times=np.sort(rng.uniform(start, end, n)),
        spike_units=rng.integers(0, session.n_units, n),
    )


def cpu_s(pid: int) -> float:
    """CPU time that a process has used, s."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mb(pid: int) -> float:
    """Resident memory of a process, MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def block(server: Server, what: str) -> list[float]:
    """Measure for `BLOCK_S`, print a line, and return the latencies, ms."""
    time.sleep(SETTLE_S)
    with CursorSubscriber(server.address, max_age_s=None) as cursor, server.client() as client:
        before, pid = client.status().daemon, server.process.pid
        used, began = cpu_s(pid), time.monotonic()
        latencies = []
        while time.monotonic() - began < BLOCK_S:
            if (frame := cursor.receive(timeout_s=1.0)) is not None:
                latencies.append(frame.latency_ms)
        share = (cpu_s(pid) - used) / (time.monotonic() - began)
        missed = client.status().daemon.skipped_ticks - before.skipped_ticks
    p50, p99, p999 = np.percentile(latencies, [50, 99, 99.9])
    print(
        f"{what:14s} {len(latencies):6d} ticks, {missed} missed, {before.spikes_per_s:,.0f} "
        f"spikes/s; p50 {p50:.2f}, p99 {p99:.2f}, p99.9 {p999:.2f} ms; server {share:.0%} of a "
        f"core, {resident_mb(pid):.0f} MB",
        flush=True,
    )
    return latencies


def main() -> None:
    """Run the blocks and print the totals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--pages", type=int, default=3)
    parser.add_argument("--rate", type=float, default=20_000.0, help="spikes/s")
    asked = parser.parse_args()
    isolation.own_lsl_session()
    with ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory()))
        session = loud(asked.rate)
        path = sessions.save(session, folder)
        server = Server(POSSM, folder / "home", f"{session.session_id}-spikes")
        ends.enter_context(server)
        ends.enter_context(running(folder / "replay.log", "replay", str(path), "--loop"))
        niceness = os.nice(0)
        browser = ends.enter_context(chromium(nice=10 + niceness))
        all_ms: dict[str, list[float]] = {"no page": [], f"{asked.pages} pages": []}
        for _ in range(max(1, round(asked.minutes * 60 / (2 * (BLOCK_S + SETTLE_S))))):
            for what, latencies in all_ms.items():
                n_pages = 0 if what == "no page" else asked.pages
                pages = [opened(browser, server.url) for _ in range(n_pages)]
                latencies += block(server, what)
                for watched in pages:
                    heap = watched.page.evaluate("performance.memory.usedJSHeapSize") / 1e6
                    print(f"               page {heap:.0f} MB, {watched.complaints or 'no error'}")
                    watched.page.close()
        for what, latencies in all_ms.items():
            p50, p99, p999 = np.percentile(latencies, [50, 99, 99.9])
            print(f"{what}: p50 {p50:.2f}, p99 {p99:.2f}, p99.9 {p999:.2f} ms of {len(latencies)}")


if __name__ == "__main__":
    main()
