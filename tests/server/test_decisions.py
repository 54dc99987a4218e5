"""What an operator decides about ended calibrations, and what there is to decide by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.control import ControlClient
from clients.harness.server import Server
from clients.rest import ProblemError
from decoder.bundles.bundle import open_bundle
from decoder.score import pooled_r2
from decoder.traces import TRACES, Traces
from server.calibration.traces import HeldOutTraces, Velocity
from server.schemas import Calibration, CalibrationRequest, Scores
from server.store.journal import Journal
from tests.rig import wait_for
from tests.server.conftest import POSSM
from tests.server.orders_rig import RefusedError, Rig, World, tiny_bundle

SHIPPED = open_bundle(POSSM).manifest.decoder_id
ENDED = ("ready", "undecided", "rejected", "promoted", "failed", "cancelled", "interrupted")
BEGAN = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)


def calibration(state: Any, number: int, **values: Any) -> Calibration:
    """A calibration that an earlier server has left, with a candidate of its own."""
    return Calibration(
        **{
            "id": f"cal-{state}", "state": state, "request": CalibrationRequest(),
            "created": BEGAN + timedelta(hours=number), "candidate": f"of-{state}",
            "method": "units", "verdict": "as the gate said",
        } | values
    )  # fmt: skip


def leave(home: Path, *calibrations: Calibration) -> None:
    """Write calibrations and their candidates as an earlier server would."""
    journal = Journal(home / "journal.sqlite")
    for one in calibrations:
        journal.save_calibration(one.id, None, one.model_dump_json())
        if one.candidate is not None:
            tiny_bundle(home / "decoders" / f"{one.candidate}.bundle", one.candidate)
    journal.close()


@contextmanager
def serving(home: Path) -> Iterator[tuple[Server, ControlClient]]:
    with (
        Server(POSSM, home, "nobody-streams-this") as server,
        ControlClient(server.url, operator="Ada") as client,
    ):
        yield server, client


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, ControlClient]]:
    """A server with one ended calibration of each state, and others that have no traces."""
    home = tmp_path_factory.mktemp("home")
    few = Scores(candidate=None, active=None, seconds=0.0)
    own, old = CalibrationRequest(labels="decoded"), CalibrationRequest()
    leave(
        home,
        *(calibration(state, number) for number, state in enumerate(ENDED)),
        calibration("ready", 10, id="deleted-candidate", candidate="deleted"),
        calibration("undecided", 11, id="own-labels", request=own, candidate=None),
        calibration("undecided", 12, id="too-few", request=old, candidate=None, held_out=few),
        calibration("failed", 13, id="early", candidate=None, method=None),
    )
    with serving(home) as running:
        running[1].delete_decoder("deleted")
        yield running


def refused(client: ControlClient, what: str, identity: str, status: int = 409) -> str:
    """Why a decision is refused; the calibration is as before."""
    before = client.calibrations()
    with pytest.raises(ProblemError) as caught:
        getattr(client, what)(identity)
    assert caught.value.problem.status == status
    assert client.calibrations() == before
    return caught.value.problem.detail


def test_a_candidate_that_waits_or_was_rejected_is_promoted(
    shared: tuple[Server, ControlClient],
) -> None:
    server, client = shared
    for state in ("ready", "undecided", "rejected"):
        before = client.status().daemon.decoder
        done = client.promote_calibration(f"cal-{state}")
        assert (done.state, done.verdict) == ("promoted", "as the gate said")
        daemon = client.status().daemon
        assert (daemon.decoder, daemon.previous) == (f"of-{state}", before)
        noted = [(c.who, c.what, c.detail) for c in client.journal(2)]
        assert noted == [
            ("Ada", "calibration", {"id": done.id, "state": "promoted"}),
            ("Ada", "activate", {"decoder": done.candidate, "before": before}),
        ]
        assert f"cal-{state} is promoted" in refused(client, "promote_calibration", done.id)
        assert f"cal-{state} is promoted" in refused(client, "reject_calibration", done.id)
    server.stop()
    server.start()
    assert client.calibration(done.id) == done
    assert client.status().daemon.decoder == done.candidate


@pytest.mark.parametrize("state", ["promoted", "failed", "cancelled", "interrupted"])
def test_others_can_be_neither_promoted_nor_rejected(
    shared: tuple[Server, ControlClient], state: str
) -> None:
    _, client = shared
    assert "only one that is ready, undecided or rejected can be promoted" in refused(
        client, "promote_calibration", f"cal-{state}"
    )
    assert "only one that is ready or undecided can be rejected" in refused(
        client, "reject_calibration", f"cal-{state}"
    )


def test_what_can_not_be_promoted_is_refused_with_the_reason(
    shared: tuple[Server, ControlClient],
) -> None:
    _, client = shared
    decoding = client.status().daemon.decoder
    assert "deleted, the candidate of deleted-candidate, is no longer registered" in refused(
        client, "promote_calibration", "deleted-candidate"
    )
    assert "no calibration 'never'" in refused(client, "promote_calibration", "never", 404)
    begun = client.start_calibration(CalibrationRequest(seconds=5.0, base=SHIPPED))
    for what in ("promote_calibration", "reject_calibration"):
        with pytest.raises(ProblemError, match=f"{begun.id} is collecting; wait for its end"):
            getattr(client, what)(begun.id)
    client.cancel_calibration(begun.id)
    client.delete_calibration(begun.id)
    assert client.status().daemon.decoder == decoding


def test_a_candidate_is_rejected_by_name(tmp_path: Path) -> None:
    leave(tmp_path, calibration("ready", 0), calibration("undecided", 1))
    with serving(tmp_path) as (server, client):
        for state in ("ready", "undecided"):
            done = client.reject_calibration(f"cal-{state}")
            assert (done.state, done.verdict) == ("rejected", "rejected by Ada")
            (change,) = client.journal(1)
            assert (change.who, change.detail) == ("Ada", {"id": done.id, "state": "rejected"})
            assert "is rejected" in refused(client, "reject_calibration", done.id)
        server.stop()
        server.start()
        assert {one.state for one in client.calibrations()} == {"rejected"}
        assert client.status().daemon.decoder == SHIPPED
        assert client.promote_calibration("cal-ready").state == "promoted", "an operator may err"


def test_a_promotion_that_fails_leaves_the_calibration_as_it_was(world: World) -> None:
    rig = Rig(world)
    try:
        rig.start_server()
        (rig.folder / "alike").touch()
        identity = rig.ask("calibrate", method="units")

        def undecided() -> dict[str, Any] | None:
            found: dict[str, Any] = rig.ask("calibration", identity=identity)
            assert found["problem"] is None
            return found if found["state"] == "undecided" else None

        found = wait_for("the verdict", undecided)
        candidate = rig.folder / "home" / "decoders" / f"{found['candidate']}.bundle"
        (candidate / "graph.onnx").unlink()
        rig.kill_daemon()
        with pytest.raises(RefusedError, match=r"graph\.onnx"):
            rig.ask("promote", identity=identity)
        assert rig.ask("calibration", identity=identity)["state"] == "undecided"
    finally:
        rig.end()


def stored(server: Server, identity: str) -> Path:
    folder = server.home / "calibrations" / identity
    folder.mkdir(parents=True, exist_ok=True)
    return folder / TRACES


def test_traces_are_as_they_were_stored_and_go_with_the_calibration(tmp_path: Path) -> None:
    leave(tmp_path, calibration("undecided", 0))
    rng = np.random.default_rng(0)
    traces = Traces(
        times=np.append(np.arange(20) * 0.05, 2.0 + np.arange(20) * 0.05),
        true=None, candidate=rng.normal(size=(40, 2)), active=None, tick_s=0.05,
    )  # fmt: skip
    with serving(tmp_path) as (server, client):
        traces.save(stored(server, "cal-undecided"))
        plot = client.traces("cal-undecided")
        assert len(plot.seconds) == 41
        assert (plot.true, plot.active, plot.held_out) == (None, None, True)
        assert np.allclose(shown(plot.candidate), traces.candidate, atol=1e-6)
        stored(server, "cal-undecided").write_bytes(b"damaged")
        assert "calibrate again with data=cal-undecided" in refused(
            client, "traces", "cal-undecided", 404
        )
        client.delete_calibration("cal-undecided")
        assert not stored(server, "cal-undecided").exists()


@pytest.mark.parametrize(
    ("identity", "why"),
    [
        ("cal-cancelled", "an older version made it"),
        ("own-labels", "its labels .decoded. are the decoder's own"),
        ("too-few", "too few seconds to compare"),
        ("early", "it ended as failed before its candidate was compared"),
        ("never", "no calibration 'never'"),
    ],
)
def test_a_calibration_without_traces_says_why(
    shared: tuple[Server, ControlClient], identity: str, why: str
) -> None:
    _, client = shared
    with pytest.raises(ProblemError, match=why) as caught:
        client.traces(identity)
    assert caught.value.problem.status == 404


def shown(velocity: Velocity | None) -> np.ndarray:
    """The velocities (n, 2) that a plot shows, without gaps."""
    assert velocity is not None
    both = np.array([velocity.x, velocity.y], dtype=float).T
    return both[np.isfinite(both).all(axis=1)]


def r2(plot: HeldOutTraces, velocity: Velocity | None) -> float:
    return pooled_r2(shown(plot.true), shown(velocity))
