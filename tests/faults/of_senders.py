"""Faults of the sender, its stamps and the link to it."""

from __future__ import annotations

import signal
from collections.abc import Callable

from pylsl import local_clock

from tests.faults.fault import Fault, Seconds
from tests.faults.network import MovableClock, no_compiler, no_root
from tests.faults.rig import CountsRig, DaemonRig, LinkRig, Rig
from tests.faults.sender import Sender

STALE = "not valid 250 ms after the last spike; valid again once new spikes fill the window"
UNUSABLE = "no valid frame while stamps are unusable; valid again with the first usable window"


def closed(rig: Rig) -> Seconds:
    rig.moment()
    start = local_clock()
    rig.sender.close()
    silent = rig.until_not_valid(start)
    rig.moment()
    rig.start_sender()
    return silent | rig.until_valid()


def killed(rig: Rig) -> Seconds:
    rig.moment()
    start = local_clock()
    rig.sender.kill()
    silent = rig.until_not_valid(start)
    rig.moment()
    rig.start_sender()
    return silent | rig.until_valid()


def stopped(rig: Rig) -> Seconds:
    rig.moment()
    start = local_clock()
    rig.sender.popen.send_signal(signal.SIGSTOP)
    silent = rig.until_not_valid(start)
    rig.moment(5.0)
    rig.sender.popen.send_signal(signal.SIGCONT)
    return silent | rig.until_valid()


def cut(rig: LinkRig) -> Seconds:
    rig.moment()
    start = local_clock()
    rig.link.cut()
    silent = rig.until_not_valid(start)
    rig.moment(8.0)
    rig.link.mend()
    return silent | rig.until_valid()


def power_cut(rig: LinkRig) -> Seconds:
    """Power off the sender's host, without any closing message; a new sender comes back."""
    rig.moment()
    start = local_clock()
    rig.link.cut()
    rig.sender.kill()
    silent = rig.until_not_valid(start)
    rig.moment(8.0)
    rig.link.replace_far()
    rig.start_sender()
    return silent | rig.until_valid()


def other_units(rig: DaemonRig) -> Seconds:
    rig.sender.kill()
    rig.until_not_valid()
    stranger = rig.start_sender(strange="yes")
    rig.until("the reason", lambda: "right bundle" in rig.status().detail)
    rig.never_valid(0.5)
    stranger.kill()
    rig.start_sender()
    return rig.until_valid()


def _stamps(kind: str, lasting_s: float = 1.5) -> Callable[[DaemonRig], Seconds]:
    def attempt(rig: DaemonRig) -> Seconds:
        rig.moment()
        start = local_clock()
        rig.sender.send("stamps", kind)
        silent = rig.until_not_valid(start)
        rig.never_valid(rig.rng.uniform(0.2, lasting_s))
        rig.sender.send("stamps", "true")
        return silent | rig.until_valid()

    return attempt


def stamps_of_zero(rig: DaemonRig) -> Seconds:
    """Send stamps of zero; LSL stamps such samples itself, so they may be decoded."""
    rig.moment()
    rig.sender.send("stamps", "zero")
    rig.moment(1.5)
    rig.sender.send("stamps", "true")
    return rig.until_valid()


def unix_from_the_start(rig: CountsRig | DaemonRig) -> Seconds:
    """Send only unusable stamps, then nothing: a stamp in the future is not a sign of life."""
    rig.sender.kill()
    rig.until_not_valid()
    sender = rig.start_sender()
    sender.send("stamps", "unix")
    rig.until("the stream", lambda: rig.status().stream)
    rig.never_valid(1.5)
    sender.send("rate", 0)
    rig.never_valid(1.0)
    sender.send("stamps", "true")
    sender.send("rate", 1000)
    return rig.until_valid()


def silent_counts(rig: CountsRig) -> Seconds:
    rig.moment()
    start = local_clock()
    rig.sender.send("rate", 0)
    silent = rig.until_not_valid(start)
    rig.moment(2.0)
    rig.sender.send("rate", 1000)
    return silent | rig.until_valid()


class ClockRig(DaemonRig):
    """A sender whose clock can be moved."""

    def start(self) -> None:
        self.clock = MovableClock(self.folder)
        super().start()

    def _sender_runs_in(self) -> dict[str, object]:
        return {"environment": self.clock.environment}


