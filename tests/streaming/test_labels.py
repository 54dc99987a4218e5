"""Labels and units of kinematics, over real LSL."""

from __future__ import annotations

import time

import numpy as np
import pylsl
import pytest

from decoder.errors import StreamError
from streaming.columns import COLUMNS
from streaming.inlets.kinematics import KinematicsInlet, find_kinematics, find_markers
from tests.rig import DEADLINE_S, wait_for


def sent(labels: list[str], units: list[str]) -> pylsl.StreamOutlet:
    name = f"hand-{time.time_ns()}"
    info = pylsl.StreamInfo(name, "Kinematics", len(labels), 100.0, pylsl.cf_float32, name)
    info.set_channel_labels(labels)
    info.set_channel_units(units)
    return pylsl.StreamOutlet(info)


def opened(outlet: pylsl.StreamOutlet) -> KinematicsInlet:
    name = outlet.get_info().name()
    return wait_for("the stream", lambda: find_kinematics(name, 0.3))


def test_channels_are_found_by_label_and_converted_to_metres() -> None:
    outlet = sent(["grip", "pos_y", "pos_x", "target_x"], ["", "cm", "cm", "mm"])
    inlet = opened(outlet)
    assert inlet.labels == ("pos_x", "pos_y", "target_x")
    assert outlet.wait_for_consumers(DEADLINE_S)
    at = pylsl.local_clock()
    outlet.push_sample([7.0, 20.0, 10.0, 300.0], at)
    times, values = wait_for("the sample", lambda: (got := inlet.drain())[0].size and got)
    assert times[0] == pytest.approx(at, abs=0.01)
    expected = {"pos_x": 0.1, "pos_y": 0.2, "target_x": 0.3}
    seen = {c: v for c, v in zip(COLUMNS, values[0], strict=True) if np.isfinite(v)}
    assert seen == pytest.approx(expected, rel=1e-6)
    inlet.close()


@pytest.mark.parametrize(
    ("labels", "units", "reason"),
    [
        (["0", "1"], ["m/s", "m/s"], "expected pos_x and pos_y, or vel_x and vel_y"),
        (["pos_x", "vel_y"], ["m", "m/s"], "expected pos_x and pos_y, or vel_x and vel_y"),
        (["pos_x", "pos_y"], ["furlong", "m"], "is in furlong"),
    ],
)
def test_unusable_kinematics_are_refused_with_the_reason(
    labels: list[str], units: list[str], reason: str
) -> None:
    outlet = sent(labels, units)
    with pytest.raises(StreamError, match=reason):
        opened(outlet)


def test_a_sender_that_is_gone_raises_an_error() -> None:
    outlet = sent(["pos_x", "pos_y"], ["m", "m"])
    inlet = opened(outlet)
    del outlet

    def lost() -> bool:
        try:
            inlet.drain()
        except StreamError as error:
            return "is gone" in str(error)
        return False

    wait_for("the loss", lost)


def test_markers_have_their_time_stamps() -> None:
    name = f"markers-{time.time_ns()}"
    outlet = pylsl.StreamOutlet(pylsl.StreamInfo(name, "Markers", 1, 0.0, pylsl.cf_string, name))
    inlet = wait_for("the stream", lambda: find_markers(name, 0.3))
    assert outlet.wait_for_consumers(DEADLINE_S)
    at = pylsl.local_clock()
    outlet.push_sample(["trial_start 7"], at)
    ((time_s, text),) = wait_for("the marker", inlet.drain)
    assert text == "trial_start 7"
    assert time_s == pytest.approx(at, abs=0.01)
