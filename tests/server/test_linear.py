"""Calibrations of ridge regression and the Kalman filter, by the same calls as any other."""

from __future__ import annotations

import pytest

from clients.harness.server import Server
from clients.rest import ProblemError
from clients.subscriber import CursorSubscriber
from decoder.bundles.bundle import open_bundle
from server.schemas import Calibration
from streaming.sessions.session import Session
from tests.rig import frames_until
from tests.server.conftest import POSSM, Play
from tests.server.test_decisions import r2
from tests.server.test_survival import request_for
from tests.streaming.test_live import is_decoding


def calibrated(server: Server, session: Session, **given: object) -> Calibration:
    with server.client() as client:
        return list(client.calibrate(request_for(session, **given)))[-1]


@pytest.mark.slow
def test_linear_decoders_are_calibrated_and_promoted_but_are_no_base_for_training(
    server: Server, unseen: Session, play: Play
) -> None:
    pretrained = open_bundle(POSSM).manifest.decoder_id
    with (
        play(unseen),
        CursorSubscriber(server.address, max_age_s=None) as cursor,
        server.client() as client,
    ):
        frames_until(cursor, is_decoding)
        ridge = calibrated(server, unseen, method="ridge", seconds=20.0)
        assert ridge.state == "promoted", ridge
        assert (ridge.method, ridge.base, ridge.before) == ("ridge", pretrained, pretrained)
        frames_until(cursor, lambda frame: frame.decoder == ridge.candidate and frame.valid)
        plot = client.traces(ridge.id)
        assert ridge.held_out is not None
        assert r2(plot, plot.candidate) == pytest.approx(ridge.held_out.candidate, abs=1e-4)
        if plot.active is not None:  # the shipped decoder knows some of the names
            assert r2(plot, plot.active) == pytest.approx(ridge.held_out.active, abs=1e-4)

        kalman = calibrated(server, unseen, method="kalman", promote="never", data=ridge.id)
        assert kalman.candidate is not None, kalman
        assert (kalman.collected_s, kalman.spikes) == (ridge.collected_s, ridge.spikes)
        assert not list((server.home / "calibrations" / kalman.id).glob("*.h5"))
        assert (kalman.method, kalman.base, kalman.before) == (
            "kalman", pretrained, ridge.candidate,
        )  # fmt: skip
        client.activate(kalman.candidate)
        frames_until(cursor, lambda frame: frame.decoder == kalman.candidate and frame.valid)
        client.rollback()
        frames_until(cursor, lambda frame: frame.decoder == ridge.candidate and frame.valid)

        with pytest.raises(ProblemError, match=f"it learned from {ridge.id}"):
            calibrated(server, unseen, method="ridge", data=kalman.id)  # it has no data of its own

        refused = calibrated(server, unseen, method="units", base=ridge.candidate)
        assert refused.state == "failed"
        assert refused.problem is not None
        assert "can't be trained further" in refused.problem.detail
        assert refused.collected_s == 0.0
