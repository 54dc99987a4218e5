"""The daemon with typical streams of labs, its provider warning, and a hanging decoder."""

from __future__ import annotations

import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pylsl
import pytest

from clients.subscriber import CursorSubscriber, StatusSubscriber
from decoder.bundles.bundle import open_bundle
from decoder.runtimes.onnx import CPU
from streaming.recording.outlets import spikes_info
from streaming.wire import messages as wire
from tests.faults import decoders
from tests.rig import daemon, frames_until, meanwhile, wait_for
from tests.streaming.test_live import assert_safe, is_decoding, stream_of

one_family = pytest.mark.parametrize("tiny", ["poyo"], indirect=True)


@contextmanager
def firing(outlet: pylsl.StreamOutlet, n_units: int) -> Iterator[None]:
    """Send about 1,000 spikes/s during the block."""
    rng = np.random.default_rng(0)

    def fire(stop: threading.Event) -> None:
        before = pylsl.local_clock()
        while not stop.wait(0.005):
            now = pylsl.local_clock()
            stamps = np.sort(rng.uniform(before, now, rng.poisson(1000 * (now - before))))
            before = now
            if len(stamps):
                units = rng.integers(0, n_units, len(stamps))
                events = np.column_stack([units, np.zeros_like(units)]).astype(np.int32)
                outlet.push_chunk(events, stamps.tolist())

    with meanwhile(fire):
        yield


@one_family
def test_the_daemon_prefers_a_live_sender_to_a_leftover(tiny, tmp_path: Path) -> None:
    """The name of the streams has an apostrophe."""
    name = f'the rig\'s "spikes" {uuid.uuid4().hex[:8]}'
    units = tiny.bundle.manifest.unit_ids
    leftover = pylsl.StreamOutlet(spikes_info(name, f"{name}-1", units))
    with (
        daemon(tmp_path, tiny.bundle.path, name) as (_, address),
        CursorSubscriber(address) as cursor,
    ):
        assert leftover.wait_for_consumers(30.0)
        live = pylsl.StreamOutlet(spikes_info(name, f"{name}-2", units))
        with firing(live, len(units)):
            assert_safe(frames_until(cursor, is_decoding))
    del leftover, live


@one_family
def test_the_daemon_warns_if_it_does_not_get_the_gpu(tiny, tmp_path: Path) -> None:
    more = ("--provider", "cuda")
    with daemon(tmp_path, tiny.bundle.path, stream_of(tiny), *more) as (process, address):
        feed = StatusSubscriber(address)
        status: wire.Status = wait_for("a status", lambda: feed.receive(timeout_s=1.0))
        feed.close()
        if status.provider != CPU:
            pytest.skip("this machine has CUDA")
        assert "cuda was asked for, but decodes run on CPUExecutionProvider" in status.detail
        output = " ".join(process.output().split())
        assert "WARNING" in output
        assert "cuda was asked for" in output


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_daemon_with_a_hanging_decoder_ends_on_a_signal(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's signal handlers don't run while the graph does."""
    monkeypatch.setenv("VOLITION_REALTIME", "false")  # it would keep a core from other tests
    name = f"hangs-{uuid.uuid4().hex[:8]}"
    bundle = decoders.write(tmp_path, "hangs")
    units = open_bundle(bundle).manifest.unit_ids
    outlet = pylsl.StreamOutlet(spikes_info(name, name, units))
    with (
        daemon(tmp_path, bundle, name) as (process, address),
        CursorSubscriber(address) as cursor,
    ):
        with firing(outlet, len(units)):
            frames_until(cursor, is_decoding)
            trigger = [[len(units) - 1, 0]] * 2000
            now = pylsl.local_clock()
            outlet.push_chunk(trigger, np.linspace(now - 0.4, now, len(trigger)).tolist())
            wait_for("the hang", lambda: cursor.receive(timeout_s=2.0) is None)
        began = time.monotonic()
        process.popen.send_signal(number)
        assert process.popen.wait(60.0) == 1
        assert time.monotonic() - began < 30.0
        assert "still running" in " ".join(process.output().split())
    del outlet
