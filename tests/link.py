"""A link that can be cut: two network namespaces of Linux, with a cable between them.

python -m tests.link send NAME KIND UNIT…   spikes, kinematics and markers, until killed
python -m tests.link receive NAME KIND      counts of new samples per stream, as JSON lines
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from streaming.inlets.spikes import StreamKind

ROLES = ("spikes", "kinematics", "markers")


class Link:
    """Namespaces `near` and `far`, joined by a cable."""

    def __init__(self) -> None:
        tag = uuid.uuid4().hex[:6]
        self.near, self.far = f"vol-near-{tag}", f"vol-far-{tag}"
        self._ends = {self.near: f"n{tag}", self.far: f"f{tag}"}
        _ip("netns", "add", self.near)
        _ip("-n", self.near, "link", "set", "lo", "up")
        self.power_up()

    def cut(self) -> None:
        """Pull the cable: nothing arrives, and nobody is told."""
        _ip("-n", self.far, "link", "set", self._ends[self.far], "down")

    def mend(self) -> None:
        """Plug it in again."""
        self._up(self.far)

    def forget_connections(self) -> None:
        """The far side gives its connections up, as it does after some minutes without answers."""
        close = ["ip", "netns", "exec", self.far, "ss", "--kill", "--tcp", "state", "established"]
        done = subprocess.run(close, capture_output=True, text=True, check=False)
        if done.returncode or not done.stdout.count("\n") > 1:
            pytest.skip(f"connections can't be closed here (ss --kill): {done.stderr.strip()}")

    def power_cut(self) -> None:
        """Delete the far side and its state, without closing its connections."""
        _ip("netns", "delete", self.far)
        with contextlib.suppress(subprocess.CalledProcessError):  # it may have gone with its peer
            _ip("-n", self.near, "link", "delete", self._ends[self.near])

    def power_up(self) -> None:
        """Start the far side at its previous address."""
        _ip("netns", "add", self.far)
        _ip("-n", self.far, "link", "set", "lo", "up")
        _ip("link", "add", self._ends[self.near], "netns", self.near, "type", "veth",
            "peer", "name", self._ends[self.far], "netns", self.far)  # fmt: skip
        for number, space in enumerate(self._ends, 1):
            _ip("-n", space, "address", "add", f"10.99.0.{number}/24", "dev", self._ends[space])
            self._up(space)

    def _up(self, space: str) -> None:
        _ip("-n", space, "link", "set", self._ends[space], "up")
        _ip("-n", space, "route", "add", "default", "dev", self._ends[space])

    def close(self) -> None:
        for space in (self.near, self.far):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", space)


@contextlib.contextmanager
def cuttable() -> Iterator[Link]:
    """A link. Skips the test if namespaces are not allowed."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("cutting a link needs Linux, iproute2 and root (network namespaces)")
    try:
        link = Link()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces aren't allowed here: {error.stderr.strip()}")
    try:
        yield link
    finally:
        link.close()


@contextlib.contextmanager
def running_in(space: str, log: Path, module: str, *arguments: str) -> Iterator[subprocess.Popen]:
    """A Python module as a process in a namespace, its output in `log`; killed afterwards."""
    command = ["ip", "netns", "exec", space, sys.executable, "-W", "ignore", "-m", module]
    with log.open("w") as output:
        process = subprocess.Popen([*command, *arguments], stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def send(name: str, kind: str, unit_ids: list[str]) -> None:
    """Send a spike of every unit, and kinematics, 50 times a second; a marker every second.

    kind: of the spikes. Units of SpikeEvents are not described: their ids are 0/0, 1/0, …
    """
    import pylsl

    from streaming.recording.outlets import kinematics_info, markers_info, spikes_info

    source = f"{name}-rig"  # the same after a restart
    spiking = f"{name}-spikes", f"{source}-s"
    sample = [[channel, 0] for channel in range(len(unit_ids))]
    if kind == "SpikeCounts":
        info = pylsl.StreamInfo(spiking[0], kind, len(unit_ids), 50.0, pylsl.cf_int32, spiking[1])
        info.set_channel_labels(unit_ids)
        sample = [[1] * len(unit_ids)]
    elif kind == "SpikeEvents":
        info = pylsl.StreamInfo(spiking[0], kind, 2, 0.0, pylsl.cf_int32, spiking[1])
    else:
        info = spikes_info(*spiking, unit_ids)
    spikes = pylsl.StreamOutlet(info)
    kinematics = pylsl.StreamOutlet(
        kinematics_info(f"{name}-kinematics", f"{source}-k", ["pos_x", "pos_y"], 50.0)
    )
    markers = pylsl.StreamOutlet(markers_info(f"{name}-markers", f"{source}-m"))
    for number in range(10**9):
        spikes.push_chunk(sample)
        kinematics.push_sample([0.01 * number, 0.0])
        if number % 50 == 0:
            markers.push_sample([f"trial_start {number}"])
        time.sleep(0.02)


def receive(name: str, kind: StreamKind) -> None:
    """Read all three streams like a recorder; print how many new samples came, every 0.1 s."""
    from streaming.inlets.spikes import StreamQuery
    from streaming.recording.rigstreams import RigStreams

    query = StreamQuery(kind=kind, name=f"{name}-spikes")
    streams = RigStreams(query, f"{name}-kinematics", f"{name}-markers")
    while True:
        numbers = (len(streams.spikes()[0]), len(streams.kinematics()[0]), len(streams.markers()))
        came = dict(zip(ROLES, numbers, strict=True))
        print(json.dumps({"came": came, "units": streams.unit_ids}), flush=True)
        time.sleep(0.1)


if __name__ == "__main__":
    if sys.argv[1] == "send":
        send(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        receive(*sys.argv[2:])
