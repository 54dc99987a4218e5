"""Measures a recalibration on this machine from outside, as a rig sees it.

    volition bench recalibrate --preset stream --runs 5
    volition bench recalibrate --method instant --seconds 20 --runs 10
    volition bench recalibrate --method instant --bundle monkey.bundle --session sessions/today.h5

A server, its daemon and a replay, in processes of their own, over LSL, ZeroMQ and HTTP. Without
`--session`, the replay is of a simulated subject whom the decoder has never seen. The decoder
before and after is scored on the live frames; ticks are counted before and during.
"""

from __future__ import annotations

import math
import os
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from clients.harness import live
from clients.harness.daemon import BUNDLES
from clients.harness.server import SHIPPED, Server
from decoder.errors import VolitionError
from server.schemas import Calibration, CalibrationRequest, Method
from streaming.recording.replay import ReplaySettings
from streaming.sessions import format as sessions
from streaming.sessions.intervals import duration_s, intersect, time_after
from streaming.sessions.session import Session, Split
from streaming.wire import messages as wire

STEPS = 300  # of pretraining a decoder that identifies units
UNSEEN = 9  # a simulated subject; the shipped decoders know 0 to 3
BEFORE_S, AFTER_S = 15.0, 20.0
AFTER_BENCH_S = 10.0
LATE_S = 1.0  # after the first frame, in which ticks still count as those of the calibration
LEAD_S = 3.0  # of the replay, for the subscribers to connect in time
LONGEST_LEARNING_S = 600.0


@dataclass
class Flow:
    """One recalibration on a live stream.

    times: when each state of the calibration was first heard of, s on the LSL clock.
    """

    session: Session
    frames: live.LiveFrames = field(default_factory=live.LiveFrames)
    calibration: Calibration | None = None
    times: dict[str, float] = field(default_factory=dict)
    data_ended: float = 0.0  # time of the last labelled sample, s on the LSL clock
    problem: VolitionError | None = None

    def of(self, decoder: str | None) -> list[wire.CursorFrame]:
        """The frames of one decoder."""
        return [frame for frame in self.frames.frames if frame.decoder == decoder]

    def r2(self, decoder: str | None, *, last_s: float | None = None) -> float:
        """Live causal R² of a decoder's valid frames, or of those in the last `last_s` seconds."""
        from training.baselines.ridge import r2

        assert self.frames.mapping is not None
        valid = [frame for frame in self.of(decoder) if frame.valid]
        if last_s is not None:
            valid = [f for f in valid if f.window_end > valid[-1].window_end - last_s]
        times = self.frames.mapping.to_recorded(np.array([frame.window_end for frame in valid]))
        decoded = np.array([frame.velocity for frame in valid])
        return r2(self.session.velocity_at(times), decoded).r2_mean

    @property
    def first_frame(self) -> float | None:
        """When the new decoder's first valid frame was published, s on the LSL clock."""
        candidate = self.calibration.candidate if self.calibration else None
        return next((f.published for f in self.of(candidate) if f.valid), None)

    @property
    def took_s(self) -> float | None:
        """Seconds from the last labelled sample to the new decoder's first valid frame."""
        return None if self.first_frame is None else self.first_frame - self.data_ended

    def ticks(self, start: float, end: float) -> dict[str, float]:
        """Ticks between two times: all, missed, and at least one tick late."""
        frames = [frame for frame in self.frames.frames if start <= frame.window_end < end]
        missed, n_ticks = live.late_ticks(frames)
        tick_s = float(np.median(np.diff([frame.window_end for frame in frames])))
        latency = np.array([frame.latency_ms for frame in frames])
        return {
            "ticks": n_ticks,
            "missed": missed,
            "late": int((latency > 1e3 * tick_s).sum()),
            "latency_p50_ms": float(np.percentile(latency, 50)),
            "latency_p999_ms": float(np.percentile(latency, 99.9)),
        }

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        assert self.calibration is not None
        frames = self.frames.frames
        begun, first = self.times["collecting"], self.first_frame
        ended = frames[-1].window_end if first is None else first + LATE_S
        ids = [frame.decoder for frame in frames]
        sequence = np.diff([frame.seq for frame in frames])
        calibration = self.calibration
        return {
            "state": calibration.state,
            "method": calibration.method,
            "collected_s": calibration.collected_s,
            "took_s": self.took_s,
            "phases_s": calibration.phases_s,
            "held_out": calibration.held_out.model_dump() if calibration.held_out else None,
            "live_r2_before": self.r2(frames[0].decoder),
            "live_r2_after": self.r2(frames[-1].decoder, last_s=AFTER_S),
            "ticks_before": self.ticks(begun - (ended - begun), begun),
            "ticks_during": self.ticks(begun, ended),
            "load": os.getloadavg()[0],
            "changes_of_decoder": int(sum(a != b for a, b in pairwise(ids))),
            "sequence_gaps": int((sequence != 1).sum()),
        }


