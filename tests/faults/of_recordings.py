"""Faults of `volition record`: a disk that fills, a recorder that dies, a link that is cut."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
from pylsl import local_clock

from decoder.errors import VolitionError
from streaming.recording.raw import SPIKES_FILE, read_recording
from streaming.sessions.session import Session
from tests.faults.fault import Fault, Seconds
from tests.faults.network import Link, no_root, small_disk
from tests.faults.rig import Rig
from tests.faults.sender import SENT, read_log
from tests.rig import Process

LOST_S = 1.0  # at most, when a recorder is killed
KEPT = "the data up to then are kept and readable as a session, to within a second"


class RecorderRig(Rig):
    """A sender of spikes and kinematics; each try records under a new name."""

    def settle(self) -> None:
        if self.sender.popen.poll() is not None:
            self.start_sender()

    def record(self, folder: Path, prefix: tuple[str, ...] = ()) -> tuple[Process, Path]:
        """Start a recorder and wait until it has written some data; returns it and its folder."""
        name = f"try-{len(self.programs)}"
        process = self.program(
            "record", "-o", str(folder), "--name", name, "--spikes", self.stream,
            "--kinematics", f"{self.stream}-kinematics", prefix=prefix,
        )  # fmt: skip
        path = folder / f"{name}.recording"
        self.until("spikes on disk", lambda: _size(path / SPIKES_FILE) > 30_000)
        return process, path


class RecorderLinkRig(RecorderRig):
    """The recorder on one host, the sender on another."""

    def start(self) -> None:
        self.link = Link()
        self.cuts = self.link.cuts
        super().start()

    def _sender_runs_in(self) -> dict[str, object]:
        return {"prefix": self.link.inside(self.link.far)}

    def close(self) -> None:
        super().close()
        if hasattr(self, "link"):
            self.link.close()


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _ended_cleanly(rig: RecorderRig, process: Process) -> None:
    rig.until("its end", lambda: process.popen.poll() is not None)
    assert process.popen.returncode == 1, f"exit code {process.popen.returncode}"
    last = process.output().strip()
    assert last, "it printed nothing"


def _kept(rig: RecorderRig, path: Path, until: float) -> Session:
    """The session recorded up to `until` (LSL clock, s), checked against the senders' logs."""
    session = read_recording(path)
    assert until - session.cursor_times[-1] < LOST_S, "more than a second of kinematics is lost"
    assert until - session.spike_times[-1] < LOST_S, "more than a second of spikes is lost"
    sent = np.concatenate([np.empty(0, dtype=SENT), *(read_log(s.log) for s in rig.senders)])
    first, last = session.spike_times[0], session.spike_times[-1]
    inside = sent[(sent["first"] >= first) & (sent["last"] <= last)]
    there = ((session.spike_times >= first) & (session.spike_times <= last)).sum()
    missing = int(inside["usable"].sum()) - int(there)
    assert missing <= 0, f"{missing} of {inside['usable'].sum()} spikes are missing"
    return session


def killed(rig: RecorderRig) -> Seconds:
    process, path = rig.record(rig.folder)
    rig.moment(3.0)
    end = local_clock()
    process.popen.send_signal(signal.SIGKILL)
    process.popen.wait()
    _kept(rig, path, end)
    return {}


def sender_killed(rig: RecorderRig) -> Seconds:
    """Kill the sender; the recorder ends with an error or waits for another sender."""
    process, path = rig.record(rig.folder)
    rig.moment()
    rig.sender.kill()
    end = local_clock()
    rig.until("its end, or a second", lambda: process.popen.poll() is not None
              or local_clock() > end + 3.0)  # fmt: skip
    process.popen.send_signal(signal.SIGINT)
    process.popen.wait(30)
    assert _recorded(path).spike_times[-1] > end - LOST_S
    return {}


def _recorded(path: Path) -> Session:
    """The session, read from the folder or from the imported file."""
    from streaming.sessions import format as sessions

    made = path.with_suffix(".h5")
    return sessions.load(made) if made.exists() else read_recording(path)


def disk_full(rig: RecorderRig) -> Seconds:
    with small_disk(rig.folder / f"disk-{len(rig.programs)}", "1m") as disk:
        process, path = rig.record(disk.path)
        rig.moment(2.0)
        disk.fill(but_bytes=rig.rng.randrange(8192))
        start = local_clock()
        _ended_cleanly(rig, process)
        ended = {"to its end": local_clock() - start}
        disk.empty()
        _kept(rig, path, start)
    return ended


def link_cut(rig: RecorderLinkRig) -> Seconds:
    """Cut the link for up to 5 s; the data up to the cut must be kept."""
    process, path = rig.record(rig.folder, rig.link.inside(rig.link.near))
    rig.moment()
    rig.link.cut()
    end = local_clock()
    rig.moment(5.0)
    rig.link.mend()
    rig.until("spikes again, or its end", lambda: process.popen.poll() is not None
              or _last_spike(path) > local_clock() - 1.0)  # fmt: skip
    process.popen.send_signal(signal.SIGINT)
    process.popen.wait(30)
    session = _recorded(path)
    assert (session.spike_times < end + 0.1).any()
    assert session.spike_times[-1] > end - LOST_S
    return {}


def _last_spike(path: Path) -> float:
    try:
        return float(read_recording(path).spike_times[-1])
    except (VolitionError, ValueError):
        return -float("inf")


FAULTS = (
    Fault(name="recorder-killed", what="The recorder gets SIGKILL", must_hold=KEPT,
          rig=RecorderRig, attempt=killed),
    Fault(name="recorder-sender-killed", what="The recorder's sender gets SIGKILL",
          must_hold="one line with the reason; " + KEPT, rig=RecorderRig, attempt=sender_killed),
    Fault(name="recorder-disk-full", what="The recorder's disk is full",
          must_hold="one line with the reason; " + KEPT, rig=RecorderRig, attempt=disk_full,
          blocked=no_root),
    Fault(name="recorder-link-cut", what="The recorder's link is cut for up to 5 s",
          must_hold=KEPT, rig=RecorderLinkRig, attempt=link_cut, blocked=no_root),
)  # fmt: skip
