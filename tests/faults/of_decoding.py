"""Faults of the daemon under a server, of decoders and bundles, and next to a watchdog."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import msgspec
import zmq
from pylsl import local_clock

from clients.harness.daemon import free_port
from decoder.errors import VolitionError
from streaming.wire import messages as wire
from tests.faults import decoders
from tests.faults.checker import PREFIX, Checker
from tests.faults.fault import Fault, Seconds
from tests.faults.rig import POSSM, POYO, DaemonRig, ServerRig, WatchdogRig

RETURNS = "a new daemon with the same decoder, filters and pause; never two at once"
ACCEPTED = "every confirmed order holds for the next daemon"


def killed(rig: ServerRig) -> Seconds:
    gain = round(rig.rng.uniform(0.5, 1.5), 3)
    rig.orders.give("gain", gain, rig.set_gain(gain))
    rig.moment()
    start = rig.kill_daemon()
    first = rig.until("a frame", lambda: rig.checker.since(start + 0.02)[:1])[0]
    return {"to frame": first.published - start} | rig.until_valid(start + 0.02) | rig.orders_hold()


def stopped(rig: ServerRig) -> Seconds:
    """Stop it for up to 8 s: after 5 s without an answer the server starts another daemon."""
    pid = rig.pid()
    os.kill(pid, signal.SIGSTOP)
    rig.moment(8.0)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    return rig.until_valid() | rig.orders_hold()


def killed_while_activating(rig: ServerRig) -> Seconds:
    decoder, pid = rig.other_decoder(), rig.pid()
    order = rig.orders.later("decoder", decoder, rig.activate(decoder))
    rig.moment(1.0)
    os.kill(pid, signal.SIGKILL)
    start = local_clock()
    order.join()
    return rig.orders_hold() | rig.until_valid(start)


def killed_while_pausing(rig: ServerRig) -> Seconds:
    pid = rig.pid()
    order = rig.orders.later("paused", "stop", rig.pause("stop"))
    rig.moment(0.1)
    os.kill(pid, signal.SIGKILL)
    start = local_clock()
    order.join()
    seconds = rig.orders_hold()
    if rig.orders.allowed["paused"] == ["stop"]:
        rig.never_valid(0.5, start)
    rig.until("a resume", lambda: rig.orders.give("paused", None, rig.resume()))
    return seconds | rig.until_valid()


def activated_while_down(rig: ServerRig) -> Seconds:
    decoder = rig.other_decoder()
    start = rig.kill_daemon()
    rig.moment(1.0)
    rig.orders.give("decoder", decoder, rig.activate(decoder))
    return rig.orders_hold() | rig.until_valid(start + 0.02)


def paused_while_down(rig: ServerRig) -> Seconds:
    start = rig.kill_daemon()
    rig.moment(0.6)
    rig.orders.give("paused", "stop", rig.pause("stop"))
    seconds = rig.orders_hold()
    if rig.orders.allowed["paused"] == ["stop"]:
        rig.never_valid(0.5, start + 0.02)
    return seconds


class TriggerRig(DaemonRig):
    """A daemon with a decoder that is good until the trigger unit fires."""

    kind = "good"

    def start(self) -> None:
        self.bundle = decoders.write(self.folder, self.kind)
        self.windows = {"ridge": decoders.LAGS * decoders.BIN_S}
        super().start()


class HugeRig(TriggerRig):
    kind = "huge"


class NanRig(TriggerRig):
    kind = "nan"


class RaisesRig(TriggerRig):
    kind = "raises"


def triggered(rig: TriggerRig) -> Seconds:
    rig.moment()
    start = local_clock()
    rig.sender.send("trigger", decoders.TRIGGER_HZ)
    silent = rig.until_not_valid(start)
    rig.moment()
    rig.sender.send("trigger", 0)
    return silent | rig.until_valid()


class HangRig(ServerRig):
    """A server rig with another bundle, whose decoder hangs when triggered."""

    def start(self) -> None:
        super().start()
        self.hanging = decoders.write(self.folder, "hangs")


def hung(rig: HangRig) -> Seconds:
    """The bundle may be refused; once it is in use, the server must replace it."""
    good = rig.orders.allowed["decoder"][-1]
    rig.until("trust in the good decoder", lambda: _uptime(rig) > 6.0)
    try:
        with rig.client() as client:
            bad = client.add_decoder(str(rig.hanging)).id
            client.activate(bad)
    except VolitionError:
        return rig.orders_hold() | rig.until_valid()
    rig.windows[bad] = decoders.LAGS * decoders.BIN_S
    rig.orders.allowed["decoder"] = [bad, good]
    rig.until_valid()
    rig.moment()
    rig.sender.send("trigger", decoders.TRIGGER_HZ)
    start = local_clock()
    try:
        return rig.until_valid(start + 2.0)
    finally:
        rig.sender.send("trigger", 0)
        rig.orders.allowed["decoder"] = [good]


def _uptime(rig: ServerRig) -> float:
    with rig.client() as client:
        status = client.status()
        return float(status.daemon.uptime_s) if status.answered else 0.0


def _damage(file: Path, rig: ServerRig) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(20):
        content[rig.rng.randrange(len(content))] ^= 1 << rig.rng.randrange(8)
    file.write_bytes(bytes(content))


def bundle_damaged(rig: ServerRig) -> Seconds:
    """Damage the active bundle, then kill its daemon: the last good decoder must take over."""
    rig.until("trust in the decoder", lambda: _uptime(rig) > 6.0)
    bad = rig.other_decoder()
    good = next(decoder for decoder in rig.decoders if decoder != bad)
    with rig.client() as client:
        client.activate(bad)
    rig.orders.allowed["decoder"] = [good, bad]
    folder = rig.server.home / "decoders" / f"{bad}.bundle"
    files = ["manifest.json", "graph.onnx", "tables.safetensors", "weights.safetensors"]
    _damage(folder / rig.rng.choice(files), rig)
    start = rig.kill_daemon()
    seconds = rig.until_valid(start + 0.02)
    used = {frame.decoder for frame in rig.checker.since(start + 0.02) if frame.valid}
    assert used == {good}, f"valid frames of {used}; {bad} is damaged"
    with rig.client() as client:
        client.add_decoder(str(POSSM if bad == rig.decoders[0] else POYO))  # intact again
    rig.orders.allowed["decoder"] = [good]
    return seconds


def daemon_killed(rig: WatchdogRig) -> Seconds:
    """Kill the daemon; the watchdog publishes zero until it is back."""
    rig.moment()
    start = local_clock()
    rig.daemon.popen.kill()
    silent = rig.until_not_valid(start)
    rig.daemon.popen.wait()
    rig.moment()
    rig.start_daemon()
    return silent | rig.until_valid()


def daemon_stopped(rig: WatchdogRig) -> Seconds:
    rig.moment()
    start = local_clock()
    rig.daemon.popen.send_signal(signal.SIGSTOP)
    silent = rig.until_not_valid(start)
    rig.moment(3.0)
    rig.daemon.popen.send_signal(signal.SIGCONT)
    return silent | rig.until_valid()


def other_schema(rig: WatchdogRig) -> Seconds:
    """Publish frames of another version and random bytes to a watchdog."""
    address, publish = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
    context = zmq.Context()
    socket = context.socket(zmq.XPUB)
    socket.bind(address)
    watchdog = rig.program("watchdog", "--address", address, "--publish", publish)
    checker = Checker(publish)
    try:
        rig.until("its own frames", lambda: checker.frames)
        good = msgspec.to_builtins(rig.checker.frames[-1][1])
        odd = [
            {"schema": 2}, {**good, "schema": 99, "velocity": "fast"}, [1, 2], 7,
            {**good, "valid": "yes"}, {**good, "velocity": [0.1, 0.2, 0.3]},
        ]  # fmt: skip
        for _ in range(50):
            payload = msgspec.msgpack.encode(rig.rng.choice(odd))
            socket.send(rig.rng.choice([PREFIX, b"status:", b"cursor:cursor:"]) + payload)
            socket.send(PREFIX + rig.rng.randbytes(40))
        start = local_clock()
        rig.until("frames after it", lambda: checker.since(start + 0.2))
        assert watchdog.popen.poll() is None, watchdog.output()
        assert not any(frame.valid for _, frame in checker.frames), "an odd frame was relayed"
        encoded = wire.encode_frame(
            msgspec.structs.replace(
                rig.checker.frames[-1][1], started=local_clock(), published=local_clock()
            )
        )
        socket.send(PREFIX + encoded)
        return rig.frames_for(0.2)
    finally:
        checker.close()
        context.destroy(linger=0)
        watchdog.popen.kill()


FAULTS = (
    Fault(name="daemon-killed", what="The daemon gets SIGKILL", must_hold=RETURNS,
          rig=ServerRig, attempt=killed),
    Fault(name="daemon-stopped", what="The daemon is stopped (SIGSTOP) for up to 8 s",
          must_hold="no old frame is valid afterwards; after 5 s a new daemon takes over",
          rig=ServerRig, attempt=stopped),
    Fault(name="daemon-killed-activating", what="The daemon gets SIGKILL during an activation",
          must_hold=ACCEPTED, rig=ServerRig, attempt=killed_while_activating),
    Fault(name="daemon-killed-pausing", what="The daemon gets SIGKILL during a pause",
          must_hold=ACCEPTED, rig=ServerRig, attempt=killed_while_pausing),
    Fault(name="activate-while-down", what="An activation while the daemon is down",
          must_hold=ACCEPTED, rig=ServerRig, attempt=activated_while_down),
    Fault(name="pause-while-down", what="A pause while the daemon is down",
          must_hold=ACCEPTED, rig=ServerRig, attempt=paused_while_down),
    Fault(name="decoder-huge", what="The decoder returns 1e30 m/s",
          must_hold="`fault` and zero; valid again without help", rig=HugeRig, attempt=triggered),
    Fault(name="decoder-nan", what="The decoder returns NaN",
          must_hold="`fault` and zero; valid again without help", rig=NanRig, attempt=triggered),
    Fault(name="decoder-raises", what="ONNX Runtime raises in a tick",
          must_hold="`fault` and zero; valid again without help", rig=RaisesRig, attempt=triggered),
    Fault(name="decoder-hangs", what="The decoder hangs in a tick",
          must_hold="refused before use, or replaced by the last good decoder without help",
          rig=HangRig, attempt=hung),
    Fault(name="bundle-damaged",
          what="The active bundle is damaged on disk, then its daemon killed",
          must_hold="the last good decoder takes over; no frame of the damaged one",
          rig=ServerRig, attempt=bundle_damaged),
    Fault(name="watchdog-daemon-killed", what="The daemon next to a watchdog gets SIGKILL",
          must_hold="the watchdog publishes `fault` and zero until frames arrive again",
          rig=WatchdogRig, attempt=daemon_killed),
    Fault(name="watchdog-daemon-stopped", what="The daemon next to a watchdog is stopped (SIGSTOP)",
          must_hold="the watchdog publishes `fault` and zero until frames arrive again",
          rig=WatchdogRig, attempt=daemon_stopped),
    Fault(name="watchdog-other-schema",
          what="A watchdog receives frames of another schema and random bytes",
          must_hold="it publishes `fault` and zero, and goes on", rig=WatchdogRig,
          attempt=other_schema),
)  # fmt: skip
