"""A calibration learns from the data of several earlier ones, whatever became of those."""

from __future__ import annotations

import shutil

import pytest

from clients.control import ControlClient
from clients.harness.server import Server
from clients.rest import ProblemError
from decoder.bundles.bundle import open_bundle
from server.calibration.driven import read_driving
from server.schemas import Calibration
from streaming.sessions import format as sessions
from streaming.sessions.intervals import duration_s
from streaming.sessions.session import Session
from tests.rig import POLLED_LATE_S, wait_for
from tests.server.conftest import Play
from tests.server.test_survival import has_collected, request_for

LINEAR = {"method": "ridge", "promote": "never"}  # takes the least time


def ended(client: ControlClient, session: Session, **given: object) -> Calibration:
    return list(client.calibrate(request_for(session, **(LINEAR | given))))[-1]


def refusal(client: ControlClient, session: Session, **given: object) -> str:
    with pytest.raises(ProblemError) as refused:
        client.start_calibration(request_for(session, **(LINEAR | given)))
    assert not [c for c in client.calibrations() if c.ended is None], "something was started"
    return f"{refused.value.problem.status}: {refused.value.problem.detail}"


def learned_s(server: Server, calibration: Calibration) -> float:
    """Seconds that the candidate was fitted to."""
    path = server.home / "decoders" / f"{calibration.candidate}.bundle"
    return float(open_bundle(path).manifest.provenance["training_data_s"])


def cut_short(client: ControlClient, session: Session, seconds: float, **given: object) -> str:
    """The id of a calibration that was cancelled after it had collected some seconds."""
    begun = client.start_calibration(request_for(session, seconds=600.0, **given))
    wait_for("data", lambda: has_collected(client.calibration(begun.id), seconds))
    assert client.cancel_calibration(begun.id).state == "cancelled"
    return begun.id


@pytest.mark.slow
def test_data_of_a_cancelled_calibration_are_learned_from_with_new_ones(
    server: Server, unseen: Session, play: Play
) -> None:
    with play(unseen), server.client() as client:
        first = cut_short(client, unseen, 7.0)
        second = ended(client, unseen, seconds=6.0, with_data=[first])
        assert second.candidate is not None, second
        assert 5.5 < second.collected_s < 6.0 + POLLED_LATE_S
        assert second.earlier_s > 7.0
        (collected,) = (server.home / "calibrations" / second.id).glob("*.h5")
        own_s = duration_s(sessions.load(collected).domain)
        assert own_s == pytest.approx(6.0, abs=1.0)
        assert learned_s(server, second) == pytest.approx(0.8 * (own_s + second.earlier_s), abs=1.5)
        assert second.held_out is not None
        folder = server.home / "calibrations" / first
        assert not list(folder.glob("*.h5")), "it would pass for complete if it were resumed"

        again = ended(client, unseen, data=[second.id, first])
        assert again.candidate is not None, again
        assert learned_s(server, again) == learned_s(server, second)
        assert again.collected_s == pytest.approx(second.collected_s + second.earlier_s)
        nothing = refusal(client, unseen, data=[again.id])
        assert f"it learned from {second.id}, {first}" in nothing


def test_data_that_can_not_be_used_are_refused_by_name_and_kept(
    server: Server, unseen: Session, play: Play
) -> None:
    with server.client() as client:
        begun = client.start_calibration(request_for(unseen))
        client.cancel_calibration(begun.id)
        assert "is cancelled and collected no data" in refusal(client, unseen, data=begun.id)
    with play(unseen), server.client() as client:
        few = cut_short(client, unseen, 2.0)
        other = cut_short(client, unseen, 0.0, subject="monkey")
        unknown = refusal(client, unseen, data=[few, "cal-never"])
        assert unknown.startswith("404: no calibration 'cal-never'")
        assert "named 2 times" in refusal(client, unseen, data=[few, other, few])
        assert "both data and with_data" in refusal(client, unseen, data=few, with_data=[other])
        subjects = refusal(client, unseen, data=[few, other])
        assert f"{few} of 'unknown', {other} of 'monkey'" in subjects
        assert "this request of 'unknown'" in refusal(client, unseen, with_data=[other])

        failed = ended(client, unseen, data=few)
        assert failed.state == "failed", failed
        assert f"the data of {few} can't be used" in failed.problem.detail
        assert "collect longer" in failed.problem.detail
        assert f"it learned from {few}: name that" in refusal(client, unseen, data=failed.id)
        folder = server.home / "calibrations" / few
        (recording,) = folder.glob("*.recording")
        assert (recording / "spikes.bin").stat().st_size > 10_000, "the data were lost"
        driving = read_driving(recording)  # without it, a gain could not be divided out
        assert len(driving.times) > 50
        assert len(driving.gains)
        shutil.rmtree(folder)
        gone = refusal(client, unseen, data=[few])
        assert gone.startswith(f"404: {few} collected")
        assert "has no data; leave it out" in gone
