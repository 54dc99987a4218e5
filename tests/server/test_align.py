"""A rig of a user who can't move: spikes only. The neurons have changed, and `align` finds them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pylsl
import pytest
import torch

from clients.control import ControlClient
from clients.harness.server import Server
from clients.rest import ProblemError
from clients.subscriber import CursorSubscriber
from server.schemas import CalibrationRequest
from server.unattended.bodies import Unattended
from streaming.recording.outlets import MAX_CHUNK_S, chunks, spikes_info
from streaming.sessions.session import Session
from tests.conftest import TinyDecoder
from tests.rig import POLLED_LATE_S, frames_until, meanwhile, no_kinematics, wait_for
from tests.streaming.test_live import is_decoding
from training.exports.export import export_model
from training.pretraining import runs
from training.pretraining.scoring import usual_states

CHANGED = 0.6  # factor of all embeddings in the decoder of yesterday


@contextmanager
def spikes_of(session: Session, name: str) -> Iterator[None]:
    """Sends a session's spikes over LSL in a loop, and nothing else."""
    outlet = pylsl.StreamOutlet(spikes_info(name, name, session.unit_ids))
    start, end = float(session.domain[0, 0]), float(session.domain[-1, 1])

    def send(ended: threading.Event) -> None:
        began, done = pylsl.local_clock(), 0
        while not ended.wait(MAX_CHUNK_S):
            passed = pylsl.local_clock() - began
            stop = session.spikes_between(start, start + passed).stop
            for part in chunks(session.spike_times, done, stop):
                samples = [[int(unit), 0] for unit in session.spike_units[part]]
                times = session.spike_times[part] - start + began
                outlet.push_chunk(samples, times.tolist())
            done = stop
            if passed > end - start:
                began, done = pylsl.local_clock(), 0

    with meanwhile(send):
        yield


def decoders(tiny: TinyDecoder, folder: Path) -> tuple[Path, Path]:
    """A base that knows its usual states, and a decoder whose states are far from them."""
    made = []
    for name, factor in (("base", 1.0), ("yesterday", CHANGED)):
        model, record = runs.load_model(tiny.bundle.path)
        record.states = usual_states(model, record, [tiny.session])
        with torch.no_grad():
            model.unit_emb.weight[1:] *= factor
        if made:
            record.settings["base"] = made[0].manifest.decoder_id
        path = folder / f"{name}.bundle"
        made.append(export_model(model, record, tiny.session.session_id, path))
    return made[0].path, made[1].path


@contextmanager
def changed_neurons(tiny: TinyDecoder, folder: Path) -> Iterator[tuple[Server, ControlClient]]:
    """A server whose decoder is far from its usual states, and which knows the base of `align`."""
    base, yesterday = decoders(tiny, folder)
    name = f"still-{time.time_ns()}"
    no_kinematics()
    with (
        spikes_of(tiny.session, name),
        Server(yesterday, folder / "home", name) as server,
        server.client() as client,
    ):
        client.add_decoder(str(base))
        yield server, client


@pytest.mark.slow
@pytest.mark.parametrize("tiny", ["possm"], indirect=True)
def test_without_kinematics_align_is_promoted_by_distance(
    tiny: TinyDecoder, tmp_path: Path
) -> None:
    with (
        changed_neurons(tiny, tmp_path) as (server, client),
        CursorSubscriber(server.address, max_age_s=None) as cursor,
    ):
        frames_until(cursor, is_decoding)
        request = CalibrationRequest(seconds=40.0, method="align", shadow=True, allowed_s=20.0)
        done = list(client.calibrate(request))[-1]
        assert done.state == "promoted", done
        assert 39.0 < done.collected_s < 40.0 + POLLED_LATE_S
        assert (done.movement, done.held_out) == ("none", None)
        assert done.distances is not None
        assert done.distances.candidate < done.distances.active_limit < done.distances.active
        assert done.distances.seconds == pytest.approx(done.collected_s / 3, abs=2.0)
        assert "without labels, the distance of the candidate is" in done.verdict
        assert "no shadow: it compares with movement" in done.notes[-1]
        frames_until(cursor, lambda frame: frame.decoder == done.candidate and frame.valid)

        with pytest.raises(ProblemError, match="recorded no movement, which the method units"):
            client.start_calibration(CalibrationRequest(method="units", data=done.id))
        client.activate(done.before)
        again = list(client.calibrate(CalibrationRequest(method="align", data=done.id)))[-1]
        assert again.distances is not None, again


@pytest.mark.slow
@pytest.mark.parametrize("tiny", ["possm"], indirect=True)
def test_an_alarm_recalibrates_unattended_and_a_rollback_freezes_it(
    tiny: TinyDecoder, tmp_path: Path
) -> None:
    with changed_neurons(tiny, tmp_path) as (_, client):
        client.set_unattended(Unattended(when="alarm", seconds=40.0))
        begun = wait_for("an alarm", lambda: client.unattended().last, timeout_s=300.0)
        done = list(client.follow(begun))[-1]
        assert (done.state, done.who, done.movement) == ("promoted", "unattended", "none"), done
        wait_for("a rest", lambda: "rests" in client.status().unattended)
        assert client.rollback().daemon.decoder == done.before
        wait_for("a freeze", lambda: client.unattended().state == "frozen")
        assert f"in place of {done.candidate}" in client.status().unattended
        who = [change.who for change in client.journal() if change.what == "activate"]
        assert who[0] == f"unattended, {done.id}"
