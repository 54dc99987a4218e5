"""LSL: library, configuration, and whether a stream of another process is found and read.

python -m clients.doctor.checks.lsl NAME    # sends a stream until standard input ends
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pylsl

from clients.doctor.checks.config import VARIABLE, Config, find
from clients.doctor.finding import Asked, Finding, failure, ok, plural, warning
from streaming.inlets.offset import JUMP_S, newest_estimate

FOUND_WITHIN_S = 6.0
READ_WITHIN_S = 10.0
OTHERS_WITHIN_S = 1.0  # for the streams of other programs to answer
OFFSET_S = 0.001  # a clock compared with itself on an idle machine: 0.00002
EVERY_S = 0.02
TYPE = "Doctor"
SHOWN = 6  # streams
FIREWALL = "let UDP 16571 and TCP and UDP 16572 to 16604 through the firewall"


def lsl(asked: Asked) -> list[Finding]:
    """Library, configuration file, discovery, data, clock offset, and the streams there are."""
    findings = [_library(), *_configuration()]
    name = f"volition-doctor-{uuid.uuid4().hex[:8]}"
    with _sending(name) as sender:
        findings += _looking(name, sender)
    return findings


def _library() -> Finding:
    number = pylsl.library_version()
    return ok("library", f"liblsl {number // 100}.{number % 100}, pylsl {pylsl.__version__}")


def _configuration() -> list[Finding]:
    name = "lsl_api.cfg"
    config, problems = find(os.environ, Path.cwd())
    findings = [
        failure(name, problem, f"correct the file, or unset {VARIABLE}")
        if f"({VARIABLE})" in problem
        else warning(name, problem, "correct or remove it; liblsl reads another or its defaults")
        for problem in problems
    ]
    if config is None:
        return findings or [ok(name, "none: liblsl's defaults")]
    if config.unknown:
        keys = ", ".join(config.unknown)
        do = "check their spelling, also upper and lower case"
        findings.append(warning(name, f"{config.path}: liblsl doesn't know {keys}", do))
    return [*findings, _in_use(name, config)]


def _in_use(name: str, config: Config) -> Finding:
    where = f"{config.path} (from {config.origin})"
    if not config.changes:
        return ok(name, f"{where}; it changes nothing about which streams are found")
    keys = ", ".join(f"{key.partition('.')[2]} = {value}" for key, value in config.changes.items())
    found = f"{where} changes {keys}"
    if config.origin == VARIABLE:  # someone asked for it
        return ok(name, found, "every sender and reader of the rig needs the same")
    return warning(
        name, found,
        "streams of programs without this file may not be found: remove it if it is a stray, or "
        "give it to every program of the rig",
    )  # fmt: skip


def _looking(name: str, sender: subprocess.Popen[str]) -> list[Finding]:
    began = time.monotonic()
    resolver = pylsl.ContinuousResolver(forget_after=FOUND_WITHIN_S)
    mine: list[pylsl.StreamInfo] = []
    while not mine and time.monotonic() < began + FOUND_WITHIN_S:
        time.sleep(EVERY_S)
        mine = [info for info in resolver.results() if info.name() == name]
    took = time.monotonic() - began
    if not mine:
        sender_ended = sender.poll() is not None
        found = (
            "the sending process ended"
            if sender_ended
            else f"a stream of another process wasn't found within {FOUND_WITHIN_S:g} s"
        )
        return [
            failure("discovery", found, f"turn a network interface on (at least lo); {FIREWALL}")
        ]
    findings = [
        ok("discovery", f"a stream of another process is found after {took:.2f} s"),
        *_reading(mine[0]),
    ]
    time.sleep(max(0.0, began + OTHERS_WITHIN_S - time.monotonic()))
    return [*findings, _others([info for info in resolver.results() if info.type() != TYPE])]


def _reading(info: pylsl.StreamInfo) -> list[Finding]:
    inlet = pylsl.StreamInlet(info)
    began = time.monotonic()
    try:
        sample, _ = inlet.pull_sample(timeout=READ_WITHIN_S)
        took = time.monotonic() - began
        if sample is None:
            found = f"no sample of the found stream within {READ_WITHIN_S:g} s"
            return [failure("data", found, FIREWALL)]
        return [ok("data", f"the first sample after {took:.2f} s"), _offset(inlet)]
    except (pylsl.TimeoutError, pylsl.LostError) as error:  # the sender or the network
        return [failure("data", f"the stream was lost: {error or type(error).__name__}", FIREWALL)]
    finally:
        inlet.close_stream()


def _offset(inlet: pylsl.StreamInlet) -> Finding:
    """The offset between two processes of one machine, which share the clock."""
    name = "clock offset"
    try:
        estimate = newest_estimate(inlet, READ_WITHIN_S)
    except pylsl.TimeoutError:
        return failure(name, f"liblsl measured none within {READ_WITHIN_S:g} s", FIREWALL)
    offset, error = abs(estimate.offset_s), estimate.uncertainty_s / 2
    found = (
        f"{estimate.offset_s * 1e3:.3f} ms between two processes, error at most "
        f"{error * 1e3:.3f} ms"
    )
    if offset > JUMP_S + error:
        do = "their LSL clocks differ: look for a library that changes the clock (LD_PRELOAD)"
        return failure(name, found, do)
    if error > JUMP_S or offset > max(OFFSET_S, error):
        do = "the machine is too busy to measure it: end other programs, and run it again"
        return warning(name, found, do)
    return ok(name, found)


def _others(infos: list[pylsl.StreamInfo]) -> Finding:
    seen = sorted({f"{info.name()} ({info.type()}, {info.hostname()})" for info in infos})
    if not seen:
        return ok("streams", "no other stream; start the sender and run it again to see it here")
    more = f" and {len(seen) - SHOWN} more" if len(seen) > SHOWN else ""
    return ok("streams", f"{plural(len(seen), 'stream')}: {', '.join(seen[:SHOWN])}{more}")


@contextmanager
def _sending(name: str) -> Iterator[subprocess.Popen[str]]:
    """A process that sends a stream of this name. Raises RuntimeError if it doesn't start."""
    process = subprocess.Popen(
        [sys.executable, "-m", "clients.doctor.checks.lsl", name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    with process:
        try:
            if not process.stdout.readline():
                raise RuntimeError(f"the sending process ended with exit code {process.wait()}")
            yield process
        finally:
            process.kill()


def send(name: str) -> None:
    """Send a sample every `EVERY_S` until standard input ends, as it does with its parent."""
    info = pylsl.StreamInfo(name, TYPE, 1, 1 / EVERY_S, pylsl.cf_float32, name)
    outlet = pylsl.StreamOutlet(info)
    print("sending", flush=True)
    parent = threading.Thread(target=sys.stdin.read, daemon=True)
    parent.start()
    while parent.is_alive():
        outlet.push_sample([0.0])
        time.sleep(EVERY_S)


if __name__ == "__main__":
    send(sys.argv[1])
