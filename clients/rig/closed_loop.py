"""`volition rig`: the whole closed loop on this machine, in processes of their own.

    participant --LSL--> daemon --ZeroMQ--> task --LSL--> participant
                           ^ REST: calibrate, from the task's kinematics

From the shipped decoder: calibrate (observation), closed loop, drift, closed loop, recalibrate,
closed loop; the score of each. The participant is simulated, everything between is real.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

import msgspec

from clients.harness.daemon import BUNDLES
from clients.harness.server import SHIPPED, Server
from clients.participant.drift import Drift
from clients.rig.score import BlockScore, score_trials
from clients.task.trial import Trial, read_trials
from clients.task.workspace import Block, Mode
from decoder.errors import SettingsError, TrainingError
from server.schemas import Calibration, CalibrationRequest, FiltersPatch, Labels, Method, Promote
from server.supervision.children import Child

READY_S = 30.0
MORE_S = 120.0  # of an observation block, beyond what is collected: learning goes on meanwhile
LONGEST_TRIAL = 3.0  # of its limits: a trial, and the way back to the centre
CLOSED_LOOP_GAIN = 0.8  # for a decoder that learned from closed loop after a drift (docs/RIG.md)
DRIFT = Drift(replaced=0.5, turned_deg=60.0)
Made = TypeVar("Made")
PHASES = ("calibrated", "drifted", "recalibrated")
_children: WeakSet[Child] = WeakSet()  # of the loops that run: without them a loop ends


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """One run. seed: of the participant's day and the targets' order.

    method: of both calibrations. trials: of each closed-loop block. seconds: of each calibration.
    allowed_s: of learning in each; None: as the decoder's family needs.
    labels: of the recalibration; `kinematics` collects an observation block, the others learn from
    closed loop with the decoder that drift has spoilt. tick_ms: between decodes. delay_ms: how
    late the participant sees the screen.
    gain: of the daemon's output filters. Half of what was meant is easier to steer than all of it
    (docs/RIG.md): noise counts half, and whoever steers makes up for it by wanting more.
    """

    folder: Path
    seed: int = 1
    preset: str = "stream"
    method: Method = "units"  # `full` learns from reaches alone: offline it scores more
    task: str = "center-out"
    trials: int = 64
    seconds: float = 40.0
    allowed_s: float | None = None
    labels: Labels = "kinematics"
    gain: float = 0.4
    drift: Drift = DRIFT
    tick_ms: float = 10.0
    delay_ms: float = 150.0
    units: int = 96

    def __post_init__(self) -> None:
        if self.preset not in SHIPPED:
            raise SettingsError(f"preset {self.preset!r}; expected {' or '.join(SHIPPED)}")
        self.drift.check(self.units)


@dataclass
class LoopResult:
    """What a run came to. scores: by phase, of `PHASES`."""

    settings: LoopSettings
    scores: dict[str, BlockScore] = field(default_factory=dict)
    calibrations: list[Calibration] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "seed": self.settings.seed,
            "preset": self.settings.preset,
            "method": self.settings.method,
            "labels": self.settings.labels,
            "gain": self.settings.gain,
            "phases": {phase: score.as_dict() for phase, score in self.scores.items()},
            "calibrations": [c.model_dump(mode="json") for c in self.calibrations],
        }


class Loop:
    """Participant, server with its daemon, and task, running."""

    def __init__(
        self, settings: LoopSettings, participant: Child, server: Server, task: Child, prefix: str
    ) -> None:
        self.settings, self.prefix, self.server = settings, prefix, server
        self.participant, self.task = participant, task

    def calibrate(
        self,
        labels: Labels = "kinematics",
        *,
        mode: Mode = "observation",
        promote: Promote = "auto",
    ) -> Calibration:
        """Collect while a block is played, learn, and swap. Raises TrainingError if it fails."""
        self.begin(mode, f"calibrate-{mode}", trials=None, seconds=self.settings.seconds + MORE_S)
        calibration = self.learn(labels=labels, method=self.settings.method, promote=promote)
        self.end()
        return calibration

    def learn(
        self, *, labels: Labels = "kinematics", method: Method, promote: Promote,
        data: str | None = None,
    ) -> Calibration:  # fmt: skip
        """One calibration by REST, of what is played, or again of an earlier one's data.

        Raises TrainingError where it makes no decoder, or one that isn't promoted and should be.
        """
        request = CalibrationRequest(
            seconds=self.settings.seconds, method=method, labels=labels, promote=promote, data=data,
            allowed_s=self.settings.allowed_s, kinematics=f"{self.prefix}-kinematics",
            markers=f"{self.prefix}-markers",
        )  # fmt: skip
        with self.server.client() as client:
            *_, calibration = client.calibrate(request)
        if calibration.candidate is None or (promote == "auto" and calibration.state != "promoted"):
            why = calibration.problem.detail if calibration.problem else calibration.verdict
            raise TrainingError(f"calibration {calibration.state}: {why}")
        return calibration

    def use(self, calibration: Calibration) -> None:
        """Decode with what a calibration made."""
        assert calibration.candidate is not None
        with self.server.client() as client:
            client.activate(calibration.candidate)

    def set_gain(self, gain: float) -> None:
        """Of the daemon's output filters."""
        with self.server.client() as client:
            client.set_filters(FiltersPatch(gain=gain))

    def quicken(self) -> None:
        """For a decoder that learned from closed loop after a drift: the cursor was slow there."""
        self.set_gain(CLOSED_LOOP_GAIN)

    def steer(self, name: str, **block: Any) -> None:
        """A block in closed loop; `block` has fields of `Block` that differ from the settings'."""
        given = {"trials": self.settings.trials, "limit_s": Block.limit_s, **block}
        self.begin("closed", name, **given)
        trials = given["trials"] or self.settings.trials
        self.task.wait_for("ended", trials * LONGEST_TRIAL * given["limit_s"])

    def drift(self) -> None:
        """Another day's units."""
        self.participant.send(drift=msgspec.to_builtins(self.settings.drift))
        self.participant.wait_for("drifted", READY_S + self.settings.drift.ramp_s)

    def begin(self, mode: Mode, name: str, **block: object) -> None:
        """Begin a block; see `steer`."""
        given = {"task": self.settings.task, "seed": self.settings.seed, **block}
        self.task.send(block={"mode": mode, "name": name, **given})
        self.task.wait_for("begun", READY_S)

    def end(self) -> None:
        """End the block that runs."""
        self.task.send(end=True)
        self.task.wait_for("ended", READY_S)