def clock_jumped(rig: ClockRig) -> Seconds:
    """Move the sender's clock; LSL measures the offset only every few seconds."""
    rig.moment()
    before = rig.status().offset_jumps
    start = local_clock()
    rig.clock.step(rig.rng.choice([-3.0, -0.1, 0.03, 0.08, 5.0]))
    rig.until("the jump", lambda: rig.status().offset_jumps > before)
    return {"to known": local_clock() - start} | rig.until_valid()


def flood(rig: DaemonRig) -> Seconds:
    """Send as fast as possible, up to ten times the rate that the ring holds."""
    pid = rig.status().pid
    rig.sender.send("rate", 2_000_000)
    silence = rig.frames_for(rig.rng.uniform(1.0, 2.0))
    rig.sender.send("rate", 1000)
    seconds = rig.until_valid()
    assert rig.status().pid == pid
    return silence | seconds


def two_of_one_name(rig: DaemonRig) -> Seconds:
    """Start a silent stream of the same name, which is found first."""
    rig.sender.kill()
    rig.until_not_valid()
    leftover: Sender = rig.start_sender()
    leftover.send("rate", 0)
    rig.until("the leftover", lambda: rig.status().stream)
    rig.start_sender()
    start = local_clock()
    rig.until(
        "the live stream, or a status with both",
        lambda: rig.checker.since(start)[-1:][0].valid or "2 streams" in rig.status().detail
        if rig.checker.since(start) else None,
    )  # fmt: skip
    leftover.kill()
    return rig.until_valid()


FAULTS = (
    Fault(name="sender-closed", what="The sender closes its stream", must_hold=STALE,
          rig=DaemonRig, attempt=closed),
    Fault(name="sender-killed", what="The sender gets SIGKILL", must_hold=STALE,
          rig=DaemonRig, attempt=killed),
    Fault(name="sender-stopped", what="The sender is stopped (SIGSTOP) and continued",
          must_hold=STALE, rig=DaemonRig, attempt=stopped),
    Fault(name="counts-killed", what="A sender of `SpikeCounts` gets SIGKILL", must_hold=STALE,
          rig=CountsRig, attempt=killed),
    Fault(name="counts-silent", what="A sender of `SpikeCounts` falls silent", must_hold=STALE,
          rig=CountsRig, attempt=silent_counts),
    Fault(name="link-cut", what="The link is cut for up to 8 s (network namespaces)",
          must_hold=STALE, rig=LinkRig, attempt=cut, blocked=no_root),
    Fault(name="power-cut", what="The sender's host loses power and comes back",
          must_hold=STALE, rig=LinkRig, attempt=power_cut, blocked=no_root),
    Fault(name="other-units", what="The sender comes back with other units",
          must_hold="refused, with the reason in the status; valid again with the right units",
          rig=DaemonRig, attempt=other_units),
    Fault(name="stamps-unix", what="Stamps become Unix time", must_hold=UNUSABLE,
          rig=DaemonRig, attempt=_stamps("unix")),
    Fault(name="stamps-nan", what="Stamps become NaN", must_hold=UNUSABLE,
          rig=DaemonRig, attempt=_stamps("nan")),
    Fault(name="stamps-ahead", what="Stamps jump an hour ahead", must_hold=UNUSABLE,
          rig=DaemonRig, attempt=_stamps("ahead")),
    Fault(name="stamps-back", what="Stamps step back by 10 s for good", must_hold=UNUSABLE,
          rig=DaemonRig, attempt=_stamps("back")),
    Fault(name="stamps-zero", what="Stamps become zero (LSL stamps them at departure)",
          must_hold="frames are valid only while spikes arrive", rig=DaemonRig,
          attempt=stamps_of_zero),
    Fault(name="unix-from-start", what="A new sender stamps Unix time, then falls silent",
          must_hold=UNUSABLE, rig=DaemonRig, attempt=unix_from_the_start),
    Fault(name="counts-unix", what="The same with `SpikeCounts`", must_hold=UNUSABLE,
          rig=CountsRig, attempt=unix_from_the_start),
    Fault(name="clock-jump", what="The sender's clock jumps by -3 s to 5 s",
          must_hold="the window is emptied once the jump is measured, then fills again",
          rig=ClockRig, attempt=clock_jumped, blocked=no_compiler),
    Fault(name="flood", what="Spikes at up to 10 times the highest rate",
          must_hold="the daemon survives; no false frame; valid again without help",
          rig=DaemonRig, attempt=flood),
    Fault(name="two-senders", what="Two senders of the same name; the silent one is found first",
          must_hold="the live one is decoded, or the status names both; valid once one is left",
          rig=DaemonRig, attempt=two_of_one_name),
)  # fmt: skip
