"""Mutated cursor frames and statuses, sent to both subscribers and a real watchdog.

python -m tests.fuzz frames --count 100000
"""

from __future__ import annotations

import tempfile
import time
import uuid
from pathlib import Path

import numpy as np
import zmq
from pylsl import local_clock

from clients.harness.daemon import free_port
from clients.subscriber import CursorSubscriber, StatusSubscriber
from decoder.errors import VolitionError
from decoder.filters import Filters
from streaming.wire import messages as wire
from tests.fuzz.control import peak_mb
from tests.fuzz.harness import LONGEST_LINE, MEMORY_BYTES, Failure, Report
from tests.fuzz.messages import message
from tests.fuzz.mutate import Rng
from tests.rig import Process, running, wait_for

ANSWER_S = 60.0
CURSOR, STATUS = wire.TOPICS["cursor"].prefix, wire.TOPICS["status"].prefix
AT_ONCE = 100  # messages between checks of the watchdog


def frame() -> bytes:
    """A valid frame with the current time."""
    now = local_clock()
    return wire.encode_frame(
        wire.CursorFrame(
            schema=wire.SCHEMA_VERSION, started=1.0, seq=7, session="s", decoder="d",
            state="decoding", valid=True, window_end=now, newest_spike=now, decode_ms=0.2,
            published=now, velocity=(0.1, -0.1), n_spikes=10, n_drained=100, clock_offset=0.0,
            latency_ms=0.3,
        )
    )  # fmt: skip


def status() -> bytes:
    """A valid status."""
    return wire.encode_frame(
        wire.Status(
            schema=wire.SCHEMA_VERSION, session="s", decoder="d", state="decoding", detail="",
            provider="CPUExecutionProvider", started=1.0, uptime_s=2.0, ticks=3, late_ticks=0,
            skipped_ticks=0, latency=None, spikes_per_s=5.0, backlog_s=None, input_kind="Spikes",
            input_name=None, stream=None, known_units=1, unknown_units=0, missing_units=0,
            window_s=0.5, events={}, overflowed=0, inlet_overflows=0, offset_jumps=0, bundle="/b",
            previous=None, candidate=None, loading=False, load_problem=None, paused=None,
            filters=Filters(), bias=(0.0, 0.0), pid=1,
        )
    )  # fmt: skip


def run(count: int, *, seed: int = 0) -> Report:
    """Publish `count` messages; two subscribers in this process and a watchdog listen."""
    report, began = Report(name="frames", seed=seed), time.monotonic()
    source = f"ipc:///tmp/fuzz-{uuid.uuid4().hex[:8]}"
    out = f"tcp://127.0.0.1:{free_port()}"
    context = zmq.Context()
    publisher = context.socket(zmq.XPUB)
    publisher.setsockopt(zmq.XPUB_VERBOSE, 1)
    publisher.setsockopt(zmq.SNDHWM, 0)
    publisher.bind(source)
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-") as folder,
        running(
            Path(folder) / "log", "watchdog", "--publish", out, "--address", source,
            "--after-ms", "1000",
        ) as watchdog,
        CursorSubscriber(out, latest_only=True) as rig,
        CursorSubscriber(source) as cursor,
    ):  # fmt: skip
        statuses = StatusSubscriber(source)
        try:
            _wait_for_subscriptions(publisher)
            _send_all(publisher, cursor, statuses, count, seed, watchdog, report)
            _check_the_end(publisher, rig, watchdog, report)
        finally:
            statuses.close()
            context.destroy(linger=0)
    report.seconds = time.monotonic() - began
    return report


def _wait_for_subscriptions(publisher: zmq.Socket[bytes]) -> None:
    """Wait for both topics of the watchdog, and one of each subscriber in this process."""
    seen: list[bytes] = []

    def all_there() -> bool:
        while publisher.poll(0):
            seen.append(publisher.recv())
        return seen.count(b"\x01" + CURSOR) >= 2 and seen.count(b"\x01" + STATUS) >= 2

    wait_for("subscriptions", all_there, timeout_s=ANSWER_S)


def _send_all(
    publisher: zmq.Socket[bytes], cursor: CursorSubscriber, statuses: StatusSubscriber,
    count: int, seed: int, watchdog: Process, report: Report,
) -> None:  # fmt: skip
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        to_cursor = rng.random() < 0.7
        _send_one(publisher, cursor if to_cursor else statuses, number, rng, report)
        if number % AT_ONCE == 0 and watchdog.popen.poll() is not None:
            text = watchdog.output()[-4000:]
            report.failures.append(Failure(number=number, how="the watchdog ended", text=text))
            return


def _send_one(
    publisher: zmq.Socket[bytes], reader: CursorSubscriber | StatusSubscriber, number: int,
    rng: Rng, report: Report,
) -> None:  # fmt: skip
    is_cursor = isinstance(reader, CursorSubscriber)
    content = message([frame() if is_cursor else status()], rng)
    publisher.send((CURSOR if is_cursor else STATUS) + content)
    try:
        seen = reader.receive(timeout_s=ANSWER_S)
    except VolitionError as error:
        text = str(error)
        if "\n" not in text and len(text) <= LONGEST_LINE:
            report.outcomes["refused"] += 1
        else:
            _fail(report, number, "the error is not one short line", text[:2000])
    except Exception as error:
        _fail(report, number, f"{type(reader).__name__} raised {type(error).__name__}", str(error))
    else:
        report.outcomes["read" if seen is not None else "left out"] += 1


def _fail(report: Report, number: int, how: str, text: str) -> None:
    report.outcomes["failed"] += 1
    report.failures.append(Failure(number=number, how=how, text=text))


def _check_the_end(
    publisher: zmq.Socket[bytes], rig: CursorSubscriber, watchdog: Process, report: Report
) -> None:
    """Check that the watchdog still relays a good frame and has logged no traceback."""

    def passed_on() -> bool:
        publisher.send(CURSOR + frame())
        newest = rig.receive(timeout_s=0.05)
        return newest is not None and newest.velocity == (0.1, -0.1) and newest.valid

    try:
        wait_for("a good frame behind the watchdog", passed_on, timeout_s=ANSWER_S)
    except AssertionError as error:
        _fail(report, -1, str(error), watchdog.output()[-4000:])
        return
    report.peak_mb = peak_mb(watchdog.popen.pid)
    if "Traceback" in watchdog.output():
        _fail(report, -1, "a traceback in the watchdog's log", watchdog.output()[-4000:])
    if report.peak_mb * 2**20 > MEMORY_BYTES:
        _fail(report, -1, f"the watchdog took {report.peak_mb:.0f} MB", "")
