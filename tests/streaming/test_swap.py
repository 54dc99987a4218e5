"""Commands on a live stream: decoder swap, pause, arm, filters, input."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq

from clients.harness.daemon import free_port
from clients.subscriber import CursorSubscriber
from decoder.bundles import bundle as bundles
from decoder.bundles.bundle import Bundle
from decoder.filters import Filters
from decoder.runtimes.opening import open_runtime
from streaming.daemon.commands import swap
from streaming.daemon.settings import RESTARTED
from streaming.units import UNKNOWN, UnitMatch
from streaming.wire import control
from streaming.wire import messages as wire
from streaming.wire.control import ControlClient
from tests.decoder.test_proof import endless, with_graph
from tests.rig import DEADLINE_S, daemon, frames_until, running, wait_for
from tests.streaming.scripted_rig import TICK_S, Rig
from tests.streaming.test_live import (
    assert_only_silence_interrupts,
    assert_safe,
    is_decoding,
    replay,
    stream_of,
)
from training.baselines.linear import fit_linear


def changed(tiny, folder: Path, *, drop: int = 0, scale: float = 1.0) -> Bundle:
    """A copy of the tiny decoder: units in another order, some left out, another output scale."""
    order = np.arange(len(tiny.bundle.manifest.unit_ids))[::-1][drop:]
    manifest = tiny.bundle.manifest
    outputs = tuple(o.model_copy(update={"scale": o.scale * scale}) for o in manifest.outputs)
    return bundles.write(
        folder / f"changed-{drop}-{scale}.bundle",
        manifest=manifest.model_copy(
            update={
                "decoder_id": f"changed-{drop}-{scale}",
                "unit_ids": tuple(manifest.unit_ids[i] for i in order),
                "outputs": outputs,
            }
        ),
        graph=tiny.bundle.graph_path,
        tables=replace(tiny.bundle.tables, tokens=tiny.bundle.tables.tokens[order]),
        weights={"nothing": np.zeros(1)},
    )


@pytest.fixture
def rig(tiny, tmp_path: Path) -> Iterator[tuple[CursorSubscriber, ControlClient]]:
    """A daemon with its stream: a subscriber to its frames and a control client."""
    address = f"tcp://127.0.0.1:{free_port()}"
    with (
        daemon(tmp_path, tiny.bundle.path, stream_of(tiny), "--control", address) as (_, cursors),
        CursorSubscriber(cursors, max_age_s=None) as cursor,
        running(tmp_path / "replay.log", *replay(tiny)),
    ):
        client = ControlClient(address, timeout_s=DEADLINE_S)
        yield cursor, client
        client.close()


def status_after(client: ControlClient, command: control.Command) -> wire.Status:
    reply = client.ask(command)
    assert reply.problem is None
    return reply.status


def load(client: ControlClient, bundle: Bundle) -> None:
    status_after(client, control.Load(path=str(bundle.path)))
    loaded = wait_for(
        "the candidate",
        lambda: not (status := status_after(client, control.GetStatus())).loading and status,
    )
    assert loaded.load_problem is None
    assert loaded.candidate == bundle.manifest.decoder_id


def test_a_swap_and_a_rollback_miss_no_tick_and_stay_valid(tiny, rig, tmp_path: Path) -> None:
    cursor, client = rig
    frames = frames_until(cursor, is_decoding)
    doubled = changed(tiny, tmp_path, scale=2.0)
    load(client, doubled)
    status = status_after(client, control.Activate(decoder=doubled.manifest.decoder_id))
    assert status.decoder == doubled.manifest.decoder_id
    assert status.previous == tiny.bundle.manifest.decoder_id
    frames += frames_until(cursor, lambda f: f.decoder == doubled.manifest.decoder_id)
    swapped = frames[-1]
    frames += frames_until(cursor, lambda f: f.seq > swapped.seq + 50)
    status_after(client, control.Rollback())
    frames += frames_until(cursor, lambda f: f.decoder == tiny.bundle.manifest.decoder_id)
    back = frames[-1]
    frames += frames_until(cursor, lambda f: f.seq > back.seq + 20)
    assert_safe(frames)
    assert_only_silence_interrupts(frames)  # no warm-up of a window
    ids = [frame.decoder for frame in frames]
    assert sum(a != b for a, b in pairwise(ids)) == 2

    offset = np.array([output.offset for output in tiny.bundle.manifest.outputs])
    factor = {tiny.bundle.manifest.decoder_id: 1.0, doubled.manifest.decoder_id: 2.0}
    pairs = [(a, b) for a, b in pairwise(frames) if a.valid and b.valid]
    path = [[(np.array(f.velocity) - offset) / factor[f.decoder] for f in pair] for pair in pairs]
    steps = np.abs(np.diff(path, axis=1)).max(axis=(1, 2))
    swaps = np.array([a.decoder != b.decoder for a, b in pairs])
    assert steps[swaps].max() <= 2 * steps[~swaps].max(), "the same movement, doubled and back"


def test_linear_decoders_swap_in_and_roll_back_like_any_other(tiny, rig, tmp_path: Path) -> None:
    """From a model to ridge, to the Kalman filter, back to ridge, and back to the model."""
    cursor, client = rig
    ridge = fit_linear(tiny.session, "ridge", tmp_path / "ridge.bundle")
    kalman = fit_linear(tiny.session, "kalman", tmp_path / "kalman.bundle")
    frames = frames_until(cursor, is_decoding)
    wanted = [tiny.bundle]
    for step in (ridge, kalman, None, tiny.bundle):
        if step is None:
            status_after(client, control.Rollback())
        else:
            load(client, step)
            status_after(client, control.Activate(decoder=step.manifest.decoder_id))
        wanted.append(ridge if step is None else step)
        decoder = wanted[-1].manifest.decoder_id
        frames += frames_until(cursor, lambda f, decoder=decoder: f.decoder == decoder)
        since = frames[-1].seq
        frames += frames_until(cursor, lambda f, since=since: f.seq > since + 20)
    assert_safe(frames)
    assert_only_silence_interrupts(frames)  # no warm-up of a window
    seen = [frame.decoder for frame in frames]
    assert [seen[0], *(b for a, b in pairwise(seen) if a != b)] == [
        bundle.manifest.decoder_id for bundle in wanted
    ]


def test_a_decoder_of_other_units_gets_the_recent_spikes(tiny, tmp_path: Path) -> None:
    """After the swap, the decoder's velocities are as if it had decoded from the start.

    The units missing from its bundle are silent, so that its state doesn't depend on the decoder
    that computed it.
    """
    other = changed(tiny, tmp_path, drop=5)
    session = tiny.session
    rig = Rig(tiny.bundle)
    always = open_runtime(other, epoch=rig.clock.now)
    match = UnitMatch(session.unit_ids, other.manifest.unit_ids)
    assert (match.n_known, match.n_unknown, match.n_missing) == (35, 5, 0)
    began = rig.clock.now
    for end in began + TICK_S * np.arange(1, 150):
        part = session.spikes_between(end - TICK_S - began, end - began)
        times, units = session.spike_times[part] + began, session.spike_units[part]
        index = match(units)
        times, units, index = (values[index != UNKNOWN] for values in (times, units, index))
        for time, unit in zip(times.tolist(), units.tolist(), strict=True):
            rig.send(time, unit=unit)
        if end > began + 2.5 and rig.ticker.runtime.bundle is tiny.bundle:
            current = rig.ticker.runtime
            swapped = open_runtime(other, epoch=0.0, settings=current.settings, graph_from=current)
            assert swapped._session is current._session, "the graph is shared"
            assert swap(rig.ticker, swapped, rig.clock.now) is None
        frame = rig.tick()
        always.append(times, index)
        if frame.valid:
            expected = always.decode(frame.window_end)
            if frame.decoder == other.manifest.decoder_id:
                np.testing.assert_allclose(frame.velocity, expected, atol=1e-5)
    assert frame.valid
    assert frame.decoder == other.manifest.decoder_id
    rig.close()


def test_a_pause_is_zero_and_invalid_and_ends_at_once(tiny, rig) -> None:
    cursor, client = rig
    frames = frames_until(cursor, is_decoding)
    status = status_after(client, control.Pause(why="the operator asked"))
    assert "the operator asked" in status.detail
    frames += frames_until(cursor, lambda f: f.state == "paused")
    frames += frames_until(cursor, lambda f: f.seq > frames[-1].seq + 80)
    assert frames[-1].state == "paused"
    still = status_after(
        client, control.Resume(paused_for=RESTARTED)
    )  # the reason of a server, not this one
    assert still.paused == "the operator asked"
    status_after(client, control.Resume())
    resumed = frames_until(cursor, is_decoding)
    assert len(resumed) < 30, "spikes were kept during the pause"
    assert_safe(frames + resumed)


def test_filters_change_the_published_velocity(tiny, rig) -> None:
    cursor, client = rig
    frames_until(cursor, is_decoding)
    status = status_after(client, control.SetFilters(filters=Filters(gain=0.0)))
    assert status.filters.gain == 0.0
    frames = frames_until(cursor, lambda f: f.valid and f.velocity == (0.0, 0.0))
    assert_safe(frames)


def test_refused_commands_return_the_reason_and_change_nothing(tiny, rig, tmp_path: Path) -> None:
    cursor, client = rig
    frames_until(cursor, is_decoding)
    assert "no previous decoder" in str(client.ask(control.Rollback()).problem)
    assert "not the candidate" in str(client.ask(control.Activate(decoder="x")).problem)
    status_after(client, control.Load(path=str(tmp_path / "nowhere.bundle")))
    failed = wait_for("the problem", lambda: status_after(client, control.GetStatus()).load_problem)
    assert "manifest.json" in failed

    few = changed(tiny, tmp_path)
    strangers = few.manifest.model_copy(
        update={"unit_ids": tuple(f"stranger/{i}" for i in range(40)), "decoder_id": "strange"}
    )
    strange = bundles.write(
        tmp_path / "strange.bundle", manifest=strangers, graph=few.graph_path, tables=few.tables,
        weights={"nothing": np.zeros(1)},
    )  # fmt: skip
    load(client, strange)
    assert "0 of the decoder's 40 units" in str(
        client.ask(control.Activate(decoder="strange")).problem
    )
    context = zmq.Context()
    raw = context.socket(zmq.REQ)
    raw.connect(client.address)
    raw.send(b"\xc1 not msgpack")
    answer = msgspec.msgpack.decode(raw.recv(), type=control.Reply)
    context.destroy(linger=0)
    assert "not a command" in str(answer.problem)
    frames = frames_until(cursor, is_decoding)
    assert frames[-1].decoder == tiny.bundle.manifest.decoder_id


def test_a_missing_daemon_is_an_error_within_the_timeout() -> None:
    client = ControlClient(f"tcp://127.0.0.1:{free_port()}", timeout_s=0.1)
    with pytest.raises(control.NoAnswerError, match="did not answer within"):
        client.ask(control.GetStatus())
    client.close()


def test_arming_needs_a_listener_and_a_live_stream(tiny, tmp_path: Path) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with daemon(tmp_path, tiny.bundle.path, stream_of(tiny), "--control", address) as (_, cursors):
        client = ControlClient(address, timeout_s=DEADLINE_S)
        status_after(client, control.Pause(why="not armed"))
        problem = client.ask(control.Arm()).problem
        assert "nobody listens" in problem
        assert "unbroken live spikes don't fill" in problem
        with (
            CursorSubscriber(cursors, max_age_s=None) as cursor,
            running(tmp_path / "replay.log", *replay(tiny)),
        ):
            armed = wait_for(
                "arming", lambda: (r := client.ask(control.Arm())).problem is None and r
            )
            assert armed.status.paused is None
            assert frames_until(cursor, is_decoding)
        client.close()


def test_a_command_changes_the_input_stream(tiny, rig) -> None:
    cursor, client = rig
    frames_until(cursor, is_decoding)
    status_after(client, control.SetInput(kind="Spikes", name="elsewhere"))
    left = frames_until(cursor, lambda frame: not frame.valid)[-1]
    assert left.velocity == (0.0, 0.0)
    status = status_after(client, control.GetStatus())
    assert (status.input_name, status.stream) == ("elsewhere", None)
    status_after(client, control.SetInput(kind="Spikes", name=stream_of(tiny)))
    frames_until(cursor, is_decoding)


def test_a_hanging_decoder_is_refused_while_the_daemon_ticks_on(
    tiny, rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its graph is new, so it is tested in a process of its own."""
    cursor, client = rig
    frames = frames_until(cursor, is_decoding)
    copied = Path(shutil.copytree(tiny.bundle.path, tmp_path / "hangs.bundle"))
    hangs = with_graph(copied, endless)
    status_after(client, control.Load(path=str(hangs.path)))
    frames += frames_until(cursor, lambda f: f.seq > frames[-1].seq + 200)
    status = status_after(client, control.GetStatus())
    assert status.loading
    assert status.candidate is None
    assert "not the candidate" in str(
        client.ask(control.Activate(decoder=hangs.manifest.decoder_id)).problem
    )
    assert_only_silence_interrupts(frames)


def test_a_decoder_without_a_velocity_for_the_recent_spikes_is_refused(
    tiny, rig, tmp_path: Path
) -> None:
    cursor, client = rig
    frames_until(cursor, is_decoding)
    name = "boundary_value"
    far = replace(
        tiny.bundle.tables, **{name: np.full_like(getattr(tiny.bundle.tables, name), 3e38)}
    )
    wild = bundles.write(
        tmp_path / "wild.bundle", manifest=tiny.bundle.manifest, graph=tiny.bundle.graph_path,
        tables=far, weights={"nothing": np.zeros(1)},
    )  # fmt: skip
    status_after(client, control.Load(path=str(wild.path)))
    problem = wait_for(
        "the problem", lambda: status_after(client, control.GetStatus()).load_problem
    )
    assert "expected two finite numbers" in problem
