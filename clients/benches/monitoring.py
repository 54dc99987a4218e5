"""The cost of monitoring in the server's process: reading frames, and one scrape.

python -m clients.benches.monitoring
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import median

import httpx

from clients.harness.daemon import BUNDLES, free_port
from clients.harness.server import Server
from server.monitoring.monitor import LOOK_EVERY_S
from server.monitoring.ticks import TickReader
from streaming.clock import Metronome
from streaming.wire import messages as wire
from streaming.wire.publish import Publisher
from streaming.wire.states import State

RATES_HZ = (100, 500)
SECONDS = 20.0
N_SCRAPES = 300


def publish(address: str, rate_hz: int, ended: Event) -> None:
    """Publish valid frames at a rate until `ended`, in a process of its own."""
    publisher, metronome, seq = Publisher(address, tick_s=1 / rate_hz), Metronome(1 / rate_hz), 0
    while not ended.is_set():
        window_end = metronome.wait()
        publisher.send(
            wire.cursor_frame(
                State.DECODING, started=1.0, seq=seq, session="session", decoder="decoder",
                window_end=window_end, published=window_end + 0.0015, decode_ms=0.7, n_spikes=500,
            )
        )  # fmt: skip
        publisher.see_subscribers()
        seq += 1
    publisher.close()


def reading(rate_hz: int) -> dict[str, float]:
    """CPU time of this process, ZeroMQ's thread included, while it counts frames."""
    context = multiprocessing.get_context("spawn")
    ended, address = context.Event(), f"tcp://127.0.0.1:{free_port()}"
    process = context.Process(target=publish, args=(address, rate_hz, ended))
    process.start()
    reader = TickReader(address)
    reader.open()

    def n_frames() -> float:
        reader.drain()
        (frames,) = (f for f in reader.families() if f.name == "volition_frames")
        return float(sum(sample.value for sample in frames.samples))

    while not n_frames():
        time.sleep(0.05)
    before, began, cpu = n_frames(), time.monotonic(), time.process_time()
    while time.monotonic() - began < SECONDS:
        time.sleep(LOOK_EVERY_S)
        reader.drain()
    cpu_s, took_s = time.process_time() - cpu, time.monotonic() - began
    counted = n_frames() - before
    ended.set()
    process.join()
    reader.close()
    return {
        "ticks_per_s": rate_hz,
        "counted_per_s": round(counted / took_s, 1),
        "cpu_percent_of_a_core": round(100 * cpu_s / took_s, 2),
        "cpu_us_per_frame": round(1e6 * cpu_s / counted, 1),
    }


def scraping() -> dict[str, float]:
    """CPU time of a real server per scrape, and the time that a scrape takes."""

    def cpu_s() -> float:
        _, _, stat = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")
        return sum(map(int, stat.split()[11:13])) / 100

    with (
        tempfile.TemporaryDirectory() as home,
        Server(BUNDLES / "possm.bundle", Path(home), "nobody") as server,
        httpx.Client(base_url=server.url, trust_env=False) as client,
    ):
        client.get("/metrics")
        time.sleep(2.0)
        cpu, began, taken = cpu_s(), time.monotonic(), []
        time.sleep(SECONDS)
        idle = (cpu_s() - cpu) / (time.monotonic() - began)
        cpu, began = cpu_s(), time.monotonic()
        for _ in range(N_SCRAPES):
            sent = time.monotonic()
            size = len(client.get("/metrics").content)
            taken.append(time.monotonic() - sent)
        spent = cpu_s() - cpu - idle * (time.monotonic() - began)
    return {
        "bytes": size,
        "cpu_ms_per_scrape": round(1e3 * spent / N_SCRAPES, 2),
        "median_ms": round(1e3 * median(taken), 2),
        "idle_cpu_percent_of_a_core": round(100 * idle, 2),
    }


if __name__ == "__main__":
    print(
        json.dumps(
            {"reading": [reading(rate) for rate in RATES_HZ], "scrape": scraping()}, indent=2
        )
    )