class _EnoughError(Exception):
    """Ends a replay early, when enough frames have been seen."""


def recalibrate(
    bundle: Path,
    session: Session,
    request: CalibrationRequest,
    folder: Path,
    *,
    before_s: float = BEFORE_S,
    after_s: float = AFTER_S,
    split: Split = "all",
    **variables: str,
) -> Flow:
    """Decode a session live with a bundle, recalibrate once, and continue decoding.

    before_s, after_s: valid seconds before the request and after its end. split: the part played.
    Raises the errors of the REST client, and StreamError if nothing streams.
    """
    prefix = _prefix()
    flow = Flow(session=session)
    asked = request.model_copy(
        update={"kinematics": f"{prefix}-kinematics", "markers": f"{prefix}-markers"}
    )
    settings = _played(before_s + request.seconds + LONGEST_LEARNING_S + after_s, split)
    path = sessions.save(session, folder)
    with Server(bundle, folder / "home", f"{prefix}-spikes", **variables) as server:
        asking = threading.Thread(target=_ask, args=(server, flow, asked), daemon=True)

        def see(frame: wire.CursorFrame, frames: live.LiveFrames) -> None:
            flow.frames = frames
            if not asking.ident and _valid_s(frames) >= before_s:
                asking.start()
            ended = max(flow.times.values(), default=np.inf) if not asking.is_alive() else np.inf
            if asking.ident and frame.window_end > ended + after_s:
                raise _EnoughError

        with suppress(_EnoughError):
            live.collect(path, settings, server.address, see)
        if flow.problem is not None:
            raise flow.problem
        assert flow.calibration is not None
        recorded = folder / "home" / "calibrations" / flow.calibration.id
        if files := list(recorded.glob("*.h5")):
            flow.data_ended = float(sessions.load(files[0]).cursor_times[-1])
    return flow


def _prefix() -> str:
    """Prefix of the stream names of this process."""
    return f"volition-flow-{os.getpid()}"


def _played(seconds: float, split: Split) -> ReplaySettings:
    return ReplaySettings(
        split=split, seconds=seconds, wait_for_consumer=True, lead_s=LEAD_S, name_prefix=_prefix()
    )


def _ask(server: Server, flow: Flow, request: CalibrationRequest) -> None:
    from pylsl import local_clock

    try:
        with server.client() as client:
            for flow.calibration in client.calibrate(request):
                flow.times.setdefault(flow.calibration.state, local_clock())
    except VolitionError as error:
        flow.problem = error
        flow.times["failed"] = local_clock()


def _valid_s(frames: live.LiveFrames) -> float:
    valid = sum(frame.valid for frame in frames.frames)
    return valid * (frames.frames[1].window_end - frames.frames[0].window_end) if valid else 0.0


def bench(
    console: Console,
    *,
    preset: str,
    runs: int,
    seconds: float,
    method: Method = "auto",
    bundle: Path | None = None,
    session: Path | None = None,
) -> dict[str, Any]:
    """Recalibrate a decoder live, `runs` times, each time from the same decoder.

    bundle: the decoder; default: the shipped one of the preset, or for `instant`, which that can't
        do, one that is pretrained first.
    session: what is played; each run starts `seconds` later. Default: days of an unseen subject.
    """
    results = []
    with tempfile.TemporaryDirectory() as folder:
        if bundle is None and method == "instant":
            with console.status("pretraining a decoder that identifies units…"):
                bundle, today = identifying(Path(folder), preset)
            session = session or today
        bundle = bundle or BUNDLES / f"{SHIPPED[preset]}.bundle"
        for run in range(runs):
            with console.status(f"run {run + 1} of {runs}…"):
                flow = recalibrate(
                    bundle, _played_in(run, session, seconds),
                    CalibrationRequest(seconds=seconds, method=method), Path(folder, str(run)),
                    before_s=seconds, after_s=AFTER_BENCH_S,
                )  # fmt: skip
            results.append(flow.as_dict())
            console.print(summary(results[-1]))
    return {"preset": preset, "method": method, "seconds": seconds, "runs": results} | totals(
        results
    )