@contextmanager
def running_loop(settings: LoopSettings, **variables: str) -> Iterator[Loop]:
    """Everything, started in an order that lets each find the others; gone at the end."""
    prefix = f"volition-rig-{os.getpid()}-{threading.get_ident()}-{settings.seed}"
    logs, folder = settings.folder / "logs", settings.folder
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as ends:
        participant = start_participant(settings, prefix)
        ends.callback(participant.stop)
        bundle = BUNDLES / f"{SHIPPED[settings.preset]}.bundle"
        server = Server(
            bundle, folder / "home", f"{prefix}-spikes",
            VOLITION_TICK_MS=str(settings.tick_ms), **variables,
        )  # fmt: skip
        ends.enter_context(server)
        task = _child(
            "task", settings.task, "--lines", "--prefix", prefix,
            "--address", server.address, "--log", str(folder / "trials.jsonl"),
            log=logs / "task.log",
        )  # fmt: skip
        ends.callback(task.stop)
        task.wait_for("ready", READY_S)
        for _ in ("kinematics", "markers"):
            participant.wait_for("sees", READY_S)
        loop = Loop(settings, participant, server, task, prefix)
        loop.set_gain(settings.gain)
        yield loop


def start_participant(settings: LoopSettings, prefix: str) -> Child:
    """A participant whose spikes are there."""
    participant = _child(
        "participant", "--prefix", prefix, "--seed", str(settings.seed),
        "--units", str(settings.units), "--delay-ms", str(settings.delay_ms),
        log=settings.folder / "logs" / "participant.log",
    )  # fmt: skip
    participant.wait_for("ready", READY_S)
    return participant


def _child(*arguments: str, log: Path) -> Child:
    child = Child("clients", *arguments, log=log)
    _children.add(child)
    return child


def side_by_side(
    run: Callable[[LoopSettings], Made], loops: Sequence[LoopSettings], jobs: int
) -> Iterator[Made]:
    """What `run` makes of each, in order, `jobs` at once; after an error no other one begins.

    Ctrl-C, and SIGTERM like it, ends all that run. For the main thread.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    pool = ThreadPoolExecutor(max_workers=jobs)
    try:
        yield from pool.map(run, loops)
    except (KeyboardInterrupt, GeneratorExit):
        pool.shutdown(wait=False, cancel_futures=True)
        for child in list(_children):
            child.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        signal.signal(signal.SIGTERM, before)


def run_loop(
    settings: LoopSettings, say: Callable[[str], None] = lambda what: None, **variables: str
) -> LoopResult:
    """Calibrate, steer, drift, steer, recalibrate, steer. say: told what is being done."""
    result = LoopResult(settings=settings)
    with running_loop(settings, **variables) as loop:
        say(f"seed {settings.seed}: calibrating on {settings.seconds:g} s of observation")
        result.calibrations.append(loop.calibrate())
        for phase in PHASES:
            if phase == "drifted":
                loop.drift()
            if phase == "recalibrated":
                say(f"seed {settings.seed}: recalibrating")
                mode: Mode = "observation" if settings.labels == "kinematics" else "closed"
                result.calibrations.append(loop.calibrate(settings.labels, mode=mode))
                if mode == "closed":
                    loop.quicken()
            say(f"seed {settings.seed}: {phase}, {settings.trials} trials in closed loop")
            loop.steer(phase)
    result.trials = read_trials(settings.folder / "trials.jsonl")
    result.scores = {score.block: score for score in score_trials(result.trials)}
    result.scores = {phase: result.scores[phase] for phase in PHASES}
    return result
