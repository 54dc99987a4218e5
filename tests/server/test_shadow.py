"""A shadow compares the requested number of seconds, on the streams that send."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pylsl
import pytest

from decoder.gate import Evidence
from server.calibration.shadow import LOOKS
from streaming.recording.outlets import kinematics_info, spikes_info
from streaming.sessions.session import Session
from streaming.wire.children import Child
from streaming.wire.lines import Message
from tests.rig import meanwhile
from tests.server.conftest import POSSM, Play
from training.baselines.linear import fit_linear

SECONDS = 2.0
POSITIONS = ("pos_x", "pos_y")


@contextmanager
def hardly_running(pid: int, *, run_s: float, stop_s: float) -> Iterator[None]:
    """Let a process run only part of the time, as on a busy machine."""

    def share(ended: threading.Event) -> None:
        while not ended.wait(run_s):
            os.kill(pid, signal.SIGSTOP)
            ended.wait(stop_s)
            os.kill(pid, signal.SIGCONT)

    with meanwhile(share):
        yield


@pytest.mark.slow
def test_a_starved_shadow_runs_until_it_has_compared_its_seconds(
    unseen: Session, play: Play, tmp_path: Path
) -> None:
    known = replace(
        unseen, train_domain=np.array([[0.0, 60.0]]), valid_domain=np.array([[60.0, 80.0]])
    )
    good = fit_linear(known, "ridge", tmp_path / "good.bundle")
    with play(unseen):
        shadow = Child("server.calibration.shadow", log=tmp_path / "shadow.log")
        try:
            shadow.send(
                active=str(POSSM), candidate=str(good.path), seconds=SECONDS,
                spikes=f"{unseen.session_id}-spikes", kinematics=f"{unseen.session_id}-kinematics",
            )  # fmt: skip
            assert "phase" in shadow.wait_for("phase", 60.0)  # before there is any evidence
            shadow.wait_for("evidence", 60.0)
            messages = list(_until_done(shadow, run_s=0.3, stop_s=0.7))
        finally:
            shadow.stop()
    evidence = Evidence.from_lists(messages[-1]["done"])
    assert evidence.compared_s >= SECONDS
    assert evidence.r2().value > 0.3


@pytest.mark.slow
def test_a_shadow_of_two_equal_decoders_takes_longer_than_requested(
    unseen: Session, play: Play, tmp_path: Path
) -> None:
    with play(unseen):
        shadow = Child("server.calibration.shadow", log=tmp_path / "shadow.log")
        try:
            shadow.send(
                active=str(POSSM), candidate=str(POSSM), seconds=SECONDS,
                spikes=f"{unseen.session_id}-spikes", kinematics=f"{unseen.session_id}-kinematics",
            )  # fmt: skip
            *_, last = shadow.messages(silent_s=120.0)
        finally:
            shadow.stop()
    assert _compared_s(last, "done") >= LOOKS[-1] * SECONDS


def _until_done(shadow: Child, *, run_s: float, stop_s: float) -> Iterator[dict[str, object]]:
    with hardly_running(shadow._process.pid, run_s=run_s, stop_s=stop_s):
        yield from shadow.messages(silent_s=120.0)


def test_a_stale_stream_of_the_same_name_is_skipped(
    unseen: Session, play: Play, tmp_path: Path
) -> None:
    """A sender that crashed and was restarted leaves such a stream, which may answer first."""
    spikes, kinematics = (f"{unseen.session_id}-{what}" for what in ("spikes", "kinematics"))
    leftovers = [
        pylsl.StreamOutlet(spikes_info(spikes, f"{spikes}-old", unseen.unit_ids)),
        pylsl.StreamOutlet(kinematics_info(kinematics, f"{kinematics}-old", POSITIONS, 100.0)),
    ]
    shadow = Child("server.calibration.shadow", log=tmp_path / "shadow.log")
    try:
        shadow.send(
            active=str(POSSM), candidate=str(POSSM), seconds=SECONDS, spikes=spikes,
            kinematics=kinematics,
        )  # fmt: skip
        for _ in range(2):  # it has opened the leftovers, and searches again
            shadow.wait_for("phase", 120.0)
        with play(unseen):
            while not _compared_s(shadow.wait_for("evidence", 120.0)):
                pass
    finally:
        shadow.stop()
    del leftovers


def _compared_s(message: Message, name: str = "evidence") -> float:
    return Evidence.from_lists(message[name]).compared_s
