"""A sender over real LSL, as a separate process, that logs its data before sending them.

    python -m tests.faults.sender NAME --bundle BUNDLE --log FILE

It sends spikes of the bundle's units, tuned to a circling velocity, and that velocity as
kinematics. Orders arrive on stdin, one per line: a word and a value. `Sender` is the parent's side.
"""

from __future__ import annotations

import argparse
import mmap
import os
import select
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pylsl

from decoder.bundles.bundle import open_bundle
from streaming.recording.outlets import kinematics_info, spikes_info

CHUNK_S = 0.005
BIN_S = 0.01
KINEMATICS_HZ = 100.0
MOST_SPIKES = 50_000  # per chunk, so that an order can end a flood
# Times on the true LSL clock, s. usable: number of spikes (or bins) that admission may accept.
SENT = np.dtype([("at", "f8"), ("first", "f8"), ("last", "f8"), ("usable", "i8")])
CLOCK_FILE = "FAULTS_CLOCK"  # names the file with the shift of this process's clock (network.py)


class Sender:
    """The process as seen by its parent. Its data are in `log`."""

    def __init__(
        self, name: str, bundle: Path, folder: Path, *, prefix: tuple[str, ...] = (),
        environment: dict[str, str] | None = None, **options: str,
    ) -> None:  # fmt: skip
        stem = f"sender-{time.monotonic_ns()}"
        self.name, self.log = name, folder / f"{stem}.sent"
        self.log.touch()
        words = [word for key, value in options.items() for word in (f"--{key}", value)]
        with (folder / f"{stem}.log").open("w") as output:
            self.popen = subprocess.Popen(
                [*prefix, sys.executable, "-m", "tests.faults.sender", name,
                 "--bundle", str(bundle), "--log", str(self.log), *words],
                stdin=subprocess.PIPE, stdout=output, stderr=output,
                env=os.environ | (environment or {}),
            )  # fmt: skip

    def send(self, order: str, value: object = "") -> None:
        """Send an order, see `Sending.obey`."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(f"{order} {value}\n".encode())
        self.popen.stdin.flush()

    def close(self) -> None:
        """Make it close its outlets and end."""
        self.send("close")
        self.popen.wait(10)
        self.kill()

    def kill(self) -> None:
        """Kill it without closing its outlets."""
        self.popen.kill()
        self.popen.wait()
        assert self.popen.stdin is not None
        self.popen.stdin.close()


def read_log(path: Path) -> np.ndarray:
    """The log of a sender as an array of `SENT`."""
    content = path.read_bytes()
    return np.frombuffer(content[: len(content) // SENT.itemsize * SENT.itemsize], dtype=SENT)


class _Clock:
    """The LSL clock without the shift that the library of network.py adds."""

    def __init__(self) -> None:
        path = os.environ.get(CLOCK_FILE)
        self._map = mmap.mmap(os.open(path, os.O_RDONLY), 8, prot=mmap.PROT_READ) if path else None

    @property
    def shift(self) -> float:
        return struct.unpack("d", self._map[:8])[0] if self._map else 0.0

    def now(self) -> float:
        return pylsl.local_clock() - self.shift


class Sending:
    """The sender inside its process."""

    def __init__(self, name: str, bundle: Path, log: Path, kind: str, strange: bool) -> None:
        units = open_bundle(bundle).manifest.unit_ids
        self.kind, self.n_units, self.usable = kind, len(units), not strange
        names = [f"other/{i}" for i in range(self.n_units)] if strange else list(units)
        self.spikes = pylsl.StreamOutlet(self._describe(name, names))
        self.kinematics = pylsl.StreamOutlet(
            kinematics_info(f"{name}-kinematics", f"{name}-k", ["vel_x", "vel_y"], KINEMATICS_HZ)
        )
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND)
        self.clock, self.rng = _Clock(), np.random.default_rng(time.time_ns())
        self.stamps, self.rate_hz, self.trigger_hz, self.ends = "true", 1000.0, 0.0, False
        self.tuning = np.random.default_rng(1).normal(0.0, 3.0, (self.n_units, 2))

    def _describe(self, name: str, units: list[str]) -> pylsl.StreamInfo:
        if self.kind == "Spikes":
            return spikes_info(name, f"{name}-{os.getpid()}", units)
        info = pylsl.StreamInfo(
            name, self.kind, len(units), 1 / BIN_S, pylsl.cf_float32, f"{name}-{os.getpid()}"
        )
        info.set_channel_labels(units)
        return info

    def run(self) -> None:
        """Send until the order to close."""
        done, unread = self.clock.now(), b""
        step_s = CHUNK_S if self.kind == "Spikes" else BIN_S
        while not self.ends:
            behind = self.clock.now() - done > step_s
            if select.select([0], [], [], 0.0 if behind else 0.001)[0]:
                unread += os.read(0, 65536)
                *lines, unread = unread.split(b"\n")
                for line in lines:
                    self.obey(*line.decode().split(" ", 1))
            if (now := self.clock.now()) >= done + step_s and not self.ends:
                until = done + step_s if now - done < 1.0 else now  # after a stall, one large chunk
                self.send(done, until)
                done = until

    def obey(self, order: str, value: str) -> None:
        """stamps true|unix|zero|nan|ahead|back, rate HZ, trigger HZ, close."""
        if order == "stamps":
            self.stamps = value
        elif order == "rate":
            self.rate_hz = float(value)
        elif order == "trigger":
            self.trigger_hz = float(value)
        self.ends = order == "close"

    def send(self, start: float, end: float) -> None:
        """Send the spikes and kinematics of [start, end), in true LSL time."""
        angle = 2.0 * start
        velocity = 0.15 * np.array([np.cos(angle), np.sin(1.3 * angle)])
        rates = np.exp(self.tuning @ velocity)
        rates[-1] = 0.0  # the trigger unit, see decoders.py
        rates *= self.rate_hz / rates.sum()
        rates[-1] = self.trigger_hz
        seconds = min(end - start, MOST_SPIKES / max(self.rate_hz, self.trigger_hz, 1.0))
        counts = self.rng.poisson(rates * seconds)
        (self._send_bin if self.kind != "Spikes" else self._send_spikes)(counts, start, end)
        n = (
            round((end - start) * KINEMATICS_HZ)
            or self.rng.random() < (end - start) * KINEMATICS_HZ
        )
        if n:
            self.kinematics.push_chunk(np.tile(velocity, (int(n), 1)), end + self.clock.shift)

    def _send_spikes(self, counts: np.ndarray, start: float, end: float) -> None:
        units = np.repeat(np.arange(self.n_units), counts)
        if not len(units):
            return
        self.rng.shuffle(units)
        samples = np.stack([units, np.zeros_like(units)], axis=1).astype(np.int32)
        if len(units) > 2000:  # at full speed: one stamp for all
            self._note(end, end, len(units))
            self.spikes.push_chunk(samples, self._stamped(np.array([end]))[0])
            return
        times = np.sort(self.rng.uniform(start, end, len(units)))
        self._note(times[0], times[-1], len(units))
        self.spikes.push_chunk(samples, self._stamped(times).tolist())

    def _send_bin(self, counts: np.ndarray, start: float, end: float) -> None:
        if self.rate_hz > 0:  # an empty bin is a sign of life; without rate, no bin is sent
            self._note(start, end, 1)
            stamp = float(self._stamped(np.array([end]))[0])
            self.spikes.push_sample(counts.astype(float).tolist(), stamp)

    def _note(self, first: float, last: float, n: int) -> None:
        """Log data before they are sent, so that a kill in between makes the checker lenient."""
        usable = n if self.usable and self.stamps in ("true", "zero") else 0
        now = self.clock.now()
        if self.stamps == "zero":  # liblsl stamps such samples itself when they are pushed
            first = last = now
        os.write(self.log, np.array([(now, first, last, usable)], dtype=SENT).tobytes())

    def _stamped(self, times: np.ndarray) -> np.ndarray:
        on_own_clock = times + self.clock.shift
        match self.stamps:
            case "unix":
                return on_own_clock + (time.time() - pylsl.local_clock())
            case "zero":
                return np.zeros_like(times)
            case "nan":
                return np.full_like(times, np.nan)
            case "ahead":
                return on_own_clock + 3600.0
            case "back":
                return on_own_clock - 10.0
        return on_own_clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--kind", default="Spikes", choices=["Spikes", "SpikeCounts"])
    parser.add_argument("--strange", default="", help="any text: send units that no bundle knows")
    given = parser.parse_args()
    Sending(given.name, given.bundle, given.log, given.kind, bool(given.strange)).run()


if __name__ == "__main__":
    main()
