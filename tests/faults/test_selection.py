"""A selection of the campaign's faults (`make faults` tries all), and the rules of the checker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import msgspec
import numpy as np
import pytest

from streaming.wire import messages as wire
from tests.faults import campaign
from tests.faults.checker import broken_rules, undeliverable
from tests.faults.fault import Try
from tests.faults.page import write
from tests.faults.sender import SENT

SELECTION = (
    "sender-killed", "counts-unix", "power-cut", "control-nesting", "decoder-huge",
    "watchdog-other-schema",
)  # fmt: skip
WINDOWS = {"d": 0.4}


@pytest.mark.parametrize("name", SELECTION)
def test_a_fault_breaks_no_rule(name: str, tmp_path: Path) -> None:
    fault = next(fault for fault in campaign.FAULTS if fault.name == name)
    if why := fault.blocked():
        pytest.skip(why)
    one = Try(fault=name, number=0, problems=[])
    with fault.rig(tmp_path / "rig") as rig:
        campaign.attempt(fault, rig, one, Random(0))
    assert not one.problems


def frame(end: float, **other: object) -> wire.CursorFrame:
    good = wire.CursorFrame(
        schema=wire.SCHEMA_VERSION, started=0.0, seq=round(end * 100), session="s", decoder="d",
        state="decoding", valid=True, window_end=end, newest_spike=end, decode_ms=1.0,
        published=end + 0.001, velocity=(0.1, 0.0), n_spikes=9, n_drained=9, clock_offset=0.0,
        latency_ms=1.0,
    )  # fmt: skip
    return msgspec.structs.replace(good, **other)


def spikes(start: float, end: float) -> np.ndarray:
    """Chunks of 10 ms, each sent at its end."""
    times = np.arange(start, end, 0.01)
    chunks = [(time + 0.01, time, time + 0.01, 5) for time in times]
    return np.array(chunks, dtype=SENT)


SENT_SPIKES = np.concatenate([spikes(1.0, 2.0), spikes(2.3, 4.0)])


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"end": 0.9}, "without spikes"),
        ({"end": 1.2}, "before spikes filled"),
        ({"end": 2.29}, "after the spikes had stopped"),
        ({"end": 2.35}, "across a gap"),
        ({"end": 3.5, "velocity": (1e30, 0.0)}, "any hand"),
        ({"end": 3.5, "velocity": (float("nan"), 0.0)}, "any hand"),
        ({"end": 3.5, "published": 3.9}, "late"),
        ({"end": 3.5, "valid": False, "state": "stale"}, "velocity without"),
        ({"end": 3.5, "state": "warming"}, "another state"),
        ({"end": 3.5, "started": 3.2}, "after the start"),
        ({"end": 1.7}, "time went back"),
        ({"end": 3.5, "clock_offset": 0.01}, "jump of the clock"),
        ({"end": 3.75}, "a pause was accepted"),
    ],
)
def test_the_checker_detects_each_broken_rule(wrong: dict[str, object], rule: str) -> None:
    before = frame(1.9, seq=0)
    after = frame(**({"seq": 1} | wrong))
    found = broken_rules([before, after], SENT_SPIKES, WINDOWS, [(3.7, 3.8)])
    assert any(rule in line for line in found), found


def test_the_checker_accepts_correct_frames() -> None:
    right = [frame(1.5), frame(2.1), frame(2.3, valid=False, state="stale", velocity=(0.0, 0.0)),
             frame(3.1), frame(3.9)]  # fmt: skip
    assert not broken_rules(right, SENT_SPIKES, WINDOWS)


def test_spikes_sent_into_a_cut_link_do_not_count() -> None:
    sent = undeliverable(SENT_SPIKES, [(1.5, 2.5)])
    assert any("stopped" in line for line in broken_rules([frame(1.9)], sent, WINDOWS))
    assert not broken_rules([frame(1.5)], sent, WINDOWS)


def test_the_page_lists_broken_and_untried_faults(tmp_path: Path) -> None:
    good = Try(fault="sender-killed", number=0, problems=[], seconds={"to valid": 0.5}, frames=7)
    tries = [good, replace(good, number=1, problems=["a | b"], seconds={"to valid": 1.5})]
    write(tmp_path / "RELIABILITY.md", tries, seed=0)
    text = (tmp_path / "RELIABILITY.md").read_text()
    assert "**broke in 1**: a / b; to valid 1.00, 1.50 | 2 |" in text
    assert "not tried" in text
    assert "1 faults, 2 tries: 1 held. 14 frames were checked" in text
    assert (tmp_path / "reliability.json").exists()
