"""The daemon over real LSL and ZeroMQ, with sender and daemon in separate processes."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pylsl
import pytest
from safetensors.numpy import load_file

from clients.subscriber import CursorSubscriber, StatusSubscriber
from decoder.bundles import bundle as bundles
from server.schemas import view
from streaming.recording.replay import Replay, ReplaySettings
from streaming.sessions import format as sessions
from streaming.sessions.session import Session
from streaming.wire import messages as wire
from tests.rig import DEADLINE_S, daemon, frames_until, running, wait_for
from tests.streaming.damage import humming
from training.evaluation.reference import expected_output

STALE_S = 0.25
OFFSET_S = 0.002  # greatest change of the clock offset between two ticks


def stream_of(tiny) -> str:
    return f"{tiny.session.session_id}-spikes"


def replay(tiny, *more: str) -> tuple[str, ...]:
    return ("replay", str(tiny.session_path), "--wait", *more)


def is_decoding(frame: wire.CursorFrame) -> bool:
    return frame.valid


def assert_safe(frames: list[wire.CursorFrame]) -> None:
    """Check that frames are valid only while decoding, zero otherwise, in order, nearly complete.

    On a busy machine some are missing: the sender queues frames for only a tenth of a second.
    """
    for frame in frames:
        assert frame.valid == (frame.state == "decoding")
        assert frame.valid or frame.velocity == (0.0, 0.0)
    seqs = [frame.seq for frame in frames]
    assert seqs == sorted(set(seqs))
    assert len(seqs) > 0.8 * (seqs[-1] - seqs[0])


def assert_only_silence_interrupts(frames: list[wire.CursorFrame]) -> None:
    """Check that a valid frame is followed by a valid one, unless the sender or the tick was late.

    On a busy machine, both can be late. The time of the newest spike moves with the clock offset.
    """
    for before, frame in pairwise(frames):
        if before.valid and not frame.valid and frame.seq == before.seq + 1:
            silent_s = frame.window_end - before.newest_spike
            assert frame.state == "stale", f"{frame.state} after a valid frame"
            assert max(silent_s, frame.latency_ms / 1e3) > STALE_S - OFFSET_S


def record(name: str) -> pylsl.StreamInlet:
    """An inlet with raw time stamps."""
    found = wait_for("the spike stream", lambda: pylsl.resolve_byprop("name", name, timeout=0.5))
    inlet = pylsl.StreamInlet(found[0], max_buflen=4000)
    inlet.open_stream(timeout=DEADLINE_S)
    return inlet


@contextmanager
def heard_from_the_start(
    session: Session, cursor: CursorSubscriber
) -> Iterator[tuple[pylsl.StreamInlet, list[wire.CursorFrame]]]:
    """Play a session that this test and the daemon of `cursor` hear from its first spike on.

    Yields the test's inlet, and the frames from before the daemon's inlet opened. A fixed wait
    would not do: on a busy machine an inlet takes more than five seconds to open.
    """
    player = Replay(session, ReplaySettings(lead_s=1.0))
    inlet = record(f"{session.session_id}-spikes")
    before = frames_until(cursor, lambda f: f.clock_offset != 0.0)
    thread = threading.Thread(target=player.play)
    thread.start()
    try:
        yield inlet, before
    finally:
        player.should_stop = True
        thread.join(DEADLINE_S)


def drain(inlet: pylsl.StreamInlet, at_least: int) -> tuple[np.ndarray, np.ndarray]:
    """Stamps and units of the first events, at least `at_least` of them."""
    stamps, units, n_events = [], [], 0
    while n_events < at_least:
        samples, times = inlet.pull_chunk(timeout=0.2, max_samples=4096, as_numpy=True)
        stamps.append(np.asarray(times))
        units.append(samples[:, 0].astype(np.int64))
        n_events += len(times)
    return np.concatenate(stamps), np.concatenate(units)


def test_live_velocities_equal_a_reference_on_the_same_spikes(tiny, tmp_path: Path) -> None:
    """Every tick is repeated from the events and the clock offset that its frame reports."""
    with (
        daemon(tmp_path, tiny.bundle.path, stream_of(tiny)) as (_, address),
        CursorSubscriber(address, max_age_s=None) as cursor,
        heard_from_the_start(tiny.session, cursor) as (inlet, frames),
    ):
        frames += frames_until(cursor, is_decoding)
        start = frames[-1].window_end
        frames += frames_until(cursor, lambda f: f.window_end > start + 2.0)
        stamps, units = drain(inlet, frames[-1].n_drained)
    assert_safe(frames)
    offsets = np.empty(len(stamps))  # for each event, the offset of the tick that drained it
    seen = 0
    for frame in frames:
        offsets[seen : frame.n_drained] = frame.clock_offset
        seen = max(seen, frame.n_drained)
    scale = np.array([output.scale for output in tiny.bundle.manifest.outputs])
    mean = np.array([output.offset for output in tiny.bundle.manifest.outputs])
    worst = 0.0
    valid = [frame for frame in frames if frame.valid]
    began = valid[0].window_end - 1.0
    for frame in valid[::10]:
        times = stamps[: frame.n_drained] + offsets[: frame.n_drained]
        inside = (times >= frame.window_end - 1.0) & (times < frame.window_end)
        assert frame.n_spikes == inside.sum()
        expected = expected_output(
            tiny.model, tiny.config, times, units[: frame.n_drained],
            began=began, at=frame.window_end, n_units=tiny.session.n_units,
        )  # fmt: skip
        worst = max(worst, np.abs((np.array(frame.velocity) - mean) / scale - expected).max())
    assert len(valid) > 50  # of 200; a busy machine may stall the sender
    assert worst <= 1e-4


@pytest.mark.timing
def test_a_reader_that_keeps_up_misses_no_frame(tiny, tmp_path: Path) -> None:
    with (
        daemon(tmp_path, tiny.bundle.path, stream_of(tiny)) as (_, address),
        CursorSubscriber(address, max_age_s=None) as cursor,
        running(tmp_path / "replay.log", *replay(tiny)),
    ):
        frames = frames_until(cursor, is_decoding)
        frames += frames_until(cursor, lambda f: f.seq > frames[0].seq + 500)
    assert [frame.seq for frame in frames] == list(range(frames[0].seq, frames[-1].seq + 1))


def test_a_killed_sender_is_stale_within_the_limit_and_a_new_one_resumes(
    tiny, tmp_path: Path
) -> None:
    with (
        daemon(tmp_path, tiny.bundle.path, stream_of(tiny)) as (_, address),
        CursorSubscriber(address, max_age_s=None) as cursor,
    ):
        with running(tmp_path / "first.log", *replay(tiny)) as source:
            frames = frames_until(cursor, is_decoding)
            source.popen.send_signal(signal.SIGKILL)
            frames += frames_until(cursor, lambda f: not f.valid)
        last_valid = [frame for frame in frames if frame.valid][-1]
        assert last_valid.newest_spike is not None
        assert last_valid.window_end - last_valid.newest_spike <= STALE_S
        assert frames[-1].state == "stale"
        with running(tmp_path / "second.log", *replay(tiny)):
            frames += frames_until(cursor, lambda f: f.n_drained > last_valid.n_drained + 500)
            first_again = frames[-1].window_end
            frames += frames_until(cursor, is_decoding)
        assert frames[-1].window_end - first_again < 3.0
    assert_safe(frames)


def test_a_stalled_daemon_skips_to_the_newest_tick_and_counts_the_others(
    tiny, tmp_path: Path
) -> None:
    with (
        daemon(tmp_path, tiny.bundle.path, stream_of(tiny)) as (process, address),
        CursorSubscriber(address, max_age_s=None) as cursor,
        running(tmp_path / "replay.log", *replay(tiny)),
    ):
        frames = frames_until(cursor, is_decoding)
        process.popen.send_signal(signal.SIGSTOP)
        wait_for("silence", lambda: cursor.receive(timeout_s=0.5) is None)
        process.popen.send_signal(signal.SIGCONT)
        after = frames_until(cursor, lambda f: f.window_end > frames[-1].window_end + 3.0)
        assert max(frame.latency_ms for frame in after if frame.valid) < 1e3 * STALE_S
        resumed = [f for f in after if f.window_end > frames[-1].window_end + 0.4]
        assert all(frame.newest_spike <= frame.window_end + 0.1 for frame in resumed)
        assert_safe(after)
        status = StatusSubscriber(address)
        reports: list[wire.Status] = []

        def decodes() -> bool:
            if (report := status.receive(timeout_s=1.0)) is not None:
                reports.append(report)
            return bool(reports) and reports[-1].state == "decoding"

        wait_for("decoding", decodes)
        status.close()
        assert reports[-1].skipped_ticks >= 40


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_daemon_stops_with_a_last_invalid_frame(
    tiny, tmp_path: Path, number: signal.Signals
) -> None:
    with (
        daemon(tmp_path, tiny.bundle.path, stream_of(tiny)) as (process, address),
        CursorSubscriber(address, max_age_s=None) as cursor,
    ):
        frames = frames_until(cursor, lambda f: f.seq > 20)
        assert process.stop(number) == 0
        frames += frames_until(cursor, lambda f: f.state == "idle")
        assert_safe(frames)
        assert "stopped after" in process.output().splitlines()[-1]


def test_the_status_reports_latencies_rates_and_unknown_units(tiny, tmp_path: Path) -> None:
    with (
        daemon(tmp_path, tiny.bundle.path, stream_of(tiny)) as (_, address),
        running(tmp_path / "replay.log", *replay(tiny)),
    ):
        feed = StatusSubscriber(address)

        def settled() -> wire.Status | None:
            status = feed.receive(timeout_s=0.5)
            return status if status and status.state == "decoding" and status.latency else None

        status = wait_for("status of a decoding daemon", settled)
        feed.close()
    assert status.latency.p50 <= status.latency.p99 <= status.latency.max
    assert status.spikes_per_s > 50
    assert status.stream == stream_of(tiny)
    assert (status.known_units, status.unknown_units) == (tiny.session.n_units, 0)
    assert status.provider == "CPUExecutionProvider" or "CUDA" in status.provider
    assert status.events["taken"] > 0


def test_the_status_names_a_noisy_unit_of_the_stream(tiny, tmp_path: Path) -> None:
    path = sessions.save(humming(tiny.session, 3), tmp_path)
    with (
        daemon(tmp_path, tiny.bundle.path, stream_of(tiny)) as (_, address),
        running(tmp_path / "replay.log", "replay", str(path), "--wait"),
    ):
        feed = StatusSubscriber(address)

        def named() -> wire.Status | None:
            status = feed.receive(timeout_s=0.5)
            return status if status and status.unit_faults and status.unit_faults.noisy else None

        status = wait_for("a noisy unit in the status", named)
        feed.close()
    assert status.unit_faults.noisy == [tiny.session.unit_ids[3]]
    assert status.unit_faults.doubled == status.unit_faults.artifact == []
    answer = view(status).model_dump()
    assert answer["unit_faults"]["noisy"] == [tiny.session.unit_ids[3]]


def test_two_daemons_on_one_address_are_refused(tiny, tmp_path: Path) -> None:
    with (
        daemon(tmp_path, tiny.bundle.path, stream_of(tiny)) as (_, address),
        CursorSubscriber(address, max_age_s=None) as cursor,
    ):
        frames_until(cursor, lambda f: True)
        arguments = ("decode", str(tiny.bundle.path), "--address", address)
        with running(tmp_path / "second.log", *arguments) as second:
            assert second.popen.wait(DEADLINE_S) == 1
            assert "is another daemon running?" in " ".join(second.output().split())


def test_an_implausible_velocity_is_a_fault_and_zero(tiny, tmp_path: Path) -> None:
    with (
        daemon(tmp_path, tiny.bundle.path, stream_of(tiny), "--fault-speed", "1e-9") as (
            _,
            address,
        ),
        CursorSubscriber(address, max_age_s=None) as cursor,
        running(tmp_path / "replay.log", *replay(tiny)),
    ):
        frames = frames_until(cursor, lambda f: f.state == "fault")
        first = frames[-1].seq
        frames += frames_until(cursor, lambda f: f.seq > first + 250)  # more than two windows
    assert_safe(frames)
    assert not any(frame.valid for frame in frames)
    states = Counter(frame.state for frame in frames if frame.seq >= first)
    assert set(states) <= {"fault", "stale"}  # the sender is late on a busy machine
    assert states["fault"] > 100


def test_a_bundle_without_a_valid_velocity_is_refused_at_the_start(tiny, tmp_path: Path) -> None:
    huge = np.sign(tiny.bundle.tables.tokens) * np.float32(3e38)
    broken = bundles.write(
        tmp_path / "broken.bundle",
        manifest=tiny.bundle.manifest,
        graph=tiny.bundle.graph_path,
        tables=replace(tiny.bundle.tables, tokens=huge),
        weights=load_file(tiny.bundle.weights_path),
    )
    with daemon(tmp_path, broken.path, stream_of(tiny)) as (process, _):
        wait_for("the daemon's end", lambda: process.popen.poll() is not None)
    log = (tmp_path / "daemon.log").read_text()
    assert process.popen.returncode == 1
    assert "expected two finite numbers" in log
    assert "Traceback" not in log


def test_a_sender_that_returns_with_other_units_is_refused(tiny, tmp_path: Path) -> None:
    others = tuple(f"other/{i}" for i in range(tiny.session.n_units))
    stranger = sessions.save(replace(tiny.session, unit_ids=others), tmp_path / "stranger")
    with (
        daemon(tmp_path, tiny.bundle.path, stream_of(tiny)) as (_, address),
        CursorSubscriber(address, max_age_s=None) as cursor,
    ):
        with running(tmp_path / "first.log", *replay(tiny)) as source:
            frames = frames_until(cursor, is_decoding)
            source.popen.send_signal(signal.SIGKILL)
            frames += frames_until(cursor, lambda f: not f.valid)
        seen: dict[str, int] = Counter()
        with (
            closing(StatusSubscriber(address)) as status,
            running(tmp_path / "second.log", "replay", str(stranger)),
        ):

            def refusal() -> str | None:
                if (report := status.receive(timeout_s=0.5)) is None:
                    return None
                seen[f"{report.state}: {report.detail}"] += 1
                return report.detail if "is this the right bundle" in report.detail else None

            try:
                assert "other/0" in wait_for("the refusal", refusal)
            except AssertionError as error:
                error.add_note(f"{dict(seen)}\n{(tmp_path / 'second.log').read_text()[-2000:]}")
                raise
        after = frames_until(cursor, lambda f: f.seq > frames[-1].seq + 100)
    assert_safe(frames + after)
    assert not any(frame.valid for frame in after)


class Counts:
    """A stream of binned counts, with stamps `ahead_s` ahead of the clock."""

    BIN_S = 0.02

    def __init__(self, tiny) -> None:
        name = f"{tiny.session.session_id}-counts-{time.monotonic_ns()}"
        n_units = tiny.session.n_units
        self.info = pylsl.StreamInfo(
            name, "SpikeCounts", n_units, 1 / self.BIN_S, pylsl.cf_int32, name
        )
        self.info.set_channel_labels(list(tiny.session.unit_ids))
        self.name, self.ahead_s = name, 0.0
        self._outlet = pylsl.StreamOutlet(self.info)
        self._stop = threading.Event()

    @contextmanager
    def sending(self) -> Iterator[None]:
        thread = threading.Thread(target=self._send)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _send(self) -> None:
        rng = np.random.default_rng(0)
        while not self._stop.wait(self.BIN_S):
            counts = rng.poisson(0.3, self.info.channel_count()).tolist()
            self._outlet.push_sample(counts, pylsl.local_clock() + self.ahead_s)


def test_binned_counts_are_valid_while_their_bins_are_admitted(tiny, tmp_path: Path) -> None:
    """Stamps in Unix time are reported, and decoding resumes once the stamps are right."""
    counts = Counts(tiny)
    with (
        daemon(tmp_path, tiny.bundle.path, counts.name, "--stream-type", "SpikeCounts")
        as (_, address),
        CursorSubscriber(address, max_age_s=None) as cursor,
        counts.sending(),
    ):  # fmt: skip
        frames = frames_until(cursor, is_decoding)
        status = StatusSubscriber(address)
        counts.ahead_s = 1.7e9
        frames += frames_until(cursor, lambda f: f.state == "stale")
        since = frames[-1].seq
        frames += frames_until(cursor, lambda f: f.seq > since + 100)
        assert not any(frame.valid for frame in frames if frame.seq >= since)

        def is_reported() -> bool:
            report = status.receive(timeout_s=0.5)
            return report is not None and "ahead of this host's clock" in report.detail

        assert wait_for("the reason", is_reported)
        counts.ahead_s = 0.0
        frames += frames_until(cursor, is_decoding)
        status.close()
    assert_safe(frames)
