"""Random and mutated control messages to a real daemon: one answer each, and ticks go on.

python -m tests.fuzz control --count 100000
"""

from __future__ import annotations

import re
import tempfile
import time
import uuid
from pathlib import Path

import msgspec
import numpy as np
import zmq

from clients.harness.daemon import free_port
from clients.subscriber import CursorSubscriber
from decoder.filters import Filters
from streaming.wire import control
from tests.fuzz.harness import LONGEST_LINE, MEMORY_BYTES, Failure, Report
from tests.fuzz.messages import message
from tests.rig import Process, daemon, frames_until

SHIPPED = Path(__file__).parents[2] / "clients" / "demo_data" / "possm.bundle"
TICK_MS = "2"  # a daemon takes one command per tick
ANSWER_S = 60.0
WAITING = 20  # messages in flight
ORIGINALS = [
    control.encode(command)
    for command in (
        control.Load(path="/nowhere.bundle"), control.Activate(decoder="x"), control.Rollback(),
        control.SetInput(kind="Spikes", name="somewhere's"), control.Pause(why="because"),
        control.Resume(), control.Arm(), control.SetFilters(filters=Filters(gain=0.5)),
        control.GetStatus(),
    )
]  # fmt: skip
_decode = msgspec.msgpack.Decoder(control.Command).decode
_decode_reply = msgspec.msgpack.Decoder(control.Reply).decode


def run(count: int, *, seed: int = 0) -> Report:
    """Send `count` messages to a new daemon."""
    report, began = Report(name="control", seed=seed), time.monotonic()
    stream, address = f"fuzz-{uuid.uuid4().hex[:8]}", f"tcp://127.0.0.1:{free_port()}"
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-") as folder,
        daemon(
            Path(folder), SHIPPED, stream, "--control", address, "--tick-ms", TICK_MS
        ) as (process, cursors),
        CursorSubscriber(cursors, latest_only=True) as cursor,
    ):  # fmt: skip
        frames_until(cursor, lambda frame: frame.seq > 0, timeout_s=ANSWER_S)
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.connect(address)
        try:
            _send_all(socket, count, seed, process, report)
        finally:
            context.destroy(linger=0)
        report.peak_mb = peak_mb(process.popen.pid) if process.popen.poll() is None else 0.0
        _check_the_end(cursor, process, report)
    report.seconds = time.monotonic() - began
    return report


def _send_all(
    socket: zmq.Socket[bytes], count: int, seed: int, process: Process, report: Report
) -> None:
    """Keep some messages in flight; answers arrive in the order of the messages."""
    sent = answered = 0
    while answered < count:
        while sent < count and sent - answered < WAITING:
            socket.send_multipart([b"", *_frames(seed, sent)])
            sent += 1
        if not socket.poll(round(1e3 * ANSWER_S)):
            how = "no answer" if process.popen.poll() is None else "the daemon ended"
            text = process.output()[-4000:]
            report.failures.append(Failure(number=answered, how=how, text=text))
            report.outcomes["failed"] += 1
            return
        _count(answered, socket.recv_multipart(), report)
        answered += 1


def _frames(seed: int, number: int) -> list[bytes]:
    rng = np.random.default_rng([seed, number])
    content = message(ORIGINALS, rng)
    try:
        if isinstance(_decode(content), control.Stop):
            content = ORIGINALS[-1]
    except Exception:  # how the daemon handles it is under test
        pass
    return [content] * int(rng.choice([1, 1, 1, 1, 1, 1, 1, 1, 2, 40]))


def _count(number: int, answer: list[bytes], report: Report) -> None:
    reply = _decode_reply(answer[-1])
    problem = reply.problem
    if problem is None:
        report.outcomes["accepted"] += 1
    elif problem and "\n" not in problem and len(problem) <= LONGEST_LINE:
        report.outcomes["refused"] += 1
    else:
        report.outcomes["failed"] += 1
        how = "the problem is not one short line"
        report.failures.append(Failure(number=number, how=how, text=problem[:2000]))


def _check_the_end(cursor: CursorSubscriber, process: Process, report: Report) -> None:
    """The daemon still ticks, its log has no traceback, its memory is bounded."""
    said = process.output()
    for how, wrong in (
        ("the daemon does not tick", not _ticks(cursor)),
        ("a traceback in the daemon's log", "Traceback" in said),
        (f"the daemon took {report.peak_mb:.0f} MB", report.peak_mb * 2**20 > MEMORY_BYTES),
    ):
        if wrong:
            report.failures.append(Failure(number=-1, how=how, text=said[-4000:]))


def _ticks(cursor: CursorSubscriber) -> bool:
    newest = cursor.receive(timeout_s=ANSWER_S)
    if newest is None:
        return False
    try:
        frames_until(cursor, lambda frame: frame.seq > newest.seq + 100, timeout_s=ANSWER_S)
    except AssertionError:
        return False
    return True


def peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found.group(1)) / 1024 if found else 0.0