def _played_in(run: int, path: Path | None, seconds: float) -> Session:
    """The session that a run plays: another day, or another part of the session."""
    from training.data.simulate import simulate

    if path is None:
        return simulate(n_units=96, minutes=4.0, subject=UNSEEN, seed=5000 + run)
    session = sessions.load(path)
    start_s = run * seconds % (duration_s(session.domain) / 2)
    return _part(session, start_s, math.inf, session.session_id)


def _part(session: Session, start_s: float, end_s: float, name: str) -> Session:
    """The part of a session's domain between two times since its start, as a session."""
    start, end = (time_after(session.domain, at) for at in (start_s, end_s))
    domain = intersect(session.domain, start, end)
    return replace(session, session_id=name, domain=domain, train_domain=domain)


def identifying(folder: Path, preset: str, *, steps: int = STEPS) -> tuple[Path, Path]:
    """Pretrain a small decoder that identifies units, on simulated sessions.

    Returns its bundle, for one of another subject's sessions, and a later session of the subject
    whose units it knows from three days.
    """
    from training.data.simulate import simulate
    from training.exports.export import export_run
    from training.pretraining.pretrain import pretrain
    from training.pretraining.settings import PretrainSettings

    lasting = simulate(n_units=96, minutes=16.0, subject=0, seed=4000)
    days = [_part(lasting, 120.0 * day, 120.0 * (day + 1), f"day-{day}") for day in range(3)]
    other = simulate(n_units=96, minutes=2.0, subject=1, seed=4001)
    settings = PretrainSettings(preset=preset, minutes=None, steps=steps, threads=1)
    pretrain([*days, other], folder / "run", settings)
    made = export_run(folder / "run", other.session_id, folder / "base.bundle")
    return made.path, sessions.save(_part(lasting, 360.0, math.inf, "today"), folder)


def totals(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The times of all runs: from the last sample to the first frame, by phase; and their ticks."""
    took = [result["took_s"] for result in results if result["took_s"] is not None]
    names = list(dict.fromkeys(name for result in results for name in result["phases_s"]))
    phases = {n: [r["phases_s"][n] for r in results if n in r["phases_s"]] for n in names}
    counted = ("ticks", "missed", "late")
    return {
        "promoted": sum(result["state"] == "promoted" for result in results),
        "took_s_p50": float(np.median(took)) if took else None,
        "took_s_worst": max(took, default=None),
        "phases_s_p50": {name: float(np.median(values)) for name, values in phases.items()},
        "phases_s_worst": {name: max(values) for name, values in phases.items()},
        "ticks_before": {n: sum(r["ticks_before"][n] for r in results) for n in counted},
        "ticks_during": {n: sum(r["ticks_during"][n] for r in results) for n in counted},
    }


def summary(result: dict[str, Any]) -> str:
    """One line for a run."""
    before, during = result["ticks_before"], result["ticks_during"]
    took = "" if result["took_s"] is None else f" after {result['took_s']:.2f} s"
    return (
        f"{result['state']} ({result['method']}){took}: live R² {result['live_r2_before']:.3f} -> "
        f"{result['live_r2_after']:.3f}; missed {during['missed']} of {during['ticks']} ticks, "
        f"{before['missed']} of {before['ticks']} before; late {during['late']}, {before['late']}; "
        f"p99.9 {during['latency_p999_ms']:.2f}, {before['latency_p999_ms']:.2f} ms; "
        f"{result['sequence_gaps']} gaps, {result['changes_of_decoder']} change of decoder"
    )
