"""The relay of cursor frames from ZeroMQ to LSL, both real."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from clients.relay import Relay, RelaySettings
from decoder.errors import SettingsError
from streaming.columns import VELOCITY
from streaming.inlets.kinematics import find_kinematics
from streaming.wire.publish import Publisher
from tests.clients.test_subscriber import frame
from tests.rig import running, wait_for


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    made = Publisher("tcp://127.0.0.1:*")
    yield made
    made.close()


@pytest.fixture
def relay(publisher: Publisher) -> Iterator[Relay]:
    name = f"relay-{time.time_ns()}"
    with Relay(RelaySettings(name=name, address=publisher.bound_to)) as made:
        wait_for("the subscription", lambda: publisher.see_subscribers() or heard(publisher))
        yield made


def heard(publisher: Publisher) -> bool:
    return publisher._wanted("cursor")


def moving(seq: int, x: float, y: float) -> object:
    import msgspec

    return msgspec.structs.replace(frame(seq), velocity=(x, y))


def test_a_sample_is_the_mean_of_the_frames_since_the_one_before(
    publisher: Publisher, relay: Relay
) -> None:
    seqs = count()

    def both_arrived_and_are_young() -> bool:
        for x in (0.1, 0.3):
            publisher.send(moving(next(seqs), x, -0.2))
        time.sleep(0.02)  # on a busy machine one may come later, and the next try is on time
        mean, again = relay.velocity(), relay.velocity()
        return mean == again == pytest.approx((0.2, -0.2))

    wait_for("the mean of two frames, told twice", both_arrived_and_are_young)


def test_stale_or_invalid_frames_move_nothing(publisher: Publisher, relay: Relay) -> None:
    assert relay.velocity() == (0.0, 0.0), "before the first frame"
    publisher.send(moving(0, 0.1, 0.1))
    wait_for("the frame", lambda: relay.velocity() != (0.0, 0.0))
    wait_for("its end", lambda: relay.velocity() == (0.0, 0.0))


def test_the_relay_sends_over_lsl_until_it_is_stopped(publisher: Publisher, tmp_path: Path) -> None:
    name = f"relay-{time.time_ns()}"
    arguments = ("relay", "--name", name, "--rate", "100", "--address", publisher.bound_to)
    with running(tmp_path / "relay.log", *arguments) as process:
        inlet = wait_for("the stream", lambda: find_kinematics(name, 0.3))
        assert inlet.labels == ("vel_x", "vel_y")
        sent = iter(range(10_000))

        def arrived() -> bool:
            publisher.see_subscribers()
            publisher.send(moving(next(sent), 0.25, -0.5))
            _, values = inlet.drain()
            return len(values) > 0 and values[-1, VELOCITY].tolist() == [0.25, -0.5]

        wait_for("a velocity", arrived)
        inlet.close()
        assert process.stop(signal.SIGTERM) == 0, process.output()


@pytest.mark.parametrize("rate_hz", [0.0, -1.0, math.nan])
def test_an_invalid_rate_is_refused(rate_hz: float) -> None:
    with pytest.raises(SettingsError, match="expected more than 0"):
        RelaySettings(name="x", rate_hz=rate_hz)
